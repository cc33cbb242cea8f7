"""Who sees and does what: sign-in, sign-out, and the three roles."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from qtasks.broker.store.verbs import accounts
from tests.support.browsing.browser import ConsolePage
from tests.support.browsing.world import Account, World

ACTIONS = ("Run now", "Pause", "Resume", "Delete", "Set", "Pin", "New queue", "New group", "Rotate", "Show the keys")


VIEWER, METADATA = "viewer", "metadata"


def token_of(shop: World, account: Account, role: str) -> str:
    """Another token of the account of `account`, with fewer rights, stored under the name `role`."""
    token = f"{role}-{account.token}"
    shop.broker.call(
        shop.broker.broker.store.write(
            accounts.add_token,
            token,
            shop.broker.broker.accounts[account.name],
            role,
            read_only=True,
            without_payloads=role == METADATA,
            now_ms=shop.broker.broker.clock.now_ms(),
        )
    )
    return token


def test_a_stranger_signs_in_with_a_token_and_out_again(console: ConsolePage, account: Account) -> None:
    console.expects("401")
    page = console.open("queues")
    expect(page.get_by_role("heading", name="qtasks")).to_be_visible()
    page.get_by_label("Token").fill("not a token")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("not a token of this broker")
    page.get_by_label("Token").fill(account.token)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Queues and limits")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Queues and limits")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Token")).to_be_visible()
    page.reload()
    expect(page.get_by_label("Token")).to_be_visible()


def test_a_token_that_is_revoked_ends_the_session(console: ConsolePage, shop: World, account: Account) -> None:
    console.expects("401")
    console.sign_in(token_of(shop, account, VIEWER))
    page = console.open("queues")
    store, number = shop.broker.broker.store, shop.broker.broker.accounts[account.name]
    shop.broker.call(store.write(accounts.remove_token, number, VIEWER))
    account.publish(f"{shop.endpoint.url}/anything")
    expect(page.get_by_text("The session has ended.")).to_be_visible()


@pytest.mark.parametrize("role", [VIEWER, METADATA])
def test_who_may_only_look_sees_no_button_that_changes_something(
    console: ConsolePage, shop: World, account: Account, role: str
) -> None:
    account.schedule(f"{shop.endpoint.url}/report", "0 9 * * *")
    account.ask("POST", "/v2/queues", {"queueName": "mail"})
    console.sign_in(token_of(shop, account, role))
    for address in ("schedules", "queues", "url-groups", "system"):
        page = console.open(address)
        assert [label for label in ACTIONS if page.get_by_role("button", name=label).count()] == []


def test_without_payloads_no_payload_reaches_the_browser(console: ConsolePage, shop: World, account: Account) -> None:
    schedule_id = account.schedule(f"{shop.endpoint.url}/report", "0 9 * * *")
    console.sign_in(token_of(shop, account, METADATA))
    bodies: list[str] = []
    console.page.on("response", lambda answer: bodies.append(answer.text()) if "/api/sch" in answer.url else None)
    page = console.open(f"schedules/{schedule_id}")
    expect(page.get_by_role("region", name="What it sends")).to_contain_text("/report")
    expect(page.locator("main")).not_to_contain_text("12345678901234567890")
    assert bodies
    assert "12345678901234567890" not in "".join(bodies)
    expect(console.open("url-groups").get_by_text("This token shows no payloads.")).to_be_visible()
