"""A task may wait for the result of another one; the log says what that costs, and a wait that cannot end fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from qtasks import Embedded, QTasks, group
from qtasks.errors import ResultError, TaskFailed
from qtasks.tasks.results import wait_in_task
from qtasks.tasks.results.wait_in_task import WaitInTask

PATIENCE_S = 20.0


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Iterator[QTasks]:
    monkeypatch.setattr(wait_in_task, "_warned", set())
    with QTasks(embedded=Embedded(":memory:", drain_s=0.1), threads=1) as made:
        yield made


def test_a_wait_for_a_call_that_needs_the_same_thread_fails_with_the_fix(tasks: QTasks) -> None:
    raised: list[ResultError] = []

    @tasks.task
    def inner() -> int:
        return 1

    @tasks.task(retries=0)
    def outer() -> int:
        try:
            return inner.apply_async(task_id="call_inner").get()
        except ResultError as error:
            raised.append(error)
            raise

    with pytest.raises(TaskFailed, match="outer waits for a result of inner that cannot come"):
        outer.delay().get(timeout=PATIENCE_S)
    assert raised[0].code == "QT165"
    assert "use a chain or a chord" in str(raised[0])
    assert inner.result("call_inner").get(timeout=PATIENCE_S) == 1  # the thread is free again


@pytest.mark.parametrize("wait", [lambda handle: handle.results(), lambda handle: list(handle.as_completed())])
def test_a_wait_for_a_group_that_needs_the_same_thread_fails_too(
    tasks: QTasks, wait: Callable[[object], object]
) -> None:
    @tasks.task
    def inner() -> int:
        return 1

    @tasks.task(retries=0)
    def outer() -> None:
        wait(group(inner.s(), inner.s()).delay())

    with pytest.raises(TaskFailed, match="that cannot come"):
        outer.delay().get(timeout=PATIENCE_S)


def test_a_wait_for_a_call_that_needs_no_thread_ends_and_is_logged_once(
    tasks: QTasks, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked, check = threading.Event(), WaitInTask.check

    def check_and_note(wait: WaitInTask) -> None:
        check(wait)
        checked.set()

    monkeypatch.setattr(WaitInTask, "check", check_and_note)

    @tasks.task
    async def inner() -> int:
        await asyncio.to_thread(checked.wait, PATIENCE_S)
        checked.clear()
        return 1

    @tasks.task
    def outer() -> int:
        return inner.delay().get()

    assert [outer.delay().get(timeout=PATIENCE_S) for _ in range(2)] == [1, 1]
    text = "outer waits for a result of inner inside a task and holds its place meanwhile: use a chain or a chord"
    assert caplog.messages.count(text) == 1


def test_a_wait_for_a_call_elsewhere_goes_on_while_calls_wait_for_the_thread(tasks: QTasks) -> None:
    """The call may end in another process: only calls that are queued here are known to be stuck."""
    waiting, may_end = threading.Event(), threading.Event()

    @tasks.task
    async def elsewhere() -> int:
        waiting.set()
        await asyncio.to_thread(may_end.wait, PATIENCE_S)
        return 1

    @tasks.task
    def behind() -> int:
        return 2

    @tasks.task
    def outer() -> int:
        return elsewhere.delay().get()

    first = outer.delay()
    assert waiting.wait(PATIENCE_S)
    second = behind.delay()
    pause, links = threading.Event(), tasks.runtime.dispatcher()._executor._links
    while not any(link.thread.is_waiting for link in list(links)):
        pause.wait(0.001)
    may_end.set()
    assert (first.get(timeout=PATIENCE_S), second.get(timeout=PATIENCE_S)) == (1, 2)
