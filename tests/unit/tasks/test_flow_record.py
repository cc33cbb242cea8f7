"""The record of a flow: written before its calls, it keeps their results; a flow that has ended keeps nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from qtasks import Cancel, chain, group
from qtasks.errors import BrokerUnreachable, PartlyRefused, ResultError, TaskFailed
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.results.backend import ResultBackend, ResultRecord, ResultStatus
from qtasks.tasks.results.flow_plan import FlowPlan, flow_id_of
from qtasks.tasks.results.redis import RedisResults
from qtasks.tasks.results.task_result import TaskResult
from qtasks.tasks.run.decision import Decision
from qtasks.tasks.task import Task
from tests.support.results import BACKENDS, place_for_results
from tests.unit.tasks.manual_broker import ManualBroker, SentMessage

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "sqlite"])
def broker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ManualBroker]:
    with place_for_results(request.param, tmp_path, monkeypatch) as url:
        made = ManualBroker(results=url, result_ttl="1h")
        yield made
        made.close()


@pytest.fixture
def add(broker: ManualBroker) -> Task[..., int]:
    @broker.tasks.task(retries=0)
    def add(a: int, b: int = 0) -> int:
        if a in broken:
            raise ValueError("broken")
        if a == 99:
            raise Cancel("no need")
        return a + b

    return add


@pytest.fixture
def total(broker: ManualBroker) -> Task[..., int]:
    @broker.tasks.task(retries=0)
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    return total


broken: set[int] = set()
"""The first arguments with which `add` fails."""


@pytest.fixture(autouse=True)
def nothing_broken() -> Iterator[None]:
    broken.clear()
    yield
    broken.clear()


def results(broker: ManualBroker) -> ResultBackend:
    return broker.tasks.runtime.results()


def flow_record(broker: ManualBroker, handle: TaskResult[int]) -> ResultRecord:
    record = results(broker).read(flow_id_of(handle.id))
    assert record is not None
    return record


def kept_calls(broker: ManualBroker, handle: TaskResult[int]) -> int:
    """How many records the flow keeps, its own included."""
    flow = flow_record(broker, handle)
    records = [results(broker).read(call.call_id) for call in FlowPlan.read(flow).calls]
    return sum(record.kept for record in (flow, *records) if record is not None)


def resent(message: SentMessage) -> SentMessage:
    """The dead letter of a message, sent again: the same call as another message."""
    message.message_id += "_again"
    return message


async def run(broker: ManualBroker) -> None:
    while broker.messages:
        await broker.deliver(broker.messages.pop(0))


async def test_a_flow_is_recorded_before_it_is_sent_and_its_calls_say_so(
    broker: ManualBroker, add: Task[..., int], total: Task[..., int]
) -> None:
    handle = (group(add.s(1), add.s(2) | add.s(3)) | total.s()).delay()
    flow = flow_record(broker, handle)
    assert (flow.status, flow.kept, flow.task) == ("running", True, "total")
    plan = FlowPlan.read(flow)
    assert [call.task for call in plan.calls] == ["add", "add", "add", "total"]
    assert plan.end.call_id == handle.id
    assert [message.envelope["flow"]["id"] for message in broker.messages] == [flow.call_id] * 2
    assert all(f"&flow={flow.call_id}" in (message.options.end_callback or "") for message in broker.messages)
    assert [record.call_id for record in results(broker).open_flows(10)] == [flow.call_id]
    await broker.deliver(broker.messages.pop())
    assert broker.messages[-1].envelope["flow"]["id"] == flow.call_id
    assert kept_calls(broker, handle) == 2
    await run(broker)
    assert handle.get(timeout=1) == 6
    assert flow_record(broker, handle).status == "succeeded"
    assert (kept_calls(broker, handle), results(broker).open_flows(10)) == (0, [])


@pytest.mark.parametrize("broker", BACKENDS, indirect=True)
async def test_a_member_that_ends_days_after_the_others_still_starts_the_body(
    broker: ManualBroker, add: Task[..., int], total: Task[..., int]
) -> None:
    handle = (group(add.s(1), add.using(delay="3d").s(2)) | total.s()).delay()
    alone = add.delay(1)
    late = broker.messages.pop(1)
    await run(broker)
    for _ in range(3):
        broker.clock.advance(24 * 60 * 60 * 1000)
        add.delay(0)
        await run(broker)  # a write, with which old records are deleted
    if not isinstance(results(broker), RedisResults):  # Redis deletes by its own clock
        assert results(broker).read(alone.id) is None
    await broker.deliver(late)
    await run(broker)
    assert handle.get(timeout=1) == 3
    assert (kept_calls(broker, handle), results(broker).open_flows(10)) == (0, [])


async def test_flows_of_a_batch_are_recorded_in_one_write(
    broker: ManualBroker, add: Task[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []
    monkeypatch.setattr(results(broker), "write", lambda records, *_: writes.append(len(records)))
    group(add.s(n) | add.s(1) for n in range(3)).delay()
    await group(add.s(n) | add.s(1) for n in range(2)).adelay()
    add.delay(1)
    assert writes == [3, 2]


def test_a_flow_whose_record_cannot_be_written_is_not_sent(
    broker: ManualBroker, add: Task[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ResultError("the disk is full")

    monkeypatch.setattr(results(broker), "write", fail)
    with pytest.raises(ResultError, match="the disk is full"):
        chain(add.s(1), add.s(2)).delay()
    assert broker.messages == []


@pytest.mark.parametrize(("was_sent", "open_flows"), [(False, 0), (True, 1)])
def test_a_flow_that_was_not_sent_is_over_unless_the_broker_may_have_it(
    broker: ManualBroker, add: Task[..., int], monkeypatch: pytest.MonkeyPatch, was_sent: bool, open_flows: int
) -> None:
    def fail(_: object) -> None:
        raise BrokerUnreachable("down", sent=was_sent)

    monkeypatch.setattr(broker.tasks.runtime.publisher(), "publish_many", fail)
    with pytest.raises(BrokerUnreachable):
        chain(add.s(1), add.s(2)).delay()
    assert len(results(broker).open_flows(10)) == open_flows


async def test_a_call_that_the_broker_refuses_ends_what_follows(
    broker: ManualBroker, add: Task[..., int], total: Task[..., int]
) -> None:
    broker.refuses = "[1234]"
    with pytest.raises(PartlyRefused):
        (group(add.s(1234), add.s(2)) | total.s()).delay()
    (flow,) = results(broker).open_flows(10)
    end = results(broker).read(FlowPlan.read(flow).end.call_id)
    assert end is not None
    assert end.status == "failed"
    assert str(end.error).endswith("the broker refused it: refused")
    await run(broker)
    assert results(broker).open_flows(10) == []


async def test_a_failure_ends_the_flow_once_the_calls_beside_it_have_ended(
    broker: ManualBroker, add: Task[..., int], total: Task[..., int]
) -> None:
    broken.add(1)
    handle = (group(add.s(1), add.s(2) | add.s(3)) | total.s() | add.s()).delay()
    first, second = broker.messages
    broker.messages.clear()
    await broker.deliver(first)
    assert handle.status == "failed"
    await broker.deliver(second)
    assert (handle.status, flow_record(broker, handle).status) == ("failed", "running")
    assert kept_calls(broker, handle) == 5
    await run(broker)
    assert flow_record(broker, handle).status == "failed"
    assert (kept_calls(broker, handle), results(broker).open_flows(10)) == (0, [])


async def test_a_cancelled_call_cancels_what_follows(broker: ManualBroker, add: Task[..., int]) -> None:
    handle = (add.s(99) | add.s(1) | add.s(2)).delay()
    await run(broker)
    assert handle.status == flow_record(broker, handle).status == "cancelled"
    assert kept_calls(broker, handle) == 0


async def test_a_dead_letter_that_is_sent_again_reopens_its_flow(
    broker: ManualBroker, add: Task[..., int], total: Task[..., int]
) -> None:
    broken.add(1)
    handle = (group(add.s(1), add.s(2)) | total.s() | add.s(10)).delay()
    dead = broker.messages[0]
    await run(broker)
    with pytest.raises(TaskFailed):
        handle.get(timeout=1)
    broken.clear()
    await broker.deliver(resent(dead))
    assert handle.status == "queued"
    assert flow_record(broker, handle).status == "running"
    await run(broker)
    assert handle.get(timeout=1) == 13
    assert (flow_record(broker, handle).status, kept_calls(broker, handle)) == ("succeeded", 0)


async def test_a_flow_stays_ended_while_another_of_its_calls_has_failed(
    broker: ManualBroker, add: Task[..., int], total: Task[..., int]
) -> None:
    broken.update((1, 2))
    handle = (group(add.s(1), add.s(2)) | total.s()).delay()
    first, second = broker.messages
    await run(broker)
    broken.clear()
    await broker.deliver(resent(first))
    assert handle.status == "failed"
    assert kept_calls(broker, handle) == 0
    await broker.deliver(resent(second))
    await run(broker)
    assert handle.get(timeout=1) == 3


async def test_a_retried_call_that_fails_again_ends_its_flow_again(broker: ManualBroker, add: Task[..., int]) -> None:
    broken.add(1)
    handle = (add.s(1) | add.s(2)).delay()
    dead = broker.messages[0]
    await run(broker)
    await broker.deliver(resent(dead))
    assert (handle.status, kept_calls(broker, handle)) == ("failed", 0)


async def test_a_call_of_a_flow_that_was_cancelled_is_not_continued(broker: ManualBroker, add: Task[..., int]) -> None:
    handle = (add.s(1) | add.s(2)).delay()
    (end,) = [call for call in FlowPlan.read(flow_record(broker, handle)).calls if call.call_id == handle.id]
    results(broker).write([end.ended(ResultStatus.CANCELLED, "cancelled by its caller", broker.clock.now_ms())])
    await run(broker)
    assert (handle.status, flow_record(broker, handle).status) == ("cancelled", "cancelled")
    assert kept_calls(broker, handle) == 0


async def test_the_end_of_a_call_alone_ends_its_flow(
    broker: ManualBroker, add: Task[..., int], total: Task[..., int]
) -> None:
    """What an end callback knows: the task, the call and the flow, and nothing of the message."""
    handle = (add.s(1) | group(add.s(2), add.s(3)) | total.s()).delay()
    dispatcher = broker.tasks.runtime.dispatcher()
    attempt = await dispatcher._decode(broker.delivery(broker.messages[0]), None)
    attempt.envelope, attempt.flow_id = Envelope(attempt.context.call_id), flow_id_of(handle.id)
    decision = Decision.of_reported_failure("DeliveryFailed: there was no answer", notifies=True)
    await dispatcher._executor._conclude(attempt, decision)
    with pytest.raises(TaskFailed, match=r"the flow ended with add call_\w+, attempt 1: DeliveryFailed"):
        handle.get(timeout=1)
    assert kept_calls(broker, handle) == 0


async def test_results_of_an_ended_flow_that_are_no_longer_there_are_not_waited_for(
    broker: ManualBroker, add: Task[..., int]
) -> None:
    """The record of the flow is pruned, and then a dead letter is sent again: nothing is kept for ever."""
    handle = (add.s(1) | add.s(2)).delay()
    message = broker.messages[0]
    document = json.loads(message.body)
    document["flow"]["id"] = "flow_of_long_ago"
    message.body = json.dumps(document).encode()
    await run(broker)
    record = results(broker).read(handle.id)
    assert record is not None
    assert (record.value, record.kept) == ("3", False)


async def test_a_flow_without_a_record_goes_on_as_before(broker: ManualBroker, add: Task[..., int]) -> None:
    """What 0.1.0 has sent has no id, and neither has a chain of a caller without a place for results."""
    handle = (add.s(1) | add.s(2)).delay()
    document = json.loads(broker.messages[0].body)
    del document["flow"]["id"]
    broker.messages[0].body = json.dumps(document).encode()
    await run(broker)
    record = results(broker).read(handle.id)
    assert record is not None
    assert (record.value, record.kept) == ("3", False)


class TestThePlan:
    """Which calls wait for which."""

    PLAN = FlowPlan(
        [
            {"task": "a", "id": "1"},
            [
                {"task": "b", "id": "2"},
                [{"task": "c", "id": "3"}, [{"task": "d", "id": "4"}], {"task": "e", "id": "5"}],
            ],
            {"task": "f", "id": "6"},
        ]
    )

    @pytest.mark.parametrize(
        ("call_id", "later"), [("1", "23456"), ("2", "6"), ("3", "456"), ("4", "56"), ("6", ""), ("other", "")]
    )
    def test_calls_after_a_call(self, call_id: str, later: str) -> None:
        assert "".join(call.call_id for call in self.PLAN.after(call_id)) == later

    @pytest.mark.parametrize(
        ("succeeded", "due"), [("", "1"), ("1", "23"), ("12", "3"), ("13", "24"), ("12345", "6"), ("123456", "")]
    )
    def test_calls_that_nothing_holds_back(self, succeeded: str, due: str) -> None:
        assert "".join(call.call_id for call in self.PLAN.due(succeeded)) == due
