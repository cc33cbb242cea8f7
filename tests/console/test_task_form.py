"""The form that runs a task: an input for each kind of argument, and each mistake at its field."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from qtasks.protocol.messages import State
from tests.console.test_every_page import violations
from tests.support.browsing.browser import ConsolePage
from tests.support.browsing.world import Address, World

BIG = 123456789012345678901234567890
VALID = {"name": "Ada", "number": str(BIG), "tags": '["a", "b"]', "address": '{"city": "Köln", "floors": [1, 2]}'}


@pytest.fixture
def form(operators: ConsolePage) -> Page:
    page = operators.open("tasks/configure")
    expect(page.get_by_role("region", name="Declared as")).to_contain_text("Take one argument of each kind.")
    return page


def fill_in(page: Page, **texts: str) -> None:
    for name, text in {**VALID, **texts}.items():
        page.locator(f"#argument-{name}").fill(text)
    page.locator("#argument-urgent").select_option("true")


def run(page: Page) -> None:
    page.get_by_role("button", name="Run configure").click()


def test_every_kind_of_argument_reaches_the_task_as_it_was_typed(form: Page, shop: World) -> None:
    fill_in(form, note="null")
    form.locator("#argument-colour").select_option(label='"green"')
    run(form)
    expect(form.get_by_role("status").filter(has_text="delivered")).to_be_visible()
    assert {name: value for name, value in shop.taken[-1].items() if name != "taken"} == {
        "name": "Ada",
        "number": BIG,
        "urgent": True,
        "tags": ["a", "b"],
        "address": Address(city="Köln", floors=[1, 2]),
        "colour": "green",
        "note": None,
    }


def test_a_missing_argument_is_asked_for_before_anything_is_sent(form: Page, shop: World) -> None:
    before = len(shop.taken)
    fill_in(form, number="")
    run(form)
    field = form.get_by_label("number")
    expect(field).to_be_focused()
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(form.locator("#argument-number-hint")).to_have_text("A value is needed.")
    assert len(shop.taken) == before


def test_what_is_not_json_is_said_at_its_field(form: Page) -> None:
    fill_in(form, tags="a, b")
    run(form)
    expect(form.locator("#argument-tags-hint")).to_contain_text("This is not JSON")


def test_what_the_application_refuses_is_said_at_its_field(form: Page, shop: World) -> None:
    fill_in(form, number='"seven"')
    run(form)
    expect(form.get_by_role("status").filter(has_text="failed")).to_be_visible()
    expect(form.locator("#argument-number-hint")).to_contain_text("The application says: it expects int")
    expect(form.get_by_label("number")).to_have_attribute("aria-invalid", "true")


def test_the_arguments_are_kept_for_the_next_run(form: Page, shop: World, axe: str) -> None:
    fill_in(form, name="Grace")
    run(form)
    link = form.get_by_role("link", name=re.compile("^msg_"))
    message_id = link.inner_text()
    shop.broker.wait_for(State.DELIVERED, message_id)
    form.reload()
    expect(form.get_by_label("name")).to_have_value("Grace")
    assert violations(form, axe) == []
