"""The live stream: events as they happen, held back while it is paused, filtered by text."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.support.browsing.browser import ConsolePage
from tests.support.browsing.world import Account, World


def live(own: ConsolePage, address: str = "events") -> Page:
    """The page of events, connected."""
    page = own.open(address)
    expect(page.locator(".connection")).to_have_text("live")
    return page


def test_events_appear_as_they_happen(own: ConsolePage, account: Account, shop: World) -> None:
    page = live(own)
    expect(page.get_by_text("Nothing has happened")).to_be_visible()
    message_id = account.publish(f"{shop.endpoint.url}/welcome")
    lines = page.get_by_role("list", name="Events, the newest first").get_by_role("listitem")
    expect(lines.first).to_contain_text("delivered")
    expect(lines.first).to_contain_text("/welcome")
    lines.first.get_by_role("link").click()
    expect(page).to_have_url(re.compile(f"#/messages/{message_id}$"))


def test_while_it_is_paused_events_wait(own: ConsolePage, account: Account, shop: World) -> None:
    page = live(own)
    account.publish(f"{shop.endpoint.url}/first")
    expect(page.locator(".stream")).to_contain_text("delivered")
    page.get_by_role("button", name="Pause").click()
    account.publish(f"{shop.endpoint.url}/second")
    go_on = page.get_by_role("button", name=re.compile(r"Go on \(\d+ new\)"))
    expect(go_on).to_be_visible()
    expect(page.locator(".stream")).not_to_contain_text("/second")
    go_on.click()
    expect(page.locator(".stream")).to_contain_text("/second")


def test_the_filter_is_kept_after_a_reload(own: ConsolePage, account: Account, shop: World) -> None:
    page = live(own)
    page.get_by_role("searchbox").fill("two")
    page.reload()
    expect(page.locator(".connection")).to_have_text("live")
    expect(page.get_by_role("searchbox")).to_have_value("two")
    account.publish(f"{shop.endpoint.url}/one")
    account.publish(f"{shop.endpoint.url}/two")
    expect(page.locator(".stream")).to_contain_text("/two")
    expect(page.locator(".stream")).not_to_contain_text("/one")


def test_at_most_500_lines_are_kept_and_what_was_skipped_is_told(
    own: ConsolePage, account: Account, shop: World
) -> None:
    page = live(own)
    batch = [{"destination": f"{shop.endpoint.url}/many", "headers": {"Upstash-Delay": "1d"}} for _ in range(600)]
    account.ask("POST", "/v2/batch", batch)
    expect(page.locator(".stream")).to_contain_text(re.compile(r"\d+ events skipped"))
    assert page.locator(".stream li").count() <= 500


def test_reports_are_shown_on_request_and_after_a_reload(own: ConsolePage, account: Account) -> None:
    nowhere = "http://127.0.0.1:9/qtasks"
    page = live(own)
    page.get_by_role("button", name="with reports").click()
    expect(page).to_have_url(re.compile("reports=true"))
    expect(page.locator(".connection")).to_have_text("live")
    account.publish(f"{nowhere}/_end", Delay="1d", Qtasks_Interrupted_For="1h")
    expect(page.locator(".stream")).to_contain_text("_end")
    page.reload()
    expect(page.get_by_role("button", name="with reports")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="with reports").click()
    expect(page.locator(".connection")).to_have_text("live")
    account.publish(f"{nowhere}/_end", Delay="1d", Qtasks_Interrupted_For="1h")
    account.publish(f"{nowhere}/greet", Delay="1d", Qtasks_Interrupted_For="1h")
    expect(page.locator(".stream")).to_contain_text("greet")
    expect(page.locator(".stream")).not_to_contain_text("_end")
