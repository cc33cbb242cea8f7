"""Queues and flow-control keys: what the buttons do at the broker."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import expect

from tests.support.browsing.browser import ConsolePage
from tests.support.browsing.world import Account, World


def queue(account: Account, name: str = "mail") -> dict[str, Any]:
    state: dict[str, Any] = account.ask("GET", f"/v2/queues/{name}")
    return state


def key(account: Account, name: str = "openai") -> dict[str, Any]:
    state: dict[str, Any] = account.ask("GET", f"/v2/flowControl/{name}")
    return state


def waiting_queue(account: Account, shop: World) -> list[str]:
    """A paused queue with two messages; their ids."""
    account.ask("POST", "/v2/queues", {"queueName": "mail", "parallelism": 2})
    account.ask("POST", "/v2/queues/mail/pause")
    return [account.publish(shop.endpoint.url, Queue="mail") for _ in range(2)]


def waiting_key(account: Account, shop: World) -> None:
    """A flow-control key with limits and a message that starts tomorrow."""
    account.publish(shop.endpoint.url, Delay="1d", Flow_Control_Key="openai", Flow_Control_Value="rate=100, period=1m")


def test_a_queue_is_paused_and_resumed(own: ConsolePage, account: Account, shop: World) -> None:
    waiting_queue(account, shop)
    page = own.open("queues")
    row = page.get_by_role("row").filter(has_text="mail")
    expect(row).to_contain_text("paused")
    page.get_by_role("button", name="Resume mail").click()
    expect(page.get_by_role("dialog")).to_contain_text("2 messages")
    own.confirm("Resume")
    assert queue(account)["paused"] is False
    page.get_by_role("button", name="Pause mail").click()
    own.confirm("Pause")
    assert queue(account)["paused"] is True


def test_the_parallelism_is_set_and_a_wrong_one_is_refused(own: ConsolePage, account: Account, shop: World) -> None:
    waiting_queue(account, shop)
    page = own.open("queues")
    page.get_by_role("button", name="Set the parallelism of mail").click()
    page.get_by_role("spinbutton", name="Parallelism").fill("0")
    page.get_by_role("dialog").get_by_role("button", name="Set", exact=True).click()
    expect(page.get_by_role("dialog")).to_be_visible()  # the browser says what is wrong
    page.get_by_role("spinbutton", name="Parallelism").fill("7")
    own.confirm("Set")
    assert queue(account)["parallelism"] == 7
    expect(page.get_by_role("row").filter(has_text="mail")).to_contain_text("0 of 7")


def test_a_queue_is_made_and_a_bad_name_is_explained(own: ConsolePage, account: Account) -> None:
    own.expects("400")
    page = own.open("queues")
    page.get_by_role("button", name="New queue").click()
    page.get_by_role("textbox", name="Name").fill("mail today!")
    page.get_by_role("dialog").get_by_role("button", name="Make it").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_be_visible()
    page.get_by_role("textbox", name="Name").fill("mail")
    own.confirm("Make it")
    assert queue(account)["parallelism"] == 1


def test_delete_cancels_what_waits(own: ConsolePage, account: Account, shop: World) -> None:
    first, _ = waiting_queue(account, shop)
    page = own.open("queues")
    page.get_by_role("button", name="Delete mail").click()
    expect(page.get_by_role("dialog")).to_contain_text("2 waiting messages of it are cancelled")
    own.delete("Delete")
    expect(page.get_by_text("No queues.")).to_be_visible()
    assert account.ask("GET", f"/v2/logs?messageId={first}")["logs"][0]["state"] == "CANCELED"


def test_the_limits_of_a_key_are_pinned_and_unpinned(own: ConsolePage, account: Account, shop: World) -> None:
    waiting_key(account, shop)
    page = own.open("queues")
    row = page.get_by_role("row").filter(has_text="openai")
    expect(row).to_contain_text("100 in 1 min")
    page.get_by_role("button", name="Pin the limits of openai", exact=True).click()
    page.get_by_role("spinbutton", name="At once").fill("4")
    own.confirm("Pin")
    expect(row).to_contain_text("pinned")
    state = key(account)
    assert (state["parallelismMax"], state["rateMax"], state["isPinnedParallelism"]) == (4, 100, True)
    page.get_by_role("button", name="Unpin the limits of openai").click()
    own.confirm("Unpin")
    expect(page.get_by_role("button", name="Unpin the limits of openai")).to_have_count(0)
    assert key(account)["isPinnedParallelism"] is False


def test_a_key_is_paused_and_resumed(own: ConsolePage, account: Account, shop: World) -> None:
    waiting_key(account, shop)
    page = own.open("queues")
    for label, paused in (("Pause", True), ("Resume", False)):
        page.get_by_role("button", name=f"{label} openai").click()
        own.confirm(label)
        assert key(account)["isPaused"] is paused


def test_a_queue_that_appears_is_shown_without_a_reload(own: ConsolePage, account: Account, shop: World) -> None:
    page = own.open("queues")
    expect(page.get_by_text("No queues.")).to_be_visible()
    account.publish(f"{shop.endpoint.url}/new", Queue="fresh")
    expect(page.get_by_role("row").filter(has_text="fresh")).to_be_visible()
