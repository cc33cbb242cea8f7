"""The console below a path of another server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.support.browsing.browser import ConsolePage, console_page
from tests.support.browsing.sub_path import below
from tests.support.browsing.world import Account, World


@pytest.fixture
def proxied(browser: Browser, shop: World) -> Iterator[ConsolePage]:
    with below("/ops/queue", shop.url) as url, console_page(browser, url) as page:
        yield page
        page.check()


def test_it_works_below_a_path(proxied: ConsolePage, account: Account, shop: World) -> None:
    page = proxied.open("queues")
    page.get_by_label("Token").fill(account.token)
    page.keyboard.press("Enter")
    expect(page.get_by_text("No queues.")).to_be_visible()
    page.get_by_role("button", name="New queue").click()
    page.get_by_role("textbox", name="Name").fill("mail")
    proxied.confirm("Make it")
    assert account.ask("GET", "/v2/queues/mail")["parallelism"] == 1
    page.get_by_role("link", name="Live stream").click()
    expect(page.locator(".connection")).to_have_text("live")
    account.publish(f"{shop.endpoint.url}/welcome")
    expect(page.locator(".stream")).to_contain_text("/welcome")
