"""The page of endpoints: applications that answer, and applications that refuse."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.support.browsing.browser import ConsolePage
from tests.support.browsing.world import Account


def test_an_application_shows_its_last_answer_its_figures_and_its_version(operators: ConsolePage) -> None:
    page = operators.open("endpoints")
    row = page.get_by_role("row").filter(has_text="/qtasks/")
    expect(row).to_contain_text("✓ takes deliveries")
    expect(row).to_contain_text(re.compile(r"(delivered|answered \d{3}) "))
    expect(row).to_contain_text(re.compile(r"qtasks [\d.]+, Python [\d.]+, \d+ tasks"))
    expect(row).to_contain_text(re.compile(r"\d+ free slots?"))
    expect(row).to_contain_text(re.compile(r"\d m?s95 %: "))
    row.get_by_role("link").click()
    expect(page).to_have_url(re.compile("#/messages[?]filter=url"))
    expect(page.locator("tbody tr").first).to_be_visible()


def test_an_application_that_refuses_says_since_when_and_why(own: ConsolePage, account: Account) -> None:
    account.publish("http://127.0.0.1:9/qtasks/add", Qtasks_Interrupted_For="1h")
    page = own.open("endpoints")
    row = page.get_by_role("row").filter(has_text="127.0.0.1:9/qtasks/")
    expect(row).to_contain_text(re.compile("✗ refuses since .*, next try "))
    expect(row).to_contain_text(re.compile("no answer .*connection refused"))
