"""Handles ask the service: an end that nobody reported is found, and a call that waits says why."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from qtasks import QTasks, TaskEvent, chain
from qtasks.broker.ports import DeliveryRequest, Failure
from qtasks.errors import ResultError, ResultTimeout, TaskCancelled, TaskFailed
from qtasks.protocol.messages import Response
from qtasks.qstash.conversation.transport import Reply, Request
from qtasks.tasks.results import inquiry
from qtasks.tasks.results.backend import ResultRecord, ResultStatus
from qtasks.tasks.results.inquiry import Inquiries, ServiceState, Subject
from qtasks.tasks.results.memory import MemoryResults
from qtasks.tasks.task import SyncTask
from tests.support.broker import VirtualClock
from tests.support.simulated_broker import BASE_URL, SimulatedBroker

LOST = Failure("connection_lost", "the connection was cut before an answer")
REFUSED = Failure("connection_refused", "nothing listens at app.example.com:443")


class Deployment:
    """An application whose process dies, and whose reports of ends get lost, when a test says so."""

    def __init__(self, broker: SimulatedBroker) -> None:
        self.broker = broker
        self.outcome: Response | Failure | None = None
        """What the broker gets in place of the application's answer."""
        self.reports_arrive = True
        self.reported: list[str] = []
        self._send = broker.send
        broker.send = self.send  # type: ignore[method-assign]

    async def send(self, attempt: DeliveryRequest) -> Response | Failure:
        if "/_end?" in attempt.url:
            self.reported.append(attempt.url)
            return await self._send(attempt) if self.reports_arrive else REFUSED
        return await self._send(attempt) if self.outcome is None else self.outcome


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every question is due at once."""
    monkeypatch.setattr(inquiry, "PAUSE_FIRST_S", 0.0)
    monkeypatch.setattr(inquiry, "OVERDUE_MS", 0)


@pytest.fixture
def broker() -> Iterator[SimulatedBroker]:
    made = SimulatedBroker()
    yield made
    made.stop()


@pytest.fixture
def app(broker: SimulatedBroker) -> Deployment:
    return Deployment(broker)


@pytest.fixture
def tasks(broker: SimulatedBroker) -> Iterator[QTasks]:
    with broker.application() as made:
        yield made


@pytest.fixture
def failures(tasks: QTasks) -> list[TaskEvent]:
    seen: list[TaskEvent] = []
    tasks.on_failure(seen.append)
    return seen


@pytest.fixture
def work(tasks: QTasks) -> SyncTask[..., int]:
    @tasks.task(retries=0, interrupted_for=0)
    def work(n: int = 1) -> int:
        return n

    return work


# --- ends


def test_a_call_whose_end_was_not_reported_has_failed_all_the_same(
    broker: SimulatedBroker, app: Deployment, work: SyncTask[..., int], failures: list[TaskEvent]
) -> None:
    app.outcome, app.reports_arrive = LOST, False
    handle = work.delay()
    broker.run()
    with pytest.raises(TaskFailed, match="on attempt 1: DeliveryFailed: the connection was cut before an answer"):
        handle.get(timeout=10)
    assert handle.status is ResultStatus.FAILED
    assert handle.error == "DeliveryFailed: the connection was cut before an answer"
    assert failures == []


def test_what_a_handle_finds_reaches_the_dispatcher_which_ends_the_call_once(
    broker: SimulatedBroker, app: Deployment, work: SyncTask[..., int], failures: list[TaskEvent], tasks: QTasks
) -> None:
    app.outcome, app.reports_arrive = LOST, False
    handle = work.delay()
    broker.run()
    app.reports_arrive = True
    assert handle.status is ResultStatus.FAILED
    broker.run()
    record = tasks.runtime.results().read(handle.id)
    assert record is not None
    assert (record.status, record.message_id) == (ResultStatus.FAILED, handle.message_id)
    assert len(failures) == 1
    broker.advance(hours=1)  # the report of the broker itself arrives at last
    assert len(app.reported) > 2
    assert len(failures) == 1


def test_a_cancel_by_somebody_else_is_seen(
    broker: SimulatedBroker, app: Deployment, work: SyncTask[..., int], failures: list[TaskEvent]
) -> None:
    app.reports_arrive = False
    handle = work.using(delay="1h").delay()
    broker.call(broker.service.call("DELETE", f"/v2/messages/{handle.message_id}"))
    assert handle.status is ResultStatus.CANCELLED
    with pytest.raises(TaskCancelled, match="cancelled at the broker"):
        handle.get(timeout=10)


def test_a_unique_key_of_a_dead_call_is_free(broker: SimulatedBroker, app: Deployment, tasks: QTasks) -> None:
    @tasks.task(retries=0, interrupted_for=0, unique=True)
    def once() -> int:
        return 7

    app.outcome, app.reports_arrive = LOST, False
    once.delay()
    broker.run()
    broker.clock.advance(3_000)
    app.outcome = None
    again = once.delay()
    assert not again.deduplicated
    broker.run()
    assert again.get(timeout=10) == 7


def test_a_unique_key_of_a_call_that_waits_is_taken(broker: SimulatedBroker, tasks: QTasks) -> None:
    @tasks.task(unique=True)
    def once() -> None: ...

    first = once.delay()
    broker.clock.advance(3_000)
    assert once.delay().id == first.id


def test_a_flow_whose_call_is_dead_ends_though_nothing_was_reported(
    broker: SimulatedBroker, app: Deployment, work: SyncTask[..., int], failures: list[TaskEvent]
) -> None:
    app.outcome, app.reports_arrive = LOST, False
    handle = chain(work.s(1), work.s(), work.s()).delay()
    broker.run()
    app.reports_arrive = True
    assert not handle.is_finished
    broker.run()
    assert handle.status is ResultStatus.FAILED
    assert "the connection was cut before an answer" in (handle.error or "")
    assert len(failures) == 1


def test_a_success_is_not_asked_about(broker: SimulatedBroker, work: SyncTask[..., int]) -> None:
    handle = work.delay(7)
    broker.run()
    broker.requests.clear()
    assert (handle.status, handle.get()) == (ResultStatus.SUCCEEDED, 7)
    assert broker.requests == []


# --- why a call waits


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (REFUSED, "nothing listens at app.example.com:443"),
        (Failure("tls", "the certificate of app.example.com has expired"), "certificate"),
        (Response(status=401, body=b'{"error":"invalid signature"}'), "signing keys of another service"),
        (Response(status=418), "the destination answered 418"),
    ],
)
def test_a_handle_says_why_its_call_waits(
    broker: SimulatedBroker, app: Deployment, tasks: QTasks, outcome: Response | Failure, text: str
) -> None:
    @tasks.task(retry_delay="30s", interrupted_for=0)
    def work() -> None: ...

    app.outcome = outcome
    handle = work.delay()
    broker.run()
    assert text in (handle.waiting_for or "")
    assert (handle.waiting_for or "").endswith("next attempt at 2030-05-01T00:01:00+00:00")
    with pytest.raises(ResultTimeout, match=r"it is queued; it waits: .*next attempt at"):
        handle.get(timeout=0.2)


def test_a_name_that_no_task_has_is_named(broker: SimulatedBroker, tasks: QTasks) -> None:
    @tasks.task
    def work() -> None: ...

    sender = broker.application(BASE_URL)

    @sender.task
    def wrok() -> None: ...

    with sender:
        handle = wrok.delay()
        broker.apps[BASE_URL] = tasks.asgi_app()
        broker.run()
        assert "there is no task 'wrok' here; did you mean 'work'?" in (handle.waiting_for or "")


def test_a_delay_and_a_queue_are_reasons(broker: SimulatedBroker, tasks: QTasks) -> None:
    @tasks.task
    def work() -> None: ...

    assert work.using(delay="30s").delay().waiting_for == "next attempt at 2030-05-01T00:01:00+00:00"
    work.using(queue="q").delay()
    assert "queue q" in (work.using(queue="q").delay().waiting_for or "")


def test_a_call_says_why_it_waits_at_every_look(
    broker: SimulatedBroker, tasks: QTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()

    @tasks.task(retry_delay="30s")
    def fail() -> None:
        raise ConnectionError("no answer")

    @tasks.task
    def work() -> None: ...

    handles = [
        fail.delay(),
        work.using(delay="30s").delay(),
        *(work.using(key="mail", rate="1/1m").delay() for _ in range(2)),
    ]
    assert [handle.status for handle in handles] == ["queued"] * 4
    broker.run()
    expected = [
        "ConnectionError: no answer; next attempt at 2030-05-01T00:01:00+00:00",
        "next attempt at 2030-05-01T00:01:00+00:00",
        None,
        "it waits for flow-control key mail",
    ]
    for _ in range(2):
        assert [handle.waiting_for for handle in handles] == expected
    broker.advance(minutes=1, seconds=30)
    broker.run()
    assert [handle.waiting_for for handle in handles[1:]] == [None] * 3


def test_a_look_says_what_a_queue_does_now(broker: SimulatedBroker, tasks: QTasks) -> None:
    @tasks.task(queue="q")
    def work() -> None: ...

    first, second = work.delay(), work.delay()
    assert second.waiting_for == "it waits for queue q"
    assert first.cancel()
    assert second.waiting_for is None


def test_a_call_that_waits_for_its_retry_says_why_though_the_broker_does_not_answer(
    broker: SimulatedBroker, tasks: QTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    @tasks.task
    def fail() -> None:
        raise ConnectionError("no answer")

    handle = fail.delay()
    broker.run()
    monkeypatch.setattr(broker, "handle", lambda _: Reply(403, (), b""))
    assert handle.waiting_for == "ConnectionError: no answer"


# --- ids


def test_an_id_that_nobody_knows_is_unknown(work: SyncTask[..., int]) -> None:
    handle = work.result("call_never")
    assert handle.status is ResultStatus.UNKNOWN
    assert not handle.is_finished
    with pytest.raises(ResultError, match="unknown") as error:
        handle.get()
    assert error.value.code == "QT433"
    assert asyncio.run(_astatus(handle)) is ResultStatus.UNKNOWN


async def _astatus(handle: Any) -> ResultStatus:
    status: ResultStatus = await handle.astatus()
    return status


def test_the_id_of_a_call_that_waits_is_known(work: SyncTask[..., int]) -> None:
    assert work.result(work.delay().id).status is ResultStatus.QUEUED


def test_the_end_of_a_chain_is_not_unknown_before_its_turn(work: SyncTask[..., int]) -> None:
    assert chain(work.s(), work.s()).delay().status is ResultStatus.QUEUED


def test_a_broker_that_refuses_to_answer_does_not_break_a_handle(
    broker: SimulatedBroker, work: SyncTask[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = work.delay()

    def fail(_: Request) -> Reply:
        return Reply(403, (), b"")

    monkeypatch.setattr(broker, "handle", fail)
    assert handle.status is work.result("call_never").status is ResultStatus.QUEUED
    assert handle.waiting_for is None


# --- how often


class CountingService:
    """Counts the questions about a call that waits."""

    def __init__(self) -> None:
        self.asked = 0

    def state_of(self, call_id: str, message_id: str | None) -> ServiceState | None:
        self.asked += 1
        return ServiceState(status=ResultStatus.QUEUED, message_id="msg_1")

    def report_end(self, subject: Subject, state: ServiceState) -> None:
        raise AssertionError("a call that waits has not ended")


def test_a_loop_that_polls_asks_less_and_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    clock, service, results = VirtualClock(), CountingService(), MemoryResults(ttl_ms=1_000)
    inquiries = Inquiries(lambda: service, lambda: results, clock)
    subject = Subject("work", "call_1")
    moments: list[float] = []
    for tenth in range(3000):
        before = service.asked
        inquiries.state(subject, None)
        if service.asked > before:
            moments.append(tenth / 10)
        clock.advance(100)
    assert moments == [1, 2, 4, 8, 16, 32, 62, 92, 122, 152, 182, 212, 242, 272]


def test_a_record_that_has_just_changed_says_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    clock, service, results = VirtualClock(), CountingService(), MemoryResults(ttl_ms=1_000)
    inquiries = Inquiries(lambda: service, lambda: results, clock)
    running = ResultRecord(
        call_id="call_1",
        message_id="msg_1",
        task="work",
        status=ResultStatus.RUNNING,
        attempt=1,
        updated_ms=clock.now_ms(),
    )
    subject = Subject("work", "call_1")
    assert inquiries.state(subject, running, at_once=True) is None
    clock.advance(2_000)
    assert inquiries.state(subject, running, at_once=True) is not None
    # The answer is about that record, not about a later one.
    assert inquiries.state(subject, replace(running, updated_ms=clock.now_ms())) is None
    assert service.asked == 1
