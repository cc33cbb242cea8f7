"""Deletions that can be undone for ten seconds: by button and key, in two tabs, and when the page is left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from qtasks.protocol.messages import State
from tests.support.browsing.browser import ConsolePage, console_page
from tests.support.browsing.world import Account, World


def queues(account: Account) -> list[str]:
    return [queue["name"] for queue in account.ask("GET", "/v2/queues")]


def letters(account: Account) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = account.ask("GET", "/v2/dlq")["messages"]
    return found


def bury(account: Account, shop: World, count: int) -> None:
    """Make dead letters."""
    ids = [account.publish("http://127.0.0.1:9/nobody", Retries="0") for _ in range(count)]
    for message_id in ids:
        shop.broker.wait_for(State.FAILED, message_id)


def bar(page: Page) -> Any:
    return page.get_by_role("group", name="Deletions that can be undone")


def ask_to_delete(own: ConsolePage, account: Account, name: str = "mail") -> Page:
    """A page that holds the deletion of a queue."""
    account.ask("POST", "/v2/queues", {"queueName": name})
    page = own.open("queues")
    page.get_by_role("button", name=f"Delete {name}").click()
    expect(page.get_by_role("dialog")).to_contain_text("undo it for ten seconds")
    own.confirm("Delete")
    expect(bar(page)).to_contain_text(f"Deleting the queue {name}")
    return page


@pytest.fixture
def timed(browser: Browser, shop: World, account: Account) -> Iterator[ConsolePage]:
    """A page whose clock the test moves."""
    with console_page(browser, shop.url) as page:
        page.page.clock.install()
        page.sign_in(account.token)
        yield page
        page.check()


def test_a_deletion_is_announced_shown_and_undone(own: ConsolePage, account: Account) -> None:
    page = ask_to_delete(own, account)
    expect(bar(page)).to_have_attribute("aria-live", "polite")
    row = page.get_by_role("row").filter(has_text="mail")
    expect(row).to_contain_text("deleting")
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("button", name="Delete mail")).to_be_visible()
    expect(page.get_by_role("status").filter(has_text="nothing was deleted")).to_be_visible()
    assert queues(account) == ["mail"]


def test_control_z_undoes_the_last_deletion_but_not_while_one_types(own: ConsolePage, account: Account) -> None:
    account.ask("POST", "/v2/queues", {"queueName": "reports"})
    page = ask_to_delete(own, account)
    page.get_by_role("button", name="Delete reports").click()
    own.confirm("Delete")
    expect(page.get_by_role("button", name="Undo")).to_have_count(2)
    page.get_by_role("searchbox").press("Control+z")
    expect(page.get_by_role("button", name="Undo")).to_have_count(2)
    page.locator("main h1").focus()
    page.keyboard.press("Control+z")
    expect(bar(page)).not_to_contain_text("reports")
    page.get_by_role("button", name="Delete now").focus()
    page.keyboard.press("Enter")
    expect(bar(page)).not_to_contain_text("mail")
    assert queues(account) == ["reports"]


def test_after_ten_seconds_it_is_deleted_but_not_while_the_reader_is_at_the_buttons(
    timed: ConsolePage, account: Account
) -> None:
    page = ask_to_delete(timed, account)
    page.clock.run_for(9_000)
    page.get_by_role("button", name="Undo").focus()
    page.clock.run_for(60_000)
    assert queues(account) == ["mail"]
    page.locator("main h1").focus()
    with page.expect_response(lambda response: response.request.method == "DELETE"):
        page.clock.run_for(2_000)
    expect(bar(page)).to_be_empty()
    assert queues(account) == []


def test_what_is_held_is_sent_when_the_page_is_reloaded_and_the_page_says_so(
    own: ConsolePage, account: Account
) -> None:
    page = ask_to_delete(own, account)
    page.reload()
    expect(page.get_by_text("Deleting the queue mail: sent to the broker when the page was left.")).to_be_visible()
    expect(page.get_by_text("No queues.")).to_be_visible()
    assert queues(account) == []


def test_another_tab_sees_the_broker_as_it_is_and_may_be_quicker(
    own: ConsolePage, account: Account, browser: Browser, shop: World
) -> None:
    page = ask_to_delete(own, account)
    with console_page(browser, shop.url) as other:
        other.sign_in(account.token)
        there = other.open("queues")
        there.get_by_role("button", name="Delete mail").click()
        other.delete("Delete")
        expect(there.get_by_text("No queues.")).to_be_visible()
        other.check()
    page.get_by_role("button", name="Delete now").click()
    expect(page.get_by_text("No queues.")).to_be_visible()


def test_a_deletion_that_fails_says_why_and_can_be_tried_again(own: ConsolePage, account: Account) -> None:
    own.expects("503|Failed to load")
    page = ask_to_delete(own, account)
    page.route("**/v2/queues/mail", lambda route: route.fulfill(status=503, json={"error": "the store is busy"}))
    page.get_by_role("button", name="Delete now").click()
    expect(bar(page)).to_contain_text("the store is busy")
    page.unroute("**/v2/queues/mail")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_text("No queues.")).to_be_visible()
    assert queues(account) == []


def test_chosen_dead_letters_leave_and_come_back(own: ConsolePage, account: Account, shop: World) -> None:
    bury(account, shop, 3)
    page = own.open("dead-letters")
    page.get_by_role("checkbox", name="Select").nth(1).check()
    page.get_by_role("button", name="Delete 1", exact=True).click()
    own.confirm("Delete 1")
    expect(page.locator("tr.leaving")).to_have_count(1)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("tr.leaving")).to_have_count(0)
    assert len(letters(account)) == 3


def test_all_that_match_are_deleted_when_the_page_is_left_and_no_later_one(
    own: ConsolePage, account: Account, shop: World
) -> None:
    bury(account, shop, 3)
    page = own.open("dead-letters?filter=url%3Ahttp*")
    page.get_by_role("button", name="Delete all 3").click()
    own.confirm("Delete 3")
    expect(bar(page)).to_contain_text("Deleting 3 dead letters")
    expect(page.locator("tr.leaving")).to_have_count(3)
    bury(account, shop, 1)
    page.goto("about:blank")
    own.open("dead-letters")
    expect(page.get_by_text("1 dead letter", exact=True)).to_be_visible()
    assert len(letters(account)) == 1
