"""The broker itself: keys are rotated only after a question, and secrets are shown only on demand."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.support.browsing.browser import ConsolePage
from tests.support.browsing.world import Account


def test_the_keys_are_rotated_after_a_question(own: ConsolePage, account: Account) -> None:
    before = account.ask("GET", "/v2/keys")
    page = own.open("system")
    expect(page.locator("main")).not_to_contain_text(before["current"])
    page.get_by_role("button", name="Show the keys").click()
    expect(page.locator("main")).to_contain_text(before["current"])
    page.get_by_role("button", name="Rotate").click()
    expect(page.get_by_role("dialog")).to_contain_text("The next key becomes the current one")
    page.keyboard.press("Escape")
    assert account.ask("GET", "/v2/keys") == before
    page.get_by_role("button", name="Rotate").click()
    own.confirm("Rotate")
    after = account.ask("GET", "/v2/keys")
    assert after["current"] == before["next"]
    expect(page.locator("main")).to_contain_text(after["next"])
    page.get_by_role("button", name="Hide the keys").click()
    expect(page.locator("main")).not_to_contain_text(after["next"])


def test_the_system_tells_of_its_store_and_its_tokens(operators: ConsolePage) -> None:
    page = operators.open("system")
    expect(page.get_by_role("region", name="Store")).to_contain_text("✓ ready")
    expect(page.get_by_role("region", name="Tokens")).to_contain_text("operator")
