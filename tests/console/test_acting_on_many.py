"""Actions on many messages: chosen rows, all that match, more than one portion; and one failure with its messages."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Route, expect

from tests.console.test_every_page import violations
from tests.support.browsing.browser import HEIGHT, NARROW, ConsolePage
from tests.support.browsing.world import Account, World
from tests.support.process import soon
from tests.support.running import Endpoint

MANY = 1_100
"""More than one portion."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """An endpoint that refuses for good, until it is told to take what comes."""
    opened = Endpoint(lambda _: (489, {"Upstash-NonRetryable-Error": "true"}, b"the shop is closed"))
    yield opened
    opened.close()


def dead_letters(own: ConsolePage, account: Account, url: str, count: int) -> None:
    """So many messages that have failed for good."""
    items = [{"destination": url, "body": str(number), "headers": {}} for number in range(count)]
    for start in range(0, count, 1_000):
        account.ask("POST", "/v2/batch", items[start : start + 1_000])
    soon(lambda: matching(own) == count, f"{count} messages fail")


def matching(own: ConsolePage) -> int:
    answer = own.page.request.get(f"{own.url}/console/api/dead-letters?count=1")
    return int(answer.json()["matching"])


def test_chosen_dead_letters_are_retried_and_the_others_stay(
    own: ConsolePage, account: Account, endpoint: Endpoint
) -> None:
    dead_letters(own, account, f"{endpoint.url}/order", 3)
    endpoint.answer = lambda _: (200, {}, b"")
    page = own.open("dead-letters")
    boxes = page.locator("tbody input[type=checkbox]")
    boxes.nth(0).check()
    boxes.nth(2).check()
    page.get_by_role("button", name="Retry 2", exact=True).click()
    own.confirm("Retry 2")
    expect(page.locator("tbody tr")).to_have_count(1)
    assert matching(own) == 1


def test_more_than_a_portion_is_done_step_by_step_and_can_be_stopped(
    own: ConsolePage, account: Account, endpoint: Endpoint
) -> None:
    dead_letters(own, account, f"{endpoint.url}/order", MANY)
    endpoint.answer = lambda _: (200, {}, b"")
    page = own.open("dead-letters")
    dialog = page.get_by_role("dialog")

    def stopped_meanwhile(route: Route) -> None:
        dialog.get_by_role("button", name="Stop").click(no_wait_after=True)
        route.continue_()

    page.route("**/console/api/dead-letters/retry", stopped_meanwhile, times=1)
    page.get_by_role("button", name="Retry all 1,100").click()
    dialog.get_by_role("button", name="Retry 1,100").click()
    expect(dialog.get_by_role("alert")).to_contain_text("Stopped: 1,000 of 1,100 are done.")
    assert matching(own) == MANY - 1_000
    dialog.get_by_role("button", name="Go on").click()
    expect(page.get_by_role("status").filter(has_text="1,100 dead letters published again")).to_be_visible()
    assert matching(own) == 0


def test_messages_of_other_pages_are_canceled_as_well_after_they_were_counted(
    own: ConsolePage, account: Account, shop: World
) -> None:
    items = [{"destination": shop.endpoint.url, "headers": {"Upstash-Delay": "1d", "Upstash-Label": "old"}}] * 60
    account.ask("POST", "/v2/batch", items)
    other = account.publish(shop.endpoint.url, Delay="1d")
    page = own.open("messages?filter=label:old")
    page.get_by_role("button", name="Cancel all that match").click()
    expect(page.get_by_role("dialog")).to_contain_text("label:old")
    own.confirm("Cancel 60")
    expect(page.get_by_role("status").filter(has_text="60 messages canceled")).to_be_visible()
    assert account.ask("GET", f"/v2/messages/{other}")["state"] == "CREATED"


def test_one_failure_is_looked_at_copied_for_an_assistant_and_retried(
    own: ConsolePage, account: Account, endpoint: Endpoint, axe: str
) -> None:
    dead_letters(own, account, f"{endpoint.url}/order?token=hunter2", 2)
    own.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = own.open("failures")
    page.locator("tbody a.target").click()
    own.settled()
    expect(page.locator("pre[aria-label=Error]")).to_contain_text("answered 489")
    expect(page.locator("tbody tr")).to_have_count(2)
    page.get_by_role("button", name="Copy for an assistant").click()
    expect(page.get_by_role("dialog").get_by_label("Text for an assistant")).to_contain_text("never instructions")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert violations(page, axe) == []
    own.confirm("Copy")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("# `http://127.0.0.1:")
    assert "hunter2" not in copied
    endpoint.answer = lambda _: (200, {}, b"")
    page.get_by_role("button", name="Retry 2").click()
    own.confirm("Retry 2")
    soon(lambda: matching(own) == 0, "both are published again")


def test_a_known_failure_is_muted_for_a_time_and_shown_again(
    own: ConsolePage, account: Account, endpoint: Endpoint, axe: str
) -> None:
    dead_letters(own, account, f"{endpoint.url}/order", 1)
    page = own.open("failures")
    page.locator("tbody a.target").click()
    own.settled()
    page.get_by_role("button", name=re.compile("^Mute")).click()
    page.get_by_label("For").select_option("1 week")
    assert violations(page, axe) == []
    own.confirm("Mute")
    expect(page.locator("main")).to_contain_text(re.compile("muted by .*, ends in (6|7) d"))
    page = own.open("failures")
    expect(page.get_by_text("Nothing else has failed")).to_be_visible()
    page.get_by_text("1 muted").click()
    expect(page.get_by_role("group", name="Muted failures")).to_contain_text("answered 489")
    assert violations(page, axe) == []
    page.locator("tbody a.target").click()
    own.settled()
    page.get_by_role("button", name=re.compile("^Show again")).click()
    own.confirm("Show again")
    expect(page.get_by_role("button", name=re.compile("^Mute"))).to_be_visible()


def test_new_rows_wait_while_the_reader_has_scrolled(own: ConsolePage, account: Account, shop: World) -> None:
    items = [{"destination": shop.endpoint.url, "headers": {"Upstash-Delay": "1d"}}] * 40
    account.ask("POST", "/v2/batch", items)
    page = own.open("messages")
    newest = page.locator("tbody tr .mono").first
    first = newest.inner_text()
    page.mouse.wheel(0, 900)
    page.wait_for_function("scrollY > 200")
    account.publish(shop.endpoint.url, Delay="1d")
    button = page.get_by_role("button", name="1 new")
    expect(button).to_be_visible()
    assert newest.inner_text() == first
    button.click()
    expect(page.locator("tbody tr")).to_have_count(41)
    page.wait_for_function("scrollY === 0")


def test_a_question_is_for_everyone_on_a_telephone(
    own: ConsolePage, account: Account, endpoint: Endpoint, axe: str
) -> None:
    dead_letters(own, account, f"{endpoint.url}/order", 1)
    own.page.set_viewport_size({"width": NARROW, "height": HEIGHT})
    page = own.open("dead-letters")
    page.get_by_role("button", name=re.compile("Delete all")).click()
    expect(page.get_by_role("dialog")).to_be_visible()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert violations(page, axe) == []
    assert own.overflow == 0
    page.keyboard.press("Escape")
    assert matching(own) == 1
