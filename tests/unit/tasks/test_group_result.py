"""The handle of a group: a sequence of handles, and what its calls have in common."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qtasks import Cancel, GroupResult, NonRetryable, TaskResult, chain, group
from qtasks.errors import ResultError, ResultTimeout, TaskFailed
from qtasks.tasks.task import Task
from tests.unit.tasks.manual_broker import ManualBroker

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "sqlite"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ManualBroker]:
    made = ManualBroker(results="memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/r.db")
    yield made
    made.close()


@pytest.fixture
def echo(broker: ManualBroker) -> Task[..., int]:
    @broker.tasks.task
    def echo(number: int) -> int:
        if number < 0:
            raise NonRetryable("negative")
        if number == 0:
            raise Cancel("zero")
        return number

    return echo


async def deliver_all(broker: ManualBroker) -> None:
    while broker.messages:
        await broker.deliver(broker.messages.pop(0))


async def test_the_handle_of_a_group_is_the_sequence_of_its_handles(broker: ManualBroker, echo: Task[..., int]) -> None:
    handle = group(echo.s(n) for n in (1, 2, 3)).delay()
    assert [len(handle), len(list(handle)), len(handle[1:])] == [3, 3, 2]
    assert (handle[0], handle[-1]) == (handle.calls[0], handle.calls[2])
    await deliver_all(broker)
    assert [result.get(timeout=1) for result in handle if isinstance(result, TaskResult)] == [1, 2, 3]
    assert (handle.results(timeout=1), handle.get(timeout=1), handle[1:].get(timeout=1)) == (
        [1, 2, 3],
        [1, 2, 3],
        [2, 3],
    )
    assert await handle.aresults(timeout=1) == await handle.aget(timeout=1) == await handle == [1, 2, 3]


async def test_the_handle_of_a_nested_group_is_nested(broker: ManualBroker, echo: Task[..., int]) -> None:
    handle = await group(chain(echo.s(1), echo.s()), group(echo.s(2), echo.s(3))).adelay()
    assert isinstance(handle[1], GroupResult)
    assert len(handle.calls) == 3
    await deliver_all(broker)
    assert handle.get(timeout=1) == [1, [2, 3]]


async def test_the_state_of_a_group_is_that_of_its_members_together(broker: ManualBroker, echo: Task[..., int]) -> None:
    handle = group(echo.s(1), echo.s(2)).delay()
    assert (handle.status, handle.is_finished) == ("queued", False)
    await broker.deliver(broker.messages.pop())
    assert (handle.status, await handle.astatus()) == ("running", "running")
    await deliver_all(broker)
    assert (handle.status, handle.is_finished) == ("succeeded", True)


@pytest.mark.parametrize(("numbers", "state"), [((1, 0), "cancelled"), ((0, -1, 1), "failed")])
async def test_a_group_with_a_member_that_did_not_succeed(
    broker: ManualBroker, echo: Task[..., int], numbers: tuple[int, ...], state: str
) -> None:
    handle = group(echo.s(number) for number in numbers).delay()
    await deliver_all(broker)
    assert handle.status == state
    assert handle.wait(timeout=1)
    assert await handle.await_all(timeout=1)


async def test_the_results_of_a_group_raise_what_its_first_failed_member_raises(
    broker: ManualBroker, echo: Task[..., int]
) -> None:
    handle = group(echo.s(1), echo.s(-1)).delay()
    await deliver_all(broker)
    with pytest.raises(TaskFailed, match="negative"):
        handle.results(timeout=1)
    with pytest.raises(TaskFailed, match="negative"):
        await handle.aresults(timeout=1)


async def test_one_time_limit_is_for_all_members(broker: ManualBroker, echo: Task[..., int]) -> None:
    handle = group(echo.s(1), echo.s(2)).delay()
    assert not handle.wait(timeout=0.01)
    assert not await handle.await_all(timeout=0.01)
    with pytest.raises(ResultTimeout):
        handle.results(timeout=0)
    with pytest.raises(ResultTimeout, match="2 of 2 calls of a group have not finished in time"):
        list(handle.as_completed(timeout=0))
    await broker.deliver(broker.messages.pop())
    with pytest.raises(ResultTimeout, match="1 of 2 calls"):
        [result async for result in handle.as_completed(timeout=0.01)]


async def test_calls_come_in_the_order_in_which_they_end(broker: ManualBroker, echo: Task[..., int]) -> None:
    handle = group(echo.s(1), group(echo.s(2), echo.s(-3))).delay()
    completions = aiter(handle.as_completed(timeout=5))
    order = []
    for number in (2, 1, 0):
        await broker.deliver(broker.messages[number])
        order.append(await anext(completions))
    assert order == handle.calls[::-1]
    assert set(handle.as_completed(timeout=1)) == set(handle.calls)


def test_a_thread_is_woken_by_the_next_call_that_ends(broker: ManualBroker, echo: Task[..., int]) -> None:
    handle = group(echo.s(1), echo.s(2)).delay()
    order: list[TaskResult[int]] = []
    seen = threading.Semaphore(0)

    def collect() -> None:
        for result in handle.as_completed(timeout=10):
            order.append(result)
            seen.release()

    thread = threading.Thread(target=collect)
    thread.start()
    for number in (1, 0):
        asyncio.run(broker.deliver(broker.messages[number]))
        assert seen.acquire(timeout=10)
    thread.join()
    assert order == handle.calls[::-1]


async def test_waiting_where_the_tasks_run_is_refused(
    broker: ManualBroker, echo: Task[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = group(echo.s(1), echo.s(2)).delay()
    monkeypatch.setattr(broker.tasks.runtime, "runs_on_this_thread", lambda: True)
    with pytest.raises(ResultError, match="async for result in"):
        next(iter(handle.as_completed()))
    with pytest.raises(ResultError, match="await"):
        handle.wait()


async def test_a_cancelled_group_cancels_every_member(
    broker: ManualBroker, echo: Task[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled: list[str] = []
    answers = itertools.cycle([True, False])

    def cancel(call: TaskResult[int]) -> bool:
        cancelled.append(call.id)
        return next(answers)

    monkeypatch.setattr(TaskResult, "cancel", cancel)
    handle = group(echo.s(1), group(echo.s(2), echo.s(3))).delay()
    assert handle.cancel()
    assert cancelled == [call.id for call in handle.calls]
    assert await handle.acancel()
