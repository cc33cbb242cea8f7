"""Messages, one message, failures and dead letters: what the pages show and what their buttons do at the broker."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.support.browsing.browser import ConsolePage
from tests.support.browsing.world import Account, World
from tests.support.process import soon

NOWHERE = "http://127.0.0.1:9/orders"
"""Nothing listens on this port."""


def rows(page: Page, status: str) -> int:
    return page.locator(f"tbody .status-{status}").count()


def dead_letter(account: Account) -> str:
    return account.publish(NOWHERE, b"{}", Retries="0")


def test_a_filter_completes_its_words_and_stays_after_a_reload(operators: ConsolePage) -> None:
    page = operators.open("messages")
    bar = page.get_by_role("combobox", name="Filter")
    bar.press_sequentially("status:fai")
    expect(page.get_by_role("option")).to_have_text(re.compile("status:failed"))
    bar.press("ArrowDown")
    bar.press("Enter")
    expect(page).to_have_url(re.compile("filter=status%3Afailed"))
    page.reload()
    operators.settled()
    expect(page.get_by_role("link", name="refund")).to_be_visible()
    expect(page.locator("tbody .status-delivered")).to_have_count(0)
    assert rows(page, "failed") > 0


def test_a_word_that_cannot_be_read_is_marked_at_its_place(operators: ConsolePage) -> None:
    operators.expects("422")
    page = operators.open("messages?filter=task:refund+status:lost")
    expect(page.locator("mark")).to_have_text("status:lost")
    expect(page.get_by_role("alert")).to_contain_text("unknown status")


def test_new_rows_wait_while_some_are_chosen(own: ConsolePage, account: Account, shop: World) -> None:
    account.publish(shop.endpoint.url, Delay="1d")
    page = own.open("messages")
    page.get_by_role("checkbox", name="Select msg_").check()
    account.publish(shop.endpoint.url, Delay="1d")
    expect(page.get_by_role("button", name="1 new")).to_be_visible()
    assert rows(page, "scheduled") == 1
    page.get_by_role("button", name="1 new").click()
    expect(page.locator("tbody .status-scheduled")).to_have_count(2)


def test_chosen_messages_are_canceled(own: ConsolePage, account: Account, shop: World) -> None:
    message_id = account.publish(shop.endpoint.url, Delay="1d")
    page = own.open("messages")
    page.get_by_role("checkbox", name=f"Select {message_id}").check()
    page.get_by_role("button", name="Cancel 1").click()
    own.confirm("Cancel them")
    assert account.ask("GET", f"/v2/messages/{message_id}")["state"] == "CANCELED"


def test_all_dead_letters_that_match_are_deleted(own: ConsolePage, account: Account) -> None:
    dead_letter(account)
    page = own.open("dead-letters?filter=url:http://127.0.0.1:9/*")
    page.get_by_role("button", name="Delete all 1").click()
    own.delete("Delete 1")
    assert account.ask("GET", "/v2/dlq")["messages"] == []


def test_a_failure_is_retried_and_its_dead_letters_are_new_messages(own: ConsolePage, account: Account) -> None:
    message_id = dead_letter(account)
    page = own.open("failures")
    page.get_by_role("button", name="Retry 1").click()
    own.confirm("Retry 1")
    expect(page.locator("tbody")).to_contain_text("2")  # attempts: the new message fails as well

    def dead() -> list[str]:
        return [each["messageId"] for each in account.ask("GET", "/v2/dlq")["messages"]]

    # The number may have been part of an age: the new message is a dead letter a moment later.
    soon(lambda: dead() not in ([], [message_id]), "the new message is a dead letter")
    [letter] = dead()
    assert letter != message_id


def test_a_message_is_edited_and_run_again(own: ConsolePage, account: Account, shop: World) -> None:
    message_id = account.publish(shop.endpoint.url, b'{"number": 12345678901234567890}', Delay="1d")
    page = own.open(f"messages/{message_id}")
    expect(page.locator(".json-number")).to_have_text("12345678901234567890")
    page.get_by_role("button", name="Edit and run again").click()
    page.get_by_role("textbox", name="Body").fill('{"number": 12345678901234567891}')
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page).not_to_have_url(re.compile(message_id))
    again = page.url.rpartition("/")[2]
    assert account.ask("GET", f"/v2/messages/{again}")["body"] == '{"number": 12345678901234567891}'
