"""What a handle of a call can do in addition to waiting: be awaited, show progress, and cancel the call."""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
from datetime import UTC, datetime
from typing import Any

import pytest

from qtasks import Progress, TaskContext, injected
from qtasks.errors import ResultsDisabled, ResultTimeout
from qtasks.tasks.context import RunLink
from qtasks.tasks.progress import PUBLISH_EVERY_S
from tests.unit.tasks.manual_broker import ManualBroker

pytestmark = pytest.mark.anyio


async def test_a_handle_can_be_awaited(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work() -> int:
        return 7

    result = work.delay()
    waiting = asyncio.create_task(wait_for(result))
    await asyncio.sleep(0)
    await broker.deliver()
    assert await waiting == 7


async def wait_for(result: Any) -> object:
    return await result


# --- progress


async def test_a_handle_has_the_fields_that_django_s_has(broker: ManualBroker) -> None:
    @broker.tasks.task(retries=1)
    def work(n: int) -> int:
        if next(runs) == 1:
            raise OSError("away")
        return n

    runs = itertools.count(1)
    result = await work.aenqueue(5)
    assert (result.attempts, result.is_finished, result.error, result.finished_at) == (0, False, None, None)
    with pytest.raises(ResultTimeout, match="it is queued"):
        _ = result.return_value
    message = broker.take()
    await broker.deliver(message)
    assert (result.attempts, result.is_finished, result.error) == (1, False, "OSError: away")
    broker.clock.advance(60_000)
    await broker.deliver(message, retried=1)
    assert (result.attempts, result.is_finished, result.error) == (2, True, None)
    assert result.finished_at == datetime.fromtimestamp(broker.clock.now_ms() / 1000, UTC)
    assert result.return_value == 5
    assert work.enqueue(6).id == broker.take().envelope["id"]


async def test_progress_can_be_read_while_the_task_runs(broker: ManualBroker) -> None:
    reported, go_on = threading.Event(), threading.Event()

    @broker.tasks.task
    def work(ctx: TaskContext = injected) -> None:
        ctx.progress(1, 4, "reading")
        reported.set()
        assert go_on.wait(10)

    result = work.delay()
    assert result.progress is None
    running = asyncio.create_task(broker.deliver())
    await asyncio.to_thread(reported.wait, 10)
    progress = await result.aprogress()
    assert progress == Progress(1, 4, "reading")
    assert progress.fraction == 0.25
    assert result.status == "running"
    go_on.set()
    await running
    assert result.status == "succeeded"
    assert await result.aprogress() == progress


async def test_an_async_task_reports_its_progress_in_a_file_too(tmp_path: Any) -> None:
    broker = ManualBroker(results=f"sqlite:///{tmp_path}/r.db")
    reported, go_on = asyncio.Event(), asyncio.Event()

    @broker.tasks.task
    async def work(ctx: TaskContext = injected) -> None:
        ctx.progress(3)
        reported.set()
        await go_on.wait()

    result = work.delay()
    running = asyncio.create_task(broker.deliver())
    await reported.wait()
    async with asyncio.timeout(10):
        while (progress := await result.aprogress()) is None:  # noqa: ASYNC110 - another thread writes it
            await asyncio.sleep(0.001)
    assert progress == Progress(3)
    assert progress.fraction is None
    go_on.set()
    await running
    broker.close()


def test_news_that_come_too_fast_are_left_out_but_the_last_one_is_not() -> None:
    kept: list[Progress] = []
    now_s = 0.0
    link = RunLink(monotonic=lambda: now_s)
    link.publish = lambda: kept.append(Progress.from_json(link.progress or ""))
    for done in range(1, 101):
        now_s += PUBLISH_EVERY_S / 10
        link.report(Progress(done, 100))
    assert 9 <= len(kept) <= 12
    assert kept[0].done == 1
    assert kept[-1].done == 100


async def test_without_a_place_for_results_progress_costs_nothing() -> None:
    context = TaskContext(task="t", call_id="c", message_id="m", attempt=1, retries=0)
    context.progress(1, 2, "by hand")
    with pytest.raises(ValueError, match="finite"):
        context.progress(math.nan)
    assert Progress(1, 0).fraction == 1.0
    assert Progress(9, 3).fraction == 1.0


async def test_without_a_backend_every_accessor_names_the_setting() -> None:
    from tests.support.tasks import application

    tasks = application(results=None)

    @tasks.task
    def work() -> int:
        return 1

    result = work.result("call_1")
    for name in ("progress", "status", "is_finished", "attempts", "error", "finished_at", "return_value"):
        with pytest.raises(ResultsDisabled, match="QTASKS_RESULTS"):
            getattr(result, name)
    with pytest.raises(ResultsDisabled, match="QTASKS_RESULTS"):
        result.get()
    with pytest.raises(ResultsDisabled, match="QTASKS_RESULTS"):
        await result
