"""The guide of progress: its web page, opened in a browser, shows how far the task is and then its result."""

from __future__ import annotations

import threading
from typing import Any

from fastapi.responses import HTMLResponse
from playwright.sync_api import expect

from tests.support import page_code
from tests.support.browsing.browser import chromium
from tests.support.bundles import behind_uvicorn
from tests.support.running import PATIENCE_S

PAGE = (page_code.DOCS / "guides" / "progress.md").read_text(encoding="utf-8")
REPORT = '        ctx.progress(row + 1, count, f"row {row + 1}")\n'


def test_the_web_page_of_the_guide_shows_progress_and_then_the_result() -> None:
    go_on = threading.Event()
    application, before, _ = page_code.script(PAGE).partition("from fastapi.testclient")
    assert before
    assert REPORT in application
    # As in the guide, but the call of the page waits after its first report until the page has shown it.
    waiting = application.replace(REPORT, f"{REPORT}        go_on.wait(PATIENCE_S)\n")
    names: dict[str, Any] = {"go_on": go_on, "PATIENCE_S": PATIENCE_S}
    go_on.set()
    exec(compile(waiting, "progress.md", "exec", dont_inherit=True), names)
    go_on.clear()
    app, (html,) = names["app"], page_code.blocks(PAGE, "html")
    app.get("/", response_class=HTMLResponse)(lambda: html)
    with behind_uvicorn(app) as served, chromium() as browser:
        page = browser.new_page()
        page.goto(served.url.removesuffix("qtasks"))
        bar = page.locator("#bar")
        expect(bar).to_have_js_property("value", 1 / 300)
        go_on.set()
        expect(page.locator("#result")).to_have_text("300")
