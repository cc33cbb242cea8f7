"""A page that fails says so, and the rest of the console goes on working."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.support.browsing.browser import ConsolePage

TASKS = "**/console/api/tasks"


@pytest.fixture
def failing(operators: ConsolePage) -> Iterator[Page]:
    """The page of tasks, whose answer has a task that the page cannot show."""
    page = operators.page
    manifest = '{"v": 1, "package": "1.0", "tasks": [{"name": "nodoc"}]}'
    answer = f'{{"dispatchers": [{{"prefix": "http://a/", "manifest": {manifest}, "error": null, "timeMs": 0}}]}}'
    page.route(TASKS, lambda route: route.fulfill(content_type="application/json", body=answer))
    operators.expects("Cannot read properties of undefined")
    operators.open("tasks")
    expect(page.get_by_role("alert")).to_contain_text("This page failed: Cannot read properties of undefined")
    yield page
    page.unroute(TASKS)


def test_a_failed_page_keeps_its_title_and_the_navigation_leads_on(failing: Page) -> None:
    expect(failing.get_by_role("heading", level=1)).to_have_text("Tasks")
    failing.get_by_role("navigation").get_by_role("link", name="Messages").click()
    expect(failing.get_by_role("heading", level=1)).to_have_text("Messages")
    expect(failing.locator("tbody tr").first).to_be_visible()
    expect(failing.get_by_text("This page failed")).to_have_count(0)


def test_a_failed_page_is_tried_again(failing: Page) -> None:
    failing.unroute(TASKS)
    failing.get_by_role("button", name="Try again").click()
    expect(failing.get_by_role("link", name="configure")).to_be_visible()
