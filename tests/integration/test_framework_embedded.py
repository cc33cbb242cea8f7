"""What the framework offers, over the real broker inside the process."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from qtasks import Embedded, QTasks, RetryPolicy, Snooze, TaskContext, chain, group, injected
from qtasks.errors import TaskCancelled, TaskExpired, TaskFailed

PATIENCE_S = 20.0


@pytest.fixture
def tasks(tmp_path: Path) -> Iterator[QTasks]:
    with QTasks(embedded=Embedded(tmp_path / "tasks.db")) as made:
        yield made


def test_a_policy_with_jitter_brings_a_task_through(tasks: QTasks) -> None:
    @tasks.task(retries=RetryPolicy(max=4, initial=timedelta(milliseconds=2), jitter=0.9))
    def flaky(ctx: TaskContext = injected) -> int:
        if ctx.attempt < 4:
            raise OSError("not yet")
        return ctx.attempt

    assert flaky.delay().get(timeout=PATIENCE_S) == 4


def test_a_snoozed_call_comes_back(tasks: QTasks) -> None:
    @tasks.task
    async def work(n: int, ctx: TaskContext = injected) -> list[int]:
        if ctx.snoozed < 2:
            raise Snooze(timedelta(milliseconds=1))
        return [n, ctx.snoozed, ctx.attempt]

    assert work.delay(7).get(timeout=PATIENCE_S) == [7, 2, 1]


def test_a_call_expires(tasks: QTasks) -> None:
    @tasks.task
    def work() -> None: ...

    result = work.using(delay=timedelta(milliseconds=50), expires=timedelta(milliseconds=1)).delay()
    with pytest.raises(TaskExpired):
        result.get(timeout=PATIENCE_S)


def test_many_calls_go_in_one_request_and_through_queues_and_keys(tasks: QTasks) -> None:
    seen: list[int] = []

    @tasks.task
    def work(n: int) -> int:
        seen.append(n)
        return n * 2

    results = work.using(queue="line").map(range(5))
    assert [result.get(timeout=PATIENCE_S) for result in results] == [0, 2, 4, 6, 8]
    assert seen == [0, 1, 2, 3, 4]
    limited = work.using(key="k", parallelism=1).map(range(3))
    assert sorted(result.get(timeout=PATIENCE_S) for result in limited) == [0, 2, 4]


def test_a_flow_runs_through_chains_and_groups(tasks: QTasks) -> None:
    @tasks.task
    def add(a: int, b: int) -> int:
        return a + b

    @tasks.task
    async def total(numbers: list[int]) -> int:
        return sum(numbers)

    flow = chain(add.s(1, 1) | group(add.s(n) for n in range(10)) | total.s(), add.s(1000))
    assert flow.delay().get(timeout=PATIENCE_S) == 10 * 2 + 45 + 1000


def test_a_failure_in_a_flow_is_told_at_its_end(tasks: QTasks) -> None:
    @tasks.task(retries=0)
    def fail(n: int) -> int:
        raise ValueError(f"not {n}")

    @tasks.task
    def after(n: int) -> int:
        return n

    with pytest.raises(TaskFailed, match="ValueError: not 3"):
        (after.s(3) | fail.s() | after.s()).delay().get(timeout=PATIENCE_S)


def test_the_same_call_is_sent_once_and_can_be_called_off(tasks: QTasks) -> None:
    @tasks.task(unique="n")
    def work(n: int) -> int:
        return n

    later = work.using(delay="1h")
    first = later.delay(1)
    again = later.delay(1)
    assert again.deduplicated
    assert again.id == first.id
    assert first.cancel()
    with pytest.raises(TaskCancelled):
        again.get(timeout=PATIENCE_S)
    assert work.delay(1).get(timeout=PATIENCE_S) == 1
    assert work.delay(2).get(timeout=PATIENCE_S) == 2
    assert work.delay(2).get(timeout=PATIENCE_S) == 2
