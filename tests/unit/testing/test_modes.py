"""Recorded only, or run at once."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from qtasks import QTasks, TaskContext, injected
from qtasks.errors import QTasksError, ResultTimeout, TaskFailed
from qtasks.testing import Environment


@pytest.mark.qtasks("capture")
def test_what_is_captured_is_recorded_and_never_runs(tasks: QTasks, qtasks: Environment) -> None:
    @tasks.task
    def note(n: int) -> None:
        raise AssertionError("it ran")

    result = note.delay(1)
    for verb in (qtasks.drain, qtasks.run_next, lambda: qtasks.advance(days=1)):
        with pytest.raises(QTasksError, match='in mode "capture" calls are only recorded'):
            verb()
    with pytest.raises(ResultTimeout, match='in mode "capture" no call does'):
        result.get()
    qtasks.assert_enqueued(note, 1)
    assert len(qtasks.pending) == 1


@pytest.mark.qtasks("inline")
def test_inline_a_call_has_run_when_it_returns(tasks: QTasks, qtasks: Environment) -> None:
    ran: list[int] = []

    @tasks.task
    async def note(n: int) -> int:
        ran.append(n)
        return n

    assert note.delay(1).get() == 1
    assert ran == [1]
    assert [result.get() for result in note.map([2, 3])] == [2, 3]
    assert qtasks.pending == []
    assert len(qtasks.assert_enqueued(note)) == 3


@pytest.mark.qtasks("inline")
def test_inline_waits_are_skipped(tasks: QTasks, qtasks: Environment) -> None:
    start = qtasks.now

    @tasks.task
    def flaky(ctx: TaskContext = injected) -> int:
        if ctx.attempt < 3:
            raise OSError
        return ctx.attempt

    assert flaky.using(delay="1h").delay().get() == 3
    assert qtasks.now - start == timedelta(hours=1, seconds=12 + 148)


@pytest.mark.qtasks("inline")
def test_inline_a_failure_is_in_the_result_and_in_the_dead_letters(tasks: QTasks, qtasks: Environment) -> None:
    @tasks.task
    def fail() -> None:
        raise OSError("no")

    result = fail.delay()
    with pytest.raises(TaskFailed, match="OSError: no"):
        result.get()
    assert [dead.task for dead in qtasks.dlq] == ["fail"]


@pytest.mark.qtasks("inline")
def test_inline_what_a_task_calls_has_run_as_well(tasks: QTasks, qtasks: Environment) -> None:
    ran: list[str] = []

    @tasks.task
    def inner(name: str) -> str:
        ran.append(name)
        return name

    @tasks.task
    async def outer() -> str:
        inner.delay("blocking")
        return await (await inner.adelay("awaited"))

    assert outer.delay().get() == "awaited"
    assert ran == ["blocking", "awaited"]


@pytest.mark.qtasks("inline")
@pytest.mark.anyio
async def test_inline_async_code_runs_tasks_on_its_own_loop(tasks: QTasks, qtasks: Environment) -> None:
    @tasks.task
    async def where() -> int:
        return id(asyncio.get_running_loop())

    assert await (await where.adelay()) == id(asyncio.get_running_loop())
    # A blocking call cannot use the loop that it blocks.
    assert where.delay().get() != id(asyncio.get_running_loop())
