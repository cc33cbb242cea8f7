"""Flows on bad days: every flow ends, also where only the broker saw what happened."""

from __future__ import annotations

import pytest

from qtasks import NonRetryable, QTasks, chain, group
from qtasks.errors import TaskCancelled, TaskFailed
from qtasks.qstash import dlq
from qtasks.tasks.flow.canvas import Chain
from qtasks.tasks.run.flows.continuation import Continuation
from qtasks.tasks.run.flows.flow_sweep import FlowSweep
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


@pytest.fixture
def best(tasks: QTasks, add: Task[..., int], total: Task[..., int]) -> Chain:
    """Four members, and a body that gets the results of those that succeed."""
    members = group(add.s(1), add.s(2), add.using(expires="5m").s(4) | add.s(), add.s(8), collect="successes")
    return members | total.s() | add.s(100)


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


def test_a_flow_goes_on_with_what_worked_after_a_killed_member(
    tasks: QTasks, qtasks: Environment, best: Chain, add: Task[..., int]
) -> None:
    flow = best.delay()
    qtasks.crash_next(add)
    qtasks.drain()
    assert flow.get() == 114
    assert flow.parent.parent.counts() == (3, 1, 0)
    assert open_flows(tasks) == 0


@pytest.mark.parametrize("by", ["handle", "broker"])
def test_it_goes_on_after_a_member_was_cancelled(tasks: QTasks, qtasks: Environment, best: Chain, by: str) -> None:
    flow = best.delay()
    member = qtasks.pending[1]
    if by == "broker":
        assert tasks.runtime.publisher().cancel(member.id)
    else:
        assert flow.parent.parent[1].cancel()
    qtasks.drain()
    assert flow.get() == 113
    assert open_flows(tasks) == 0


def test_it_goes_on_after_members_have_expired(tasks: QTasks, qtasks: Environment, best: Chain) -> None:
    flow = best.using(delay="10m").delay()
    qtasks.advance(minutes=11)
    qtasks.drain()
    assert flow.get() == 111
    assert flow.parent.parent.counts() == (3, 1, 0)
    assert open_flows(tasks) == 0


def test_it_goes_on_where_no_member_has_succeeded(
    tasks: QTasks, qtasks: Environment, add: Task[..., int], total: Task[..., int]
) -> None:
    flow = (group((add.s(n) for n in range(3)), collect="successes") | total.s() | add.s(100)).delay()
    for _ in range(3):
        qtasks.crash_next(add)
    qtasks.drain()
    assert flow.get() == 100
    assert flow.parent.parent.counts() == (0, 3, 0)
    assert open_flows(tasks) == 0


@pytest.mark.parametrize("how", ["failed", "expired", "cancelled"])
def test_the_look_at_open_flows_sends_a_body_that_a_dead_process_did_not_send(
    tasks: QTasks, qtasks: Environment, total: Task[..., int], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    @tasks.task
    def give(number: int) -> int:
        if number < 0:
            raise NonRetryable("negative")
        return number

    async def die(*_: object) -> None: ...

    last = {"failed": give.s(-1), "expired": give.using(delay="2m", expires="1m").s(2), "cancelled": give.s(2)}[how]
    flow = (group(give.s(1), last, collect="successes") | total.s()).delay()
    with monkeypatch.context() as patched:
        patched.setattr(Continuation, "_go_on_without", die)
        qtasks.run_next()
        if how == "cancelled":
            flow.parent[1].cancel()
        qtasks.advance(minutes=2)
    assert (flow.status, flow.parent[1].status) == ("queued", how)
    runtime = tasks.runtime
    qtasks.advance(minutes=11)  # after that the broker takes another report of this end
    FlowSweep(runtime.results(), runtime._service, runtime.clock).run_once()
    qtasks.drain()
    assert flow.get() == 1
    assert open_flows(tasks) == 0
