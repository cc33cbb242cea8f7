"""Flows on bad days: every flow ends, also where only the broker saw what happened."""

from __future__ import annotations

import pytest

from qtasks import QTasks, chain, group
from qtasks.errors import TaskCancelled, TaskFailed
from qtasks.qstash import dlq
from qtasks.tasks.task import Task
from qtasks.testing import Environment


@pytest.fixture
def add(tasks: QTasks) -> Task[..., int]:
    @tasks.task(retries=0, interrupted_for=0)
    def add(a: int, b: int = 0) -> int:
        return a + b

    return add


@pytest.fixture
def total(tasks: QTasks) -> Task[..., int]:
    @tasks.task(retries=0, interrupted_for=0)
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    return total


def open_flows(tasks: QTasks) -> int:
    return len(tasks.runtime.results().open_flows(10))


def test_a_member_whose_last_attempt_was_killed_ends_its_flow(
    tasks: QTasks, qtasks: Environment, add: Task[..., int], total: Task[..., int]
) -> None:
    flow = chain(group(add.s(1), add.s(2)), total.s(), add.s(10)).delay()
    qtasks.crash_next(add)
    qtasks.drain()
    assert flow.status == "failed"
    with pytest.raises(TaskFailed, match="the flow ended with add"):
        flow.get()
    assert open_flows(tasks) == 0


def test_its_dead_letter_sent_again_is_a_new_round_of_the_flow(
    tasks: QTasks, qtasks: Environment, add: Task[..., int], total: Task[..., int]
) -> None:
    flow = chain(group(add.s(1), add.s(2)), total.s(), add.s(10)).delay()
    qtasks.crash_next(add)
    qtasks.drain()
    (dead,) = qtasks.dlq
    tasks.runtime.publisher().call(dlq.retry(dead.letter.id, {}), "the retry")
    qtasks.drain()
    assert flow.get() == 13
    assert open_flows(tasks) == 0


def test_a_message_that_is_cancelled_at_the_broker_cancels_its_flow(
    tasks: QTasks, qtasks: Environment, add: Task[..., int]
) -> None:
    flow = chain(add.using(delay="1h").s(1), add.s(2)).delay()
    (call,) = qtasks.pending
    assert tasks.runtime.publisher().cancel(call.id)
    qtasks.drain()
    with pytest.raises(TaskCancelled, match="the flow ended with add"):
        flow.get()
    assert open_flows(tasks) == 0
