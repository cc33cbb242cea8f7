"""The end of a process during a run: the call is handed back as if its attempt had not begun."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends

from qtasks import NonRetryable, Snooze, TaskContext, injected
from qtasks.tasks.results.backend import ResultStatus
from qtasks.tasks.run.decision import DispatchResponse
from tests.support.tasks import deliver
from tests.unit.tasks.manual_broker import ManualBroker, SentMessage, json_of

pytestmark = pytest.mark.anyio

PATIENCE_S = 10.0


@pytest.fixture(params=["memory", "sqlite"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ManualBroker]:
    made = ManualBroker(results="memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/r.db")
    yield made
    made.close()


class Endless:
    """A task without retries that runs until it is cancelled. Its `ending` is what it does then."""

    def __init__(self, broker: ManualBroker, **options: Any) -> None:
        self.begun = asyncio.Event()
        self.is_endless = True
        self.hooks: list[str] = []
        self.ending: BaseException | str | None = None

        async def endless(n: int = 1) -> str:
            if not self.is_endless:
                return "done"
            self.begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if isinstance(self.ending, str):
                    return self.ending
                if self.ending is not None:
                    raise self.ending from None
                raise
            raise AssertionError

        self.task = broker.tasks.task(**{"retries": 0, **options})(endless)
        for name in ("on_success", "on_retry", "on_failure"):
            getattr(broker.tasks, name)(lambda event, name=name: self.hooks.append(name))

    @asynccontextmanager
    async def under_way(
        self, broker: ManualBroker, message: SentMessage
    ) -> AsyncIterator[asyncio.Task[DispatchResponse]]:
        """Deliver `message`, and wait until it runs."""
        running = asyncio.create_task(broker.deliver(message))
        await self.begun.wait()
        yield running
        assert running.done()


def interruption(answer: DispatchResponse) -> str | None:
    """Why a response ends no attempt; None if it ends one."""
    return dict(answer.headers).get("Qtasks-Interrupted")


def restarted(broker: ManualBroker) -> ManualBroker:
    """The next process: everything that the application has opened is opened again, except the stored results."""
    broker.tasks.runtime._dispatcher = None
    return broker


async def test_an_async_run_is_cancelled_at_the_end_of_the_drain_and_runs_again_as_if_it_had_not(
    broker: ManualBroker,
) -> None:
    endless = Endless(broker)
    result = endless.task.delay()
    message = broker.take()
    async with endless.under_way(broker, message) as running:
        assert await broker.tasks.runtime.dispatcher().drain(0) is False
    answer = await running
    assert (answer.status, interruption(answer), json_of(answer)["code"]) == (503, "draining", "QT408")
    assert result.status is ResultStatus.QUEUED
    assert endless.hooks == []
    endless.is_endless = False
    assert (await restarted(broker).deliver(message)).body == b'"done"', "its lease is released, so it runs at once"
    assert endless.hooks == ["on_success"]


async def test_a_def_is_told_to_stop_and_its_delivery_is_answered_while_its_thread_still_runs(
    broker: ManualBroker,
) -> None:
    begun, may_end, told = threading.Event(), threading.Event(), threading.Event()

    @broker.tasks.task(retries=0)
    def blocking(ctx: TaskContext = injected) -> str:
        begun.set()
        assert may_end.wait(PATIENCE_S)
        if ctx.should_stop:
            told.set()
        return "late"

    result = blocking.delay()
    running = asyncio.create_task(broker.deliver())
    await asyncio.to_thread(begun.wait, PATIENCE_S)
    try:
        assert await broker.tasks.runtime.dispatcher().drain(0) is False
        assert interruption(await running) == "draining"
        assert result.status is ResultStatus.QUEUED
    finally:
        may_end.set()
    assert await asyncio.to_thread(told.wait, PATIENCE_S)


async def test_dependencies_close_before_a_run_is_handed_back(broker: ManualBroker) -> None:
    steps: list[str] = []
    begun = asyncio.Event()

    async def session() -> AsyncIterator[str]:
        try:
            yield "session"
        finally:
            steps.append("closed")

    @broker.tasks.task(retries=0)
    async def work(session: str = Depends(session)) -> None:
        begun.set()
        await asyncio.Event().wait()

    work.delay()
    message = broker.take()
    running = asyncio.create_task(deliver(broker.tasks.asgi_app(), "work", message.body))
    await begun.wait()
    assert await broker.tasks.runtime.dispatcher().drain(0) is False
    answer = await running
    assert (answer.status, answer.headers["qtasks-interrupted"], steps) == (503, "draining", ["closed"])


async def test_a_delivery_that_waits_for_another_run_of_its_call_is_answered_as_well(broker: ManualBroker) -> None:
    endless = Endless(broker)
    endless.task.delay()
    message = broker.take()
    async with endless.under_way(broker, message) as running:
        waiting = asyncio.create_task(broker.deliver(message))
        await asyncio.sleep(0)
        assert await broker.tasks.runtime.dispatcher().drain(0) is False
        assert {interruption(await running), interruption(await waiting)} == {"draining"}


async def test_a_unique_key_stays_with_a_call_that_is_handed_back(broker: ManualBroker) -> None:
    endless = Endless(broker, unique="n")
    first = endless.task.delay(1)
    async with endless.under_way(broker, broker.take()):
        await broker.tasks.runtime.dispatcher().drain(0)
    assert endless.task.delay(1).id == first.id
    assert broker.messages == []


async def test_a_flow_goes_on_when_its_call_has_run_again(broker: ManualBroker) -> None:
    endless = Endless(broker)
    flow = (endless.task.s() | endless.task.s()).delay()
    message = broker.take()
    async with endless.under_way(broker, message):
        await broker.tasks.runtime.dispatcher().drain(0)
    assert flow.status is ResultStatus.QUEUED
    endless.is_endless = False
    await restarted(broker).deliver(message)
    assert broker.take().task == "endless"


async def test_a_run_that_ends_by_itself_when_it_is_stopped_counts(broker: ManualBroker) -> None:
    endless = Endless(broker)
    result = endless.task.delay()
    endless.ending = "ended by itself"
    async with endless.under_way(broker, broker.take()) as running:
        assert await broker.tasks.runtime.dispatcher().drain(0) is False
    assert (await running).body == b'"ended by itself"'
    assert result.status is ResultStatus.SUCCEEDED


@pytest.mark.parametrize(("error", "status"), [(NonRetryable("never"), 489), (Snooze("1m"), 200)])
async def test_what_a_stopped_run_asks_for_is_done(broker: ManualBroker, error: Exception, status: int) -> None:
    endless = Endless(broker)
    endless.task.delay()
    endless.ending = error
    async with endless.under_way(broker, broker.take()) as running:
        await broker.tasks.runtime.dispatcher().drain(0)
    assert (await running).status == status


async def test_an_error_on_the_way_out_of_a_stopped_run_is_not_charged(broker: ManualBroker) -> None:
    endless = Endless(broker)
    endless.task.delay()
    endless.ending = OSError("the connection was in use")
    async with endless.under_way(broker, broker.take()) as running:
        await broker.tasks.runtime.dispatcher().drain(0)
    assert interruption(await running) == "draining"


# --- a server that cancels requests


async def test_a_request_that_the_server_cancels_at_its_end_is_answered_nevertheless(broker: ManualBroker) -> None:
    endless = Endless(broker)
    result = endless.task.delay()
    running = asyncio.create_task(deliver(broker.tasks.asgi_app(), "endless", broker.take().body))
    await endless.begun.wait()
    running.cancel("Task cancelled, timeout graceful shutdown exceeded")  # the words of uvicorn
    answer = await running
    assert (answer.status, answer.headers["qtasks-interrupted"]) == (503, "draining")
    assert result.status is ResultStatus.QUEUED


async def test_a_request_that_somebody_else_cancels_is_not_answered_but_its_call_is_free(broker: ManualBroker) -> None:
    endless = Endless(broker)
    result = endless.task.delay()
    message = broker.take()
    running = asyncio.create_task(deliver(broker.tasks.asgi_app(), "endless", message.body))
    await endless.begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert result.status is ResultStatus.QUEUED
    endless.is_endless = False
    assert (await broker.deliver(message)).body == b'"done"'
