"""The console in an application, behind a dependency of the application, over the broker in the same process."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from playwright.sync_api import Browser, expect

from qtasks import QTasks
from qtasks.console import console_router
from qtasks.embedded import Embedded
from tests.support.browsing.browser import ConsolePage, console_page
from tests.support.bundles import behind_uvicorn
from tests.support.running import PATIENCE_S


def admin(request: Request) -> None:
    if request.headers.get("x-user") != "admin":
        raise HTTPException(403)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of the console of an application that has run a task."""
    tasks = QTasks(embedded=Embedded(":memory:"))

    @tasks.task
    def multiply(a: int, b: int) -> int:
        return a * b

    app = FastAPI()
    app.include_router(tasks.router, prefix="/qtasks")
    console = console_router(tasks, user=lambda request: request.headers["x-user"])
    app.include_router(console, prefix="/jobs", dependencies=[Depends(admin)])
    app.include_router(console_router(tasks, read_only=True), prefix="/look")
    with behind_uvicorn(app) as served:
        assert multiply.delay(2, 3).get(timeout=PATIENCE_S) == 6
        yield f"{served.url.removesuffix('/qtasks')}/jobs"


@pytest.fixture(scope="module")
def mounted(browser: Browser, address: str) -> Iterator[ConsolePage]:
    with console_page(browser, address) as page:
        page.page.set_extra_http_headers({"x-user": "admin"})
        yield page
        page.check()


def test_whom_the_application_does_not_let_in_sees_no_console(browser: Browser, address: str) -> None:
    with console_page(browser, address) as stranger:
        stranger.expects("403")
        answer = stranger.page.goto(f"{address}/")
        assert answer is not None
        assert answer.status == 403
        stranger.check()


def test_the_overview_and_a_message_show_what_happened_and_are_live(mounted: ConsolePage) -> None:
    page = mounted.open("overview")
    expect(page.get_by_role("main")).to_contain_text("multiply")
    expect(page.locator(".connection")).to_have_text("live")
    page = mounted.open("messages")
    page.get_by_role("link", name="multiply").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("multiply(2, 3)")
    expect(page.get_by_role("region", name="Result", exact=True)).to_contain_text("6")


def test_a_task_is_run_from_its_form_and_its_result_is_seen(mounted: ConsolePage) -> None:
    page = mounted.open("tasks/multiply")
    page.get_by_label("a int").fill("12345678901234567890")
    page.get_by_label("b int").fill("3")
    page.get_by_role("button", name="Run multiply").click()
    page.get_by_role("main").get_by_role("link", name=re.compile("^msg_")).click()
    expect(page.get_by_role("region", name="Result", exact=True)).to_contain_text("37037036703703703670")


def test_the_audit_names_the_user_whom_the_application_knows(mounted: ConsolePage) -> None:
    page = mounted.open("queues")
    page.get_by_role("button", name="New queue").click()
    page.get_by_role("textbox", name="Name").fill("mail")
    mounted.confirm("Make it")
    row = mounted.open("audit").get_by_role("row").filter(has_text="queue.set")
    expect(row).to_contain_text("admin")
    expect(row).to_contain_text("console")


def test_who_only_looks_sees_everything_and_is_offered_no_change(browser: Browser, address: str) -> None:
    with console_page(browser, address.replace("/jobs", "/look")) as reader:
        page = reader.open("messages")
        page.get_by_role("link", name="multiply").first.click()
        expect(page.get_by_role("region", name="Result", exact=True)).to_be_visible()
        changes = re.compile("^(Run|Retry|Cancel|Edit|Pause|Delete|New|Mute|Rotate|Show the keys)")
        for each in ("messages", "tasks/multiply", "queues", "schedules", "dead-letters", "system"):
            expect(reader.open(each).get_by_role("button", name=changes)).to_have_count(0)
        reader.check()
