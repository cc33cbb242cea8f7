"""Waiting for a call that cannot run fails instead of blocking for ever."""

from __future__ import annotations

import asyncio
import threading

import pytest

from qtasks import QTasks
from qtasks.errors import ResultError, ResultTimeout, TaskFailed
from qtasks.tasks.results.waiting import states
from qtasks.tasks.task import SyncTask
from qtasks.testing import Environment


@pytest.fixture
def note(tasks: QTasks) -> SyncTask[..., int]:
    @tasks.task
    def note(n: int) -> int:
        return n

    return note


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_a_result_that_nobody_drained_for_says_what_to_do(
    qtasks: Environment, note: SyncTask[..., int], timeout: float | None
) -> None:
    result = note.delay(1)
    with pytest.raises(ResultTimeout) as refused:
        result.get(timeout)
    assert str(refused.value) == (
        f"note(1) {result.id} has not run: calls wait until the test runs them\n  fix         qtasks.drain()"
    )
    assert result.status == "queued"


def test_a_result_that_is_delayed_says_how_long(qtasks: Environment, note: SyncTask[..., int]) -> None:
    result = note.using(delay="90m").delay(1)
    qtasks.advance(minutes=30)
    with pytest.raises(ResultTimeout, match=r'qtasks.advance\("1h"\)'):
        result.get()


def test_a_result_whose_call_failed_says_when_the_next_attempt_is(qtasks: Environment, tasks: QTasks) -> None:
    @tasks.task
    def fail() -> None:
        raise OSError("no")

    result = fail.delay()
    qtasks.drain()
    with pytest.raises(ResultTimeout) as refused:
        result.get()
    assert "has failed on attempt 1 (OSError: no) and waits for the next" in str(refused.value)
    assert 'qtasks.advance("12s")' in str(refused.value)


def test_a_call_says_in_a_test_why_it_waits(qtasks: Environment, tasks: QTasks, note: SyncTask[..., int]) -> None:
    @tasks.task(retry_delay="30s")
    def fail() -> None:
        raise OSError("no")

    failing, late = fail.delay(), note.using(delay="1h").delay(1)
    qtasks.drain()
    assert failing.status == "retrying"
    assert (failing.waiting_for or "").startswith("OSError: no; next attempt at ")
    assert (late.waiting_for or "").startswith("next attempt at ")
    qtasks.advance("1h")
    assert late.waiting_for is None


def test_a_result_of_another_test_is_not_waited_for(note: SyncTask[..., int], tasks: QTasks) -> None:
    with Environment(tasks):
        note.delay(1)
    with Environment(tasks), pytest.raises(ResultTimeout, match="was not sent in this test"):
        note.result("call_of_before").get()


@pytest.mark.anyio
async def test_awaiting_a_result_too_soon_says_what_to_do(qtasks: Environment, note: SyncTask[..., int]) -> None:
    result = await note.adelay(1)
    with pytest.raises(ResultTimeout, match=r"qtasks\.drain\(\)"):
        await result
    with pytest.raises(ResultTimeout):
        await result.aget(timeout=10)


@pytest.mark.anyio
async def test_whoever_waits_while_calls_run_gets_the_result(qtasks: Environment, note: SyncTask[..., int]) -> None:
    results = await note.amap([1, 2, 3])
    drained, *values = await asyncio.gather(qtasks.adrain(), *(result.aget() for result in results))
    assert (drained, values) == (3, [1, 2, 3])


@pytest.mark.anyio
async def test_whoever_waits_in_vain_while_calls_run_hears_of_it(qtasks: Environment, note: SyncTask[..., int]) -> None:
    late = await note.using(delay="1h").adelay(1)
    waiting = asyncio.create_task(late.aget())
    draining = asyncio.create_task(qtasks.adrain())
    await draining
    with pytest.raises(ResultTimeout):
        await waiting


@pytest.mark.anyio
async def test_whoever_looks_on_is_no_one_who_waits(qtasks: Environment, note: SyncTask[..., int]) -> None:
    result = await note.using(delay="1h").adelay(1)
    seen = states(note.runtime.results(), result.id, lambda: False)
    assert await anext(seen) is None
    await qtasks.adrain()
    record, ran = await asyncio.gather(anext(seen), qtasks.aadvance(hours=1))
    assert record is not None
    assert ran == 1
    assert [later.status async for later in seen if later is not None] in ([], ["succeeded"])


def test_a_task_may_wait_for_another(qtasks: Environment, note: SyncTask[..., int], tasks: QTasks) -> None:
    @tasks.task
    def outer(n: int) -> int:
        return note.delay(n).get() + note.delay(n + 1).get()

    result = outer.delay(1)
    assert qtasks.drain() == 3
    assert result.get() == 3


def test_a_task_that_has_waited_runs_alone_again(qtasks: Environment, note: SyncTask[..., int], tasks: QTasks) -> None:
    begun = threading.Event()

    @tasks.task
    def outer() -> bool:
        first = note.delay(1)
        last.delay()
        first.get()
        return begun.wait(0.05)

    @tasks.task
    def last() -> None:
        begun.set()

    result = outer.delay()
    assert qtasks.drain() == 3
    assert result.get() is False


def test_time_goes_on_while_a_task_waits_for_another(
    qtasks: Environment, note: SyncTask[..., int], tasks: QTasks
) -> None:
    start = qtasks.now

    @tasks.task
    def outer() -> float:
        note.using(delay="20m").delay(1).get()
        return (qtasks.now - start).total_seconds()

    result = outer.delay()
    qtasks.advance(hours=1)
    assert result.get() == 20 * 60
    assert (qtasks.now - start).total_seconds() == 3600


def test_a_task_that_waits_in_vain_fails_as_one_whose_time_is_up(
    qtasks: Environment, note: SyncTask[..., int], tasks: QTasks
) -> None:
    @tasks.task(retries=0)
    def outer() -> int:
        return note.using(delay="1h").delay(1).get()

    result = outer.delay()
    qtasks.drain()
    with pytest.raises(TaskFailed, match="ResultTimeout: note"):
        result.get()


def test_two_that_wait_for_each_other_are_not_waited_for(qtasks: Environment, tasks: QTasks) -> None:
    @tasks.task(retries=0)
    def one(other: str) -> int:
        return two.result(other).get()

    @tasks.task(retries=0)
    def two(other: str) -> int:
        return one.result(other).get()

    one.apply_async(("call_b",), task_id="call_a")
    two.apply_async(("call_a",), task_id="call_b")
    qtasks.drain()
    assert sorted(dead.task for dead in qtasks.dlq) == ["one", "two"]


def test_a_task_that_would_block_the_loop_it_runs_on_is_told(
    qtasks: Environment, note: SyncTask[..., int], tasks: QTasks
) -> None:
    @tasks.task(retries=0)
    async def outer() -> int:
        return note.delay(1).get()

    result = outer.delay()
    qtasks.drain()
    with pytest.raises(TaskFailed, match="would block the event loop that has to run the task"):
        result.get()


def test_a_task_with_a_helper_of_its_own_is_waited_for(qtasks: Environment, tasks: QTasks) -> None:
    done = threading.Event()

    @tasks.task
    async def work() -> str:
        helper = threading.Timer(0.01, done.set)
        helper.start()
        await asyncio.to_thread(done.wait)
        return "done"

    result = work.delay()
    qtasks.drain()
    assert result.get() == "done"


def test_a_late_result_is_a_timeout_for_the_application(qtasks: Environment, note: SyncTask[..., int]) -> None:
    def view() -> str:
        try:
            return str(note.delay(1).get(timeout=2))
        except TimeoutError:
            return "come back later"

    assert view() == "come back later"
    assert issubclass(ResultTimeout, ResultError)
