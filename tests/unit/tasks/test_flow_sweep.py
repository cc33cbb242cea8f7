"""The slow look at open flows: what a lost report or a dead process has left open ends all the same."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from qtasks import NonRetryable, group
from qtasks.errors import BrokerUnreachable, ResultError, TaskFailed
from qtasks.tasks.results.backend import ResultBackend, ResultStatus
from qtasks.tasks.results.flow_plan import FlowPlan, flow_id_of
from qtasks.tasks.results.inquiry import ServiceState, Subject
from qtasks.tasks.results.task_result import TaskResult
from qtasks.tasks.run.flows import flow_sweep
from qtasks.tasks.run.flows.flow_sweep import EVERY_MS, LOST_MS, QUIET_MS, FlowSweep, FlowSweeper
from qtasks.tasks.task import Task
from tests.unit.tasks.manual_broker import ManualBroker

pytestmark = pytest.mark.anyio


@dataclass
class KnowingService:
    """A service that says the same about every call. It collects the ends that are passed on."""

    status: ResultStatus = ResultStatus.QUEUED
    is_down: bool = False
    is_hosted: bool = False
    """True if it does not know call ids."""
    asked: list[str] = field(default_factory=list)
    reported: list[Subject] = field(default_factory=list)

    def state_of(self, call_id: str, message_id: str | None) -> ServiceState | None:
        self.asked.append(call_id)
        if self.is_down:
            raise BrokerUnreachable("down")
        if self.is_hosted and message_id is None:
            return None
        return ServiceState(status=self.status, message_id="msg_1", reason="DeliveryFailed: no answer")

    def report_end(self, subject: Subject, state: ServiceState) -> None:
        self.reported.append(subject)


@pytest.fixture
def broker() -> Iterator[ManualBroker]:
    made = ManualBroker(results="memory://")
    yield made
    made.close()


@pytest.fixture
def results(broker: ManualBroker) -> ResultBackend:
    return broker.tasks.runtime.results()


@pytest.fixture
def service() -> KnowingService:
    return KnowingService()


@pytest.fixture
def sweep(broker: ManualBroker, results: ResultBackend, service: KnowingService) -> FlowSweep:
    return FlowSweep(results, lambda: service, broker.clock)


@pytest.fixture
def add(broker: ManualBroker) -> Task[..., int]:
    @broker.tasks.task
    def add(a: int, b: int = 0) -> int:
        if a < 0:
            raise NonRetryable("negative")
        return a + b

    return add


@pytest.fixture
def total(broker: ManualBroker) -> Task[..., int]:
    @broker.tasks.task
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    return total


def state_of_flow(results: ResultBackend, handle: TaskResult[int]) -> ResultStatus:
    record = results.read(flow_id_of(handle.id))
    assert record is not None
    return record.status


async def test_only_calls_whose_turn_it_is_are_asked_about_and_only_when_all_is_quiet(
    broker: ManualBroker, sweep: FlowSweep, service: KnowingService, add: Task[..., int], total: Task[..., int]
) -> None:
    (group(add.s(1), add.s(2)) | total.s()).delay()
    await broker.deliver(broker.messages.pop(0))
    broker.clock.advance(QUIET_MS - 1)
    assert sweep.run_once() == 1
    assert service.asked == []
    broker.clock.advance(EVERY_MS)
    sweep.run_once()
    assert service.asked == [broker.messages[0].envelope["id"]]
    assert service.reported == []


async def test_an_end_that_the_service_knows_is_passed_on_with_its_flow(
    broker: ManualBroker, sweep: FlowSweep, service: KnowingService, add: Task[..., int]
) -> None:
    handle = (add.s(1) | add.s(2)).delay()
    service.status = ResultStatus.FAILED
    broker.clock.advance(QUIET_MS)
    sweep.run_once()
    assert service.reported == [Subject("add", broker.take().envelope["id"], flow=flow_id_of(handle.id))]


async def test_a_failure_that_did_not_reach_the_later_calls_reaches_them(
    broker: ManualBroker, sweep: FlowSweep, results: ResultBackend, add: Task[..., int]
) -> None:
    """The process died between two writes."""
    handle = (add.s(1) | add.s(2) | add.s(3)).delay()
    plan = FlowPlan.read(results.open_flows(1)[0])
    results.write([plan.calls[0].ended(ResultStatus.FAILED, "ValueError: broken", broker.clock.now_ms())])
    broker.clock.advance(QUIET_MS)
    sweep.run_once()
    with pytest.raises(TaskFailed, match=r"the flow ended with add call_\w+: ValueError: broken"):
        handle.get(timeout=1)
    assert state_of_flow(results, handle) == "failed"
    assert results.open_flows(1) == []


async def test_a_flow_that_is_over_is_closed(
    broker: ManualBroker, sweep: FlowSweep, results: ResultBackend, add: Task[..., int]
) -> None:
    handle = (add.s(1) | add.s(2)).delay()
    plan = FlowPlan.read(results.open_flows(1)[0])
    results.write([plan.end.ended(ResultStatus.SUCCEEDED, "", broker.clock.now_ms())])
    sweep.run_once()
    assert state_of_flow(results, handle) == "succeeded"
    assert results.open_flows(1) == []


async def test_a_call_that_was_never_sent_ends_its_flow_after_some_days(
    broker: ManualBroker, sweep: FlowSweep, service: KnowingService, add: Task[..., int]
) -> None:
    handle = (add.s(1) | add.s(2)).delay()
    first = broker.messages[0]
    await broker.deliver()
    service.status = ResultStatus.UNKNOWN
    broker.clock.advance(LOST_MS - 1)
    sweep.run_once()
    assert handle._backend().read(handle.id) is None
    broker.clock.advance(EVERY_MS)
    sweep.run_once()
    with pytest.raises(TaskFailed, match="it was never sent: send the dead letter of the call before it again"):
        handle.get(timeout=1)
    broker.messages.clear()
    await broker.deliver(first, retried=1)  # the fix helps: the flow goes on
    await broker.deliver()
    assert handle.get(timeout=1) == 3


@pytest.mark.parametrize("how", [ResultStatus.FAILED, ResultStatus.CANCELLED, ResultStatus.EXPIRED])
async def test_a_flow_that_did_not_go_on_with_what_worked_is_resumed(
    broker: ManualBroker,
    sweep: FlowSweep,
    results: ResultBackend,
    service: KnowingService,
    add: Task[..., int],
    total: Task[..., int],
    how: ResultStatus,
) -> None:
    """The process died between the record of the last end and the message of the body."""
    handle = (group(add.s(1), add.s(2) | add.s(3), collect="successes") | total.s()).delay()
    await broker.deliver(broker.messages.pop(0))
    broker.messages.clear()
    plan = FlowPlan.read(results.open_flows(1)[0])
    results.write([plan.calls[1].ended(how, "gone", broker.clock.now_ms())])
    broker.clock.advance(QUIET_MS)
    sweep.run_once()  # ends the later call of the member
    assert service.reported == []
    service.status = ResultStatus.UNKNOWN
    broker.clock.advance(EVERY_MS)
    sweep.run_once()
    later = plan.calls[2]
    assert service.reported == [Subject("add", later.call_id, flow=flow_id_of(handle.id))]
    assert handle.status == "queued"


async def test_a_service_that_does_not_know_call_ids_gets_the_body_some_times_at_most(
    broker: ManualBroker, sweep: FlowSweep, service: KnowingService, add: Task[..., int], total: Task[..., int]
) -> None:
    (group(add.s(1), add.s(-1), collect="successes") | total.using(delay="1h").s()).delay()
    for message in broker.messages[:]:
        await broker.deliver(message)
    service.is_hosted = True
    looks = 12
    for _ in range(looks):
        broker.clock.advance(EVERY_MS)
        sweep.run_once()
    assert len(service.asked) == looks
    assert 1 <= len(service.reported) < 4


async def test_a_body_that_waits_at_the_service_is_left_alone(
    broker: ManualBroker, sweep: FlowSweep, service: KnowingService, add: Task[..., int], total: Task[..., int]
) -> None:
    handle = (group(add.s(1), add.s(-1), collect="successes") | total.using(delay="1h").s()).delay()
    for message in broker.messages[:]:
        await broker.deliver(message)
    broker.clock.advance(EVERY_MS)
    sweep.run_once()
    assert (service.asked, service.reported) == ([handle.id], [])


def test_one_process_looks_at_a_time(
    broker: ManualBroker, sweep: FlowSweep, results: ResultBackend, service: KnowingService, add: Task[..., int]
) -> None:
    (add.s(1) | add.s(2)).delay()
    other = FlowSweep(results, lambda: service, broker.clock)
    assert (sweep.run_once(), other.run_once()) == (1, 0)
    broker.clock.advance(EVERY_MS)
    assert (other.run_once(), sweep.run_once()) == (1, 0)


def test_a_service_that_does_not_answer_is_asked_again_later(
    broker: ManualBroker, sweep: FlowSweep, service: KnowingService, add: Task[..., int]
) -> None:
    group(add.s(n) | add.s(1) for n in range(2)).delay()
    service.is_down = True
    broker.clock.advance(QUIET_MS)
    assert sweep.run_once() == 2
    assert len(service.asked) == 2
    broker.clock.advance(EVERY_MS)
    sweep.run_once()
    assert len(service.asked) == 4


def test_a_sweeper_looks_until_it_is_closed(monkeypatch: pytest.MonkeyPatch, broker: ManualBroker) -> None:
    looked = threading.Semaphore(0)

    class BrokenSweep(FlowSweep):
        def run_once(self) -> int:
            looked.release()
            raise ResultError("the disk is full")

    monkeypatch.setattr(flow_sweep, "EVERY_MS", 1)
    sweeper = FlowSweeper(
        BrokenSweep(broker.tasks.runtime.results(), KnowingService, broker.clock), broker.tasks.runtime.random
    )
    assert looked.acquire(timeout=10)
    assert looked.acquire(timeout=10)
    sweeper.close()
    sweeper.close()
