"""What may happen to a delivery, on order."""

from __future__ import annotations

from datetime import timedelta

import pytest

from qtasks import QTasks, TaskContext, injected
from qtasks.tasks.task import SyncTask
from qtasks.testing import Environment


@pytest.fixture
def ran() -> list[int]:
    return []


@pytest.fixture
def work(tasks: QTasks, ran: list[int]) -> SyncTask[..., int]:
    @tasks.task(retry_delay="10s")
    def work(n: int, ctx: TaskContext = injected) -> int:
        ran.append(n)
        return ctx.attempt

    return work


def test_deliveries_fail_as_often_as_they_are_told_to(
    qtasks: Environment, work: SyncTask[..., int], ran: list[int]
) -> None:
    qtasks.fail_next(work, times=2, status=503)
    result = work.delay(1)
    qtasks.drain()
    assert ran == []
    qtasks.advance(seconds=20)
    assert ran == [1]
    assert result.get() == 3


def test_a_fault_is_for_the_task_it_names(qtasks: Environment, work: SyncTask[..., int], tasks: QTasks) -> None:
    @tasks.task
    def other() -> None: ...

    qtasks.fail_next("work")
    other.delay()
    result = work.delay(1)
    qtasks.drain()
    assert [call.task for call in qtasks.pending] == ["work"]
    qtasks.advance(seconds=10)
    assert result.get() == 2


def test_a_lost_answer_brings_the_call_again_but_it_does_not_run_again(
    qtasks: Environment, work: SyncTask[..., int], ran: list[int]
) -> None:
    qtasks.drop_response_next()
    result = work.delay(1)
    qtasks.drain()
    assert len(qtasks.pending) == 1
    assert qtasks.advance(seconds=10) == 1
    assert ran == [1]
    assert qtasks.pending == []
    assert result.get() == 1


def test_a_delivery_made_twice_runs_once(qtasks: Environment, work: SyncTask[..., int], ran: list[int]) -> None:
    qtasks.duplicate_next(work)
    result = work.delay(1)
    assert qtasks.drain() == 1
    assert ran == [1]
    assert result.get() == 1
    assert qtasks.dlq == []


def test_of_a_delivery_made_twice_the_second_runs_where_the_first_has_failed(
    qtasks: Environment, tasks: QTasks
) -> None:
    seen: list[int] = []

    @tasks.task
    def fails_once() -> int:
        seen.append(1)
        if len(seen) == 1:
            raise OSError
        return len(seen)

    qtasks.duplicate_next(fails_once)
    result = fails_once.delay()
    assert qtasks.drain() == 1
    assert result.get() == 2


def test_after_a_crash_the_task_runs_a_second_time(
    qtasks: Environment, work: SyncTask[..., int], ran: list[int]
) -> None:
    qtasks.crash_next(work)
    result = work.delay(1)
    qtasks.drain()
    assert result.status == "queued"
    qtasks.advance(seconds=10)
    assert ran == [1, 1]
    assert result.get() == 2


@pytest.mark.parametrize("way", ["one", "batch"])
def test_a_call_may_come_late(qtasks: Environment, work: SyncTask[..., int], ran: list[int], way: str) -> None:
    qtasks.delay_next(work, minutes=5)
    if way == "batch":
        work.map([1, 2])
    else:
        work.using(delay="1m").delay(1)
    late = 5 if way == "batch" else 6
    assert qtasks.sent[0].delay == timedelta(minutes=late)
    qtasks.drain()
    assert ran == ([2] if way == "batch" else [])
    qtasks.advance(minutes=late)
    assert ran[-1] == 1


def test_what_is_due_at_once_comes_the_other_way_round(
    qtasks: Environment, work: SyncTask[..., int], ran: list[int]
) -> None:
    qtasks.reorder()
    work.map([1, 2, 3])
    qtasks.drain()
    assert ran == [3, 2, 1]


def test_a_queue_keeps_its_order_whatever_happens(
    qtasks: Environment, work: SyncTask[..., int], ran: list[int]
) -> None:
    qtasks.reorder()
    qtasks.fail_next(work)
    work.using(queue="line").map([1, 2, 3])
    qtasks.advance(minutes=1)
    assert ran == [1, 2, 3]
