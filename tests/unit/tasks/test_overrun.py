"""A `def` that does not end within its time: the attempt has failed for everybody, and its thread is left alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends

from qtasks import Embedded, QTasks, TaskContext, TaskEvent, injected
from qtasks.broker.events import MessageEvent
from qtasks.errors import TaskFailed
from qtasks.protocol.messages import State
from qtasks.tasks.run.run import Run
from qtasks.tasks.run.run_middleware import CallNext
from tests.unit.tasks.manual_broker import ManualBroker, json_of

PATIENCE_S = 20.0
SHORT = timedelta(milliseconds=100)
"""Long enough for a thread to begin on a busy machine."""


@pytest.fixture(params=["memory", "sqlite"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ManualBroker]:
    made = ManualBroker(results="memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/r.db")
    yield made
    made.close()


class StuckTask:
    """A task in a thread that ends when a test lets it, with middleware around it or alone."""

    def __init__(self, broker: ManualBroker, *, is_alone: bool = False, **options: Any) -> None:
        self.may_end = threading.Event()
        self.steps: list[str] = []
        self.contexts: list[TaskContext] = []
        self.error: Exception | None = None
        self.returned: Callable[[], Any] = lambda: len(self.contexts)
        broker.tasks.runtime.clock = broker.clock  # its monotonic time stands still, so texts do not vary

        async def around(run: Run, call_next: CallNext) -> Any:
            try:
                return await call_next(run)
            finally:
                self.steps.append("around")

        if not is_alone:
            broker.tasks.run_middleware(around)

        def stuck(ctx: TaskContext = injected) -> Any:
            self.contexts.append(ctx)
            self.may_end.wait(PATIENCE_S)
            self.steps.append("thread")
            if self.error is not None:
                raise self.error
            return self.returned()

        self.task = broker.tasks.task(timeout=SHORT, **options)(stuck)

    async def end(self) -> None:
        """Let the thread end, and what is around it, and give the callbacks of that end their turns of the loop."""
        self.may_end.set()
        overrun = self.contexts[0].link.thread.overrun
        assert overrun is not None
        await asyncio.wait([overrun], timeout=PATIENCE_S)
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.mark.anyio
@pytest.mark.parametrize("is_alone", [False, True])
async def test_without_retries_it_has_failed_and_what_it_returns_later_changes_nothing(
    broker: ManualBroker, caplog: pytest.LogCaptureFixture, is_alone: bool
) -> None:
    stuck, told = StuckTask(broker, is_alone=is_alone, retries=0), []

    @stuck.task.on_failure
    async def tell(event: TaskEvent) -> None:
        told.append(event.reason)

    result = stuck.task.delay()
    answer = await broker.deliver()
    text = (
        "AttemptTimeout: stuck did not end within 0.095 s, its time for one attempt; "
        "its thread runs on, its result is dropped"
    )
    assert (answer.status, json_of(answer)) == (500, {"error": text, "code": "QT410"})
    assert stuck.steps == []
    broker.clock.advance(100)
    assert stuck.contexts[0].should_stop
    assert (result.status, result.error) == ("failed", text)
    await stuck.end()
    assert stuck.steps == (["thread"] if is_alone else ["thread", "around"])
    assert "after its time was up; its result is dropped" in caplog.text
    assert (result.status, result.error, told) == ("failed", text, [text])
    with pytest.raises(TaskFailed):
        await result.aget(timeout=PATIENCE_S)


@pytest.mark.anyio
@pytest.mark.parametrize("is_alone", [False, True])
async def test_no_second_run_begins_beside_it(broker: ManualBroker, is_alone: bool) -> None:
    stuck = StuckTask(broker, is_alone=is_alone, retries=3)
    stuck.task.delay()
    message = broker.take()
    assert (await broker.deliver(message)).status == 500
    again = await broker.deliver(message, retried=1)
    assert (again.status, json_of(again)["code"]) == (503, "QT415")
    assert len(stuck.contexts) == 1
    await stuck.end()
    last = await broker.deliver(message, retried=3)  # it waits for the end of the lease
    assert (last.status, last.body) == (200, b"2")


@pytest.mark.anyio
async def test_what_it_raises_later_is_in_the_log(broker: ManualBroker, caplog: pytest.LogCaptureFixture) -> None:
    stuck = StuckTask(broker, retries=0)
    stuck.error = OSError("no")
    result = stuck.task.delay()
    await broker.deliver()
    await stuck.end()
    assert "what it raised (OSError) is dropped" in caplog.text
    assert "AttemptTimeout" in str(result.error)


@pytest.mark.anyio
@pytest.mark.parametrize("is_alone", [False, True])
async def test_a_coroutine_that_it_returns_later_is_not_run(
    broker: ManualBroker, caplog: pytest.LogCaptureFixture, is_alone: bool
) -> None:
    ran: list[str] = []

    async def late() -> None:
        ran.append("late")

    stuck = StuckTask(broker, is_alone=is_alone, retries=0)
    stuck.returned = late
    stuck.task.delay()
    assert (await broker.deliver()).status == 500
    await stuck.end()
    assert ran == []
    assert "after its time was up; its result is dropped" in caplog.text


@pytest.mark.anyio
@pytest.mark.parametrize("is_alone", [False, True])
async def test_a_call_that_no_thread_was_free_for_never_begins(is_alone: bool) -> None:
    broker = ManualBroker(threads=1)
    stuck = StuckTask(broker, is_alone=is_alone, retries=0)
    stuck.task.delay()
    await broker.deliver()
    result = stuck.task.delay()
    answer = await broker.deliver()
    assert json_of(answer)["error"] == (
        "AttemptTimeout: stuck did not begin within 0.095 s, its time for one attempt: all 1 threads were busy"
    )
    assert result.status == "failed"
    await stuck.end()
    assert len(stuck.contexts) == 1
    broker.close()


@pytest.mark.parametrize("form", ["plain", "with dependencies"])
def test_broker_and_handle_say_the_same(form: str) -> None:
    states: list[State] = []
    closed, may_end, dead = threading.Event(), threading.Event(), threading.Event()

    def watch(event: MessageEvent) -> None:
        states.append(event.state)
        if event.state is State.FAILED:
            dead.set()

    def session() -> Iterator[str]:
        yield "open"
        closed.set()

    def plain() -> None:
        may_end.wait(PATIENCE_S)

    def dependent(db: str = Depends(session)) -> None:
        may_end.wait(PATIENCE_S)

    with QTasks(embedded=Embedded(":memory:", watch=watch, drain_s=0.1)) as tasks:
        work = tasks.task(retries=0, timeout=SHORT, name="work")(plain if form == "plain" else dependent)
        with pytest.raises(TaskFailed, match="did not end within"):
            work.delay().get(timeout=PATIENCE_S)
        assert dead.wait(PATIENCE_S)
        assert not closed.is_set()  # the thread still uses it
        may_end.set()
        assert form == "plain" or closed.wait(PATIENCE_S)
    assert states[:3] == [State.CREATED, State.ACTIVE, State.FAILED]
