"""The page of changes, and pauses with a note: who, since when, why, as text."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.support.browsing.browser import ConsolePage
from tests.support.browsing.world import Account, World

NOTE = "provider <b>down</b> — see #42"


def test_a_queue_is_paused_with_a_note_that_the_audit_keeps(own: ConsolePage, account: Account) -> None:
    account.ask("POST", "/v2/queues", {"queueName": "mail"})
    page = own.open("queues")
    page.get_by_role("button", name="Pause mail").click()
    page.get_by_role("textbox", name="Note").fill(NOTE)
    own.confirm("Pause")
    row = page.get_by_role("row").filter(has_text="mail")
    expect(row).to_contain_text("by ")
    expect(row).to_contain_text(NOTE)
    page = own.open("audit")
    rows = page.get_by_role("table", name="Changes").locator("tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("queue.pause")
    expect(rows.first).to_contain_text(NOTE)
    expect(rows.first).to_contain_text("console")
    page.get_by_role("searchbox").fill("QUEUE.SET")
    expect(rows).to_have_count(1)
    expect(rows.first).to_contain_text("api")
    page = own.open("queues")
    page.get_by_role("button", name="Resume mail").click()
    own.confirm("Resume")
    expect(page.get_by_text(NOTE)).to_have_count(0)


def test_a_schedule_shows_why_it_is_paused(own: ConsolePage, account: Account, shop: World) -> None:
    schedule = account.schedule(shop.endpoint.url, "0 9 * * *")
    page = own.open(f"schedules/{schedule}")
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("textbox", name="Note").fill(NOTE)
    own.confirm("Pause")
    expect(page.get_by_role("region", name="Next runs")).to_contain_text(NOTE)
    expect(own.open("schedules").get_by_role("row").filter(has_text=schedule)).to_contain_text(NOTE)


def test_the_empty_audit_says_what_it_lists(own: ConsolePage) -> None:
    expect(own.open("audit").get_by_text("Nothing was changed yet.")).to_be_visible()
