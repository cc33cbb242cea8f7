"""The console without a mouse."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.support.browsing.browser import ConsolePage
from tests.support.browsing.world import Account


def test_the_first_stop_of_the_tab_key_leads_past_the_navigation(own: ConsolePage) -> None:
    page = own.open("queues")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="To the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="New queue")).to_be_focused()


def test_the_tab_key_goes_through_the_navigation_in_its_order(own: ConsolePage) -> None:
    page = own.open("queues")
    links = page.locator("nav a")
    for _ in range(1):
        page.keyboard.press("Tab")
    for number in range(links.count()):
        page.keyboard.press("Tab")
        expect(links.nth(number)).to_be_focused()


@pytest.mark.parametrize(("key", "name"), [("q", "queues"), ("s", "schedules"), ("l", "events"), ("y", "system")])
def test_g_and_a_letter_go_to_a_page(own: ConsolePage, key: str, name: str) -> None:
    page = own.open("url-groups")
    page.keyboard.press("g")
    page.keyboard.press(key)
    expect(page).to_have_url(re.compile(f"#/{name}$"))


def test_a_slash_goes_to_the_filter_and_letters_in_it_are_text(own: ConsolePage) -> None:
    page = own.open("queues")
    page.keyboard.press("/")
    page.keyboard.type("gs")
    expect(page.get_by_role("searchbox")).to_have_value("gs")
    expect(page).to_have_url(re.compile("#/queues"))


def test_everything_is_reached_by_name(own: ConsolePage) -> None:
    page = own.open("queues")
    page.keyboard.press("Control+k")
    expect(page.get_by_role("combobox")).to_be_focused()
    page.keyboard.type("sched")
    expect(page.get_by_role("option", selected=True)).to_have_text("Schedules")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Schedules", level=1)).to_be_visible()
    page.keyboard.press("Control+k")
    expect(page.get_by_role("combobox")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("option", selected=True)).to_have_text("Messages")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_the_keys_are_listed(own: ConsolePage) -> None:
    page = own.open("queues")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_contain_text("Schedules")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_question_takes_the_focus_and_gives_it_back(own: ConsolePage, account: Account) -> None:
    account.ask("POST", "/v2/queues", {"queueName": "mail"})
    page = own.open("queues")
    button = page.get_by_role("button", name="Pause mail")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_role("button", name="Pause")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(button).to_be_focused()
    assert account.ask("GET", "/v2/queues/mail")["paused"] is False
