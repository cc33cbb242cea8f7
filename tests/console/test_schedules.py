"""The page of schedules: what it tells, and what its buttons do at the broker."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.support.browsing.browser import ConsolePage
from tests.support.browsing.world import Account, World


def schedule_of(account: Account, schedule_id: str) -> dict[str, object]:
    schedule: dict[str, object] = account.ask("GET", f"/v2/schedules/{schedule_id}")
    return schedule


def made(own: ConsolePage, shop: World, account: Account) -> tuple[Page, str]:
    """The page of schedules of an account with a schedule."""
    schedule_id = account.schedule(f"{shop.endpoint.url}/report", "CRON_TZ=Europe/Berlin 0 9 * * MON-FRI")
    return own.open("schedules"), schedule_id


def test_a_schedule_is_told_in_english_with_its_next_runs_in_both_zones(
    own: ConsolePage, shop: World, account: Account
) -> None:
    page, schedule_id = made(own, shop, account)
    row = page.get_by_role("row").filter(has_text=schedule_id)
    expect(row).to_contain_text("09:00")
    expect(row).to_contain_text("Europe/Berlin")
    expect(row).to_contain_text("none yet")
    row.get_by_role("link").first.click()
    runs = page.get_by_role("region", name="Next runs", exact=True).get_by_role("table").get_by_role("row")
    expect(runs).to_have_count(6)
    expect(runs.nth(0)).to_contain_text("America/New_York")
    for number in range(1, 6):
        expect(runs.nth(number)).to_contain_text(re.compile(r"\w{3} 20\d\d-\d\d-\d\d 09:00.* 0[234]:00"))
    expect(page.get_by_role("region", name="What it sends")).to_contain_text("12345678901234567890")


def test_run_now_asks_once_and_sends_one_message(own: ConsolePage, shop: World, account: Account) -> None:
    page, schedule_id = made(own, shop, account)
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("dialog")).to_contain_text(f"{shop.endpoint.url}/report")
    own.confirm("Run now")
    link = page.get_by_role("status").get_by_role("link")
    message_id = link.inner_text()
    logged = account.ask("GET", f"/v2/logs?messageId={message_id}")["logs"]
    assert {entry["scheduleId"] for entry in logged} == {schedule_id}
    link.click()
    expect(page).to_have_url(re.compile(f"#/messages/{message_id}$"))


def test_pause_and_resume(own: ConsolePage, shop: World, account: Account) -> None:
    page, schedule_id = made(own, shop, account)
    page.get_by_role("button", name="Pause").click()
    own.confirm("Pause")
    expect(page.get_by_role("row").filter(has_text=schedule_id)).to_contain_text("paused")
    assert schedule_of(account, schedule_id)["isPaused"] is True
    page.get_by_role("button", name="Resume").click()
    own.confirm("Resume")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    assert schedule_of(account, schedule_id)["isPaused"] is False


def test_delete_says_what_goes_and_goes_back_to_the_list(own: ConsolePage, shop: World, account: Account) -> None:
    page, schedule_id = made(own, shop, account)
    page.get_by_role("row").filter(has_text=schedule_id).get_by_role("link").first.click()
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("dialog")).to_contain_text("undo it for ten seconds")
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert schedule_of(account, schedule_id)["scheduleId"] == schedule_id
    page.get_by_role("button", name="Delete").click()
    own.delete("Delete")
    expect(page.get_by_text("No schedules.")).to_be_visible()
    assert account.ask("GET", "/v2/schedules") == []


def test_the_filter_is_kept_after_a_reload(own: ConsolePage, shop: World, account: Account) -> None:
    account.schedule(f"{shop.endpoint.url}/other", "0 0 1 * *")
    page, _ = made(own, shop, account)
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(2)
    page.get_by_role("searchbox").fill("berlin REPORT")
    expect(rows).to_have_count(1)
    page.reload()
    expect(rows).to_have_count(1)
    expect(page.get_by_role("searchbox")).to_have_value("berlin REPORT")
    page.get_by_role("searchbox").fill("nothing like it")
    expect(page.get_by_text("Nothing here contains the filter.")).to_be_visible()
