"""Searchable arguments: proposed in the filter, linked on the page of a message, and given by the form of a task."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from qtasks.protocol.messages import State
from tests.support.browsing.browser import ConsolePage
from tests.support.browsing.world import World


def test_the_filter_proposes_what_tasks_declare(operators: ConsolePage) -> None:
    page = operators.open("messages")
    box = page.get_by_role("combobox")
    box.fill("arg.")
    proposal = page.get_by_role("option", name="arg.user_id:")
    expect(proposal).to_contain_text("an argument of send_welcome_mail")
    proposal.click()
    expect(box).to_have_value("arg.user_id:")


def test_a_message_leads_to_the_calls_with_the_same_argument(operators: ConsolePage, messages: dict[str, str]) -> None:
    page = operators.open(f"messages/{messages['delivered']}")
    page.get_by_role("link", name="user_id", exact=True).click()
    expect(page.get_by_role("combobox")).to_have_value("arg.user_id:42")
    expect(page.locator("tbody tr").filter(has_text=messages["delivered"][:20])).to_have_count(1)
    expect(page.locator("tbody tr").filter(has_text="import_products")).to_have_count(0)


def test_a_call_from_the_form_of_its_task_is_found_by_its_arguments(operators: ConsolePage, shop: World) -> None:
    page = operators.open("tasks/send_welcome_mail")
    page.get_by_role("textbox", name="address").fill("eve@example.com")
    page.get_by_role("textbox", name="user_id").fill("815")
    page.get_by_role("button", name="Run send_welcome_mail").click()
    queued = page.get_by_role("link", name=re.compile("^msg_"))
    message_id = queued.inner_text()
    shop.broker.wait_for(State.DELIVERED, message_id)
    assert shop.operator.ask("GET", f"/v2/messages/{message_id}")["labels"] == ["qtasks.arg.user_id=815"]
    page = operators.open("messages?filter=arg.user_id%3A815")
    expect(page.locator("tbody tr")).to_have_count(1)
