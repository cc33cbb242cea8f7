"""URL groups: endpoints are added and removed at the broker."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.support.browsing.browser import ConsolePage
from tests.support.browsing.world import Account


def urls(account: Account) -> dict[str, list[str]]:
    return {group["name"]: [each["url"] for each in group["endpoints"]] for group in account.ask("GET", "/v2/topics")}


def test_a_group_is_made_grows_shrinks_and_goes(own: ConsolePage, account: Account) -> None:
    page = own.open("url-groups")
    page.get_by_role("button", name="New group").click()
    page.get_by_role("textbox", name="Name of the group").fill("orders")
    page.get_by_role("textbox", name="URL", exact=True).fill("http://127.0.0.1:1/a")
    own.confirm("Add")
    page.get_by_role("button", name="Add endpoint to orders").click()
    page.get_by_role("textbox", name="URL", exact=True).fill("http://127.0.0.1:1/b")
    page.get_by_role("textbox", name="Name of the endpoint").fill("second")
    own.confirm("Add")
    rows = page.get_by_role("region", name="orders", exact=True).locator("tbody tr")
    expect(rows).to_have_count(2)
    assert urls(account) == {"orders": ["http://127.0.0.1:1/a", "http://127.0.0.1:1/b"]}
    page.get_by_role("button", name="Remove http://127.0.0.1:1/a from orders").click()
    own.confirm("Remove")
    expect(rows).to_have_count(1)
    assert urls(account) == {"orders": ["http://127.0.0.1:1/b"]}
    page.get_by_role("button", name="Remove http://127.0.0.1:1/b from orders").click()
    expect(page.get_by_role("dialog")).to_contain_text("the group goes with it")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Delete orders").click()
    own.delete("Delete")
    expect(page.get_by_text("No URL groups.")).to_be_visible()
    assert urls(account) == {}


def test_an_address_that_the_broker_refuses_is_explained(own: ConsolePage, account: Account) -> None:
    own.expects("400")
    page = own.open("url-groups")
    page.get_by_role("button", name="New group").click()
    page.get_by_role("textbox", name="Name of the group").fill("orders")
    page.get_by_role("textbox", name="URL", exact=True).fill("javascript:alert(1)")
    page.get_by_role("dialog").get_by_role("button", name="Add").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_be_visible()
    assert urls(account) == {}
