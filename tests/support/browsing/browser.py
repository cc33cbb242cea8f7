"""A real Chromium, and pages of it on which nothing goes wrong unnoticed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from tests.support.programs import program
from tests.support.running import PATIENCE_S

EXECUTABLES = ("chromium", "chromium-browser", "google-chrome")
WIDE, NARROW, HEIGHT = 1280, 400, 900
"""Sizes of the window in pixels."""

expect.set_options(timeout=PATIENCE_S * 1000)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser of this machine, without a window."""
    path = program(*EXECUTABLES)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


class ConsolePage:
    """A page of the console at `url`. `check` fails for each error, each blocked script and each request elsewhere."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url.rstrip("/")
        self.problems: list[str] = []
        self._expected: list[str] = []
        page.set_default_timeout(PATIENCE_S * 1000)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("dialog", self._on_dialog)
        page.on("request", self._on_request)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"{message.type}: {message.text} ({message.location.get('url', '')})")

    def _on_dialog(self, dialog: Any) -> None:
        self.problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith((f"{self.url}/", "data:")):
            self.problems.append(f"request to another place: {request.url}")

    def reset(self) -> None:
        """Forget who was signed in, what was shown and what went wrong."""
        self.page.goto("about:blank")
        self.page.context.clear_cookies()
        self.page.emulate_media(color_scheme="light")
        self.page.set_viewport_size({"width": WIDE, "height": HEIGHT})
        self.problems.clear()
        self._expected.clear()

    def expects(self, pattern: str) -> None:
        """Problems that match `pattern` are what the test is about."""
        self._expected.append(pattern)

    def check(self) -> None:
        unexpected = [text for text in self.problems if not any(re.search(each, text) for each in self._expected)]
        assert not unexpected, "\n".join(unexpected)

    def sign_in(self, token: str) -> None:
        """Sign in without the form: the session of the token becomes that of the browser."""
        answer = self.page.request.post(
            f"{self.url}/console/api/session", data={"token": token}, headers={"Origin": self.url}
        )
        assert answer.status == 200, answer.text()

    def open(self, address: str = "overview") -> Page:
        """Open a page by what stands behind ``#/`` in its address, and wait until it shows what it loads."""
        self.page.goto(f"{self.url}/#/{address}")
        self.settled()
        return self.page

    def delete(self, label: str) -> None:
        """Press the button of a deletion in the question that is shown, and do not wait for its undo to expire."""
        self.confirm(label)
        self.page.get_by_role("button", name="Delete now").click()
        expect(self.page.get_by_role("button", name="Undo")).to_have_count(0)

    def settled(self) -> None:
        """Wait until the page has its title, and nothing is loading any more."""
        expect(self.page.locator("main h1")).to_have_count(1)
        expect(self.page.locator(".loading")).to_have_count(0)

    def confirm(self, label: str) -> None:
        """Press the button of the question that is shown, and wait until it has gone."""
        self.page.get_by_role("dialog").get_by_role("button", name=label, exact=True).click()
        expect(self.page.get_by_role("dialog")).to_have_count(0)

    @property
    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


@contextmanager
def console_page(browser: Browser, url: str) -> Iterator[ConsolePage]:
    """A page with cookies and storage of its own."""
    context = browser.new_context(
        viewport={"width": WIDE, "height": HEIGHT}, timezone_id="America/New_York", locale="en-GB"
    )
    try:
        yield ConsolePage(context.new_page(), url)
    finally:
        context.close()
