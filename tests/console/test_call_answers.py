"""The result of a call and the flow around it, on the page of its message."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from qtasks import NonRetryable, TaskContext, chain, group, injected
from qtasks.broker.api.auth import Principal, TokenScope
from tests.support.browsing.browser import HEIGHT, NARROW, ConsolePage
from tests.support.browsing.world import OPERATOR, World
from tests.support.running import PATIENCE_S

METADATA = "token-without-payloads"


@dataclass
class Copying:
    """What the task `copy_files` waits for before each of its steps."""

    may_go_on: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def step(self) -> None:
        assert self.may_go_on.acquire(timeout=2 * PATIENCE_S)


@pytest.fixture(scope="module")
def copying(shop: World) -> Copying:
    """The tasks of these tests are served like all others; the step of one of them is made by its test."""
    copying = Copying()

    @shop.tasks.task
    def buy(number: int) -> dict[str, Any]:
        return {"order": number, "api_key": "sesame", "note": "<img src=x onerror=alert(1)>"}

    @shop.tasks.task(retries=0)
    def reject(number: int) -> None:
        raise NonRetryable("this order was never paid")

    @shop.tasks.task
    def count_orders(orders: Any) -> int:
        return len(orders)

    @shop.tasks.task
    def copy_files(ctx: TaskContext = injected) -> str:
        for done in range(1, 4):
            ctx.progress(done, 4, f"file {done}")
            copying.step()
        return "copied"

    account = next(iter(shop.broker.broker.accounts.values()))
    shop.broker.broker.tokens.add(METADATA, Principal(account, TokenScope.METADATA))
    return copying


@pytest.fixture
def signed_in(console: ConsolePage, copying: Copying) -> ConsolePage:
    console.sign_in(OPERATOR)
    return console


def panel(page: Page, title: str) -> Locator:
    return page.get_by_role("region", name=title, exact=True)


def test_what_a_task_returned_is_shown_as_text_with_every_digit_and_no_secret(
    signed_in: ConsolePage, shop: World
) -> None:
    call = shop.tasks.tasks["buy"].delay(12345678901234567890)
    call.get(timeout=PATIENCE_S)
    result = panel(signed_in.open(f"messages/{call.id}"), "Result")
    expect(result).to_contain_text("12345678901234567890")
    expect(result).to_contain_text('api_key: "***"')
    expect(result).to_contain_text("<img src=x onerror=alert(1)>")
    expect(result).to_contain_text("succeeded, attempt 1")


def test_the_progress_of_a_call_moves_and_becomes_its_result_without_a_reload(
    signed_in: ConsolePage, shop: World, copying: Copying
) -> None:
    call = shop.tasks.tasks["copy_files"].delay()
    result = panel(signed_in.open(f"messages/{call.id}"), "Result")
    expect(result).to_contain_text("1 of 4 (25 %)")
    copying.may_go_on.release()
    expect(result).to_contain_text("2 of 4 (50 %)")
    expect(result.get_by_role("progressbar", name="Progress")).to_have_attribute("value", "2")
    copying.may_go_on.release(2)
    expect(result).to_contain_text('"copied"')
    expect(result.get_by_role("progressbar")).to_have_count(0)


def test_a_flow_is_a_tree_whose_steps_are_links_to_their_messages(
    signed_in: ConsolePage, shop: World, axe: str
) -> None:
    task = shop.tasks.tasks
    handle = chain(task["buy"].s(1), group(task["buy"].si(2), task["reject"].si(3)), task["count_orders"].s()).delay()
    assert handle.parent.wait(timeout=PATIENCE_S)
    rejected = handle.parent.calls[1]
    page = signed_in.open(f"messages/{rejected.id}")
    flow = panel(page, "Flow")
    expect(flow.locator("header")).to_contain_text("2 of 4 calls delivered")
    expect(flow.locator("[aria-current=step]")).to_contain_text("reject this call")
    expect(flow.locator("li").last).to_contain_text("failed count_orders without a message")
    expect(panel(page, "Result")).to_contain_text("NonRetryable: this order was never paid")
    page.set_viewport_size({"width": NARROW, "height": HEIGHT})
    assert signed_in.overflow == 0
    page.evaluate(axe)
    assert page.evaluate("axe.run().then(({ violations }) => violations.map(({ id }) => id))") == []
    flow.get_by_role("link", name="buy").last.click()
    expect(flow.locator("[aria-current=step]")).to_contain_text("buy this call")
    expect(page).to_have_url(re.compile(handle.parent.calls[0].id))


def test_a_step_that_is_sent_while_somebody_looks_gets_its_link(
    signed_in: ConsolePage, shop: World, copying: Copying
) -> None:
    task = shop.tasks.tasks
    handle = chain(task["copy_files"].s(), task["buy"].si(5)).delay()
    flow = panel(signed_in.open(f"messages/{handle.parent.id}"), "Flow")
    expect(flow.locator("li").last).to_contain_text("not sent yet buy")
    copying.may_go_on.release(3)
    expect(flow.locator("li").last.get_by_role("link", name="buy")).to_be_visible()
    expect(flow.locator("header")).to_contain_text("2 of 2 calls delivered")


def test_a_long_group_is_a_few_members_and_how_many_more(signed_in: ConsolePage, shop: World) -> None:
    task = shop.tasks.tasks
    handle = chain(group(task["buy"].s(number) for number in range(60)), task["count_orders"].s())
    started = handle.using(delay="1h").delay()
    flow = panel(signed_in.open(f"messages/{started.parent.calls[30].id}"), "Flow")
    members = flow.locator("ul > li")
    expect(members).to_have_count(8)
    expect(members.nth(5)).to_have_text("25 more waiting")
    expect(members.nth(6)).to_contain_text("buy this call")
    expect(members.nth(7)).to_have_text("29 more waiting")


def test_a_viewer_without_payloads_sees_the_states_and_no_result(
    console: ConsolePage, shop: World, copying: Copying
) -> None:
    task = shop.tasks.tasks
    handle = chain(task["buy"].s(77), task["count_orders"].s()).delay()
    assert handle.get(timeout=PATIENCE_S) == 3
    console.sign_in(METADATA)
    page = console.open(f"messages/{handle.id}")
    expect(panel(page, "Flow").locator("header")).to_contain_text("2 of 2 calls delivered")
    expect(panel(page, "Result")).to_contain_text("Your token does not show contents.")
    expect(panel(page, "Result")).to_contain_text("succeeded")
