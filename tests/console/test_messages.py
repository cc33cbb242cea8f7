"""Messages, failures and dead letters: what the buttons do at the broker, and filters that are kept."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from qtasks.protocol.messages import State
from tests.support.browsing.browser import ConsolePage
from tests.support.browsing.world import Account, World
from tests.support.running import Endpoint


@pytest.fixture
def broken() -> Iterator[Endpoint]:
    """An endpoint that fails."""
    endpoint = Endpoint(lambda _: (500, {}, b"the shop is closed"))
    yield endpoint
    endpoint.close()


def failed(account: Account, shop: World, endpoint: Endpoint, count: int = 1) -> list[str]:
    """Messages that have become dead letters; their ids."""
    ids = [account.publish(f"{endpoint.url}/order", Retries="0") for _ in range(count)]
    for message_id in ids:
        shop.broker.wait_for(State.FAILED, message_id)
    return ids


def dead(account: Account) -> int:
    return len(account.ask("GET", "/v2/dlq")["messages"])


def test_a_message_that_waits_is_cancelled_after_a_question(own: ConsolePage, account: Account, shop: World) -> None:
    message_id = account.publish(shop.endpoint.url, Delay="1d")
    page = own.open(f"messages/{message_id}")
    page.get_by_role("button", name="Cancel", exact=True).click()
    own.confirm("Cancel it")
    expect(page.get_by_text("canceled").first).to_be_visible()
    assert account.ask("GET", f"/v2/logs?messageId={message_id}")["logs"][0]["state"] == "CANCELED"


def test_a_message_runs_again_as_a_new_one(own: ConsolePage, account: Account, shop: World) -> None:
    message_id = account.publish(f"{shop.endpoint.url}/again", b'{"n": 12345678901234567890}')
    shop.broker.wait_for(State.DELIVERED, message_id)
    page = own.open(f"messages/{message_id}")
    page.get_by_role("button", name="Run again", exact=True).click()
    own.confirm("Run again")
    expect(page).not_to_have_url(re.compile(message_id))
    shop.broker.wait_for(State.DELIVERED, page.url.rpartition("/")[2])
    bodies = [each.body for each in shop.endpoint.received if each.path == "/again"]
    assert bodies == [b'{"n": 12345678901234567890}'] * 2


def test_the_filter_is_kept_after_a_reload(own: ConsolePage, account: Account, shop: World, broken: Endpoint) -> None:
    failed(account, shop, broken)
    account.publish(f"{shop.endpoint.url}/fine", Delay="1d")
    page = own.open("messages?filter=status%3Afailed")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(1)
    page.reload()
    expect(rows).to_have_count(1)
    expect(page.get_by_role("combobox")).to_have_value("status:failed")


def test_dead_letters_are_retried_in_bulk_with_their_number_shown_first(
    own: ConsolePage, account: Account, shop: World, broken: Endpoint
) -> None:
    failed(account, shop, broken, count=3)
    broken.answer = lambda _: (200, {}, b"")
    page = own.open("dead-letters")
    page.get_by_role("button", name=re.compile("Retry all")).click()
    expect(page.get_by_role("dialog")).to_contain_text("3 dead letters")
    own.confirm("Retry 3")
    broken.wait_for(6)
    assert dead(account) == 0


def test_a_group_of_failures_is_retried_as_a_whole(
    own: ConsolePage, account: Account, shop: World, broken: Endpoint
) -> None:
    failed(account, shop, broken, count=2)
    broken.answer = lambda _: (200, {}, b"")
    page = own.open("failures")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(1)
    page.get_by_role("button", name="Retry 2").click()
    own.confirm("Retry 2")
    broken.wait_for(4)
    assert dead(account) == 0


def test_the_list_has_the_reports_of_the_framework_on_request_only(own: ConsolePage, account: Account) -> None:
    for name in ("_end", "greet"):
        account.publish(f"http://127.0.0.1:9/qtasks/{name}", Delay="1d", Qtasks_Interrupted_For="1h")
    page = own.open("messages")
    rows = page.locator("tbody")
    expect(rows).to_contain_text("greet")
    expect(rows).not_to_contain_text("_end")
    page.get_by_role("button", name="with reports").click()
    expect(rows).to_contain_text("_end")
    own.open("messages?filter=task%3A_end")
    expect(rows).to_contain_text("_end")
