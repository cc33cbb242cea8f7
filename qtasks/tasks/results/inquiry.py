"""Asking the service about a call whose record says nothing for some time: it may be dead, or wait for something.

The broker reports ends by itself (`send.end_callback`), but a report may be late, and other services make none. So a
handle that is looked at asks, in growing intervals: a lost report delays an end, it never loses one.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Protocol

from qtasks.clock import Clock
from qtasks.tasks.results.backend import ResultBackend, ResultRecord, ResultStatus
from qtasks.tasks.results.flow_plan import FlowPlan, PlannedCall, flow_id_of

log = logging.getLogger("qtasks.result")

OVERDUE_MS: Final = 2_000
"""A record that has not changed for this long may be that of a dead call."""

PAUSE_FIRST_S: Final = 1.0
PAUSE_LAST_S: Final = 30.0
"""The first and the longest time between two questions about a call."""

MAX_CALLS: Final = 10_000
"""Calls whose answers are remembered; those that were looked at last stay."""

MAX_FLOWS: Final = 1_000
"""Open flows that are searched for a call that the service does not know: its turn may come."""

MAX_MEMBERS: Final = 20
"""Calls of an open flow that are asked about at once."""

MAX_THREADS: Final = 4
"""Questions of waiting handles at the same time."""

ENDED: Final = frozenset({ResultStatus.FAILED, ResultStatus.CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceState:
    """What the service says about a call."""

    status: ResultStatus
    """Failed, cancelled, unknown; succeeded if it was delivered; else queued, running or retrying."""
    message_id: str = ""
    attempt: int = 0
    """How many attempts have begun."""
    retries: int = 0
    created_ms: int = 0
    """When the message was published: Unix milliseconds of the service's clock."""
    reason: str | None = None
    """Why the last attempt failed, or what keeps the call from starting."""
    next_attempt_ms: int | None = None
    """When the next attempt is due, if that is in the future: Unix milliseconds."""
    is_reported: bool = False
    """True if the dispatcher has answered that it has ended the call."""


class Service(Protocol):
    """The QStash service, as far as a handle asks it."""

    def state_of(self, call_id: str, message_id: str | None) -> ServiceState | None:
        """What the service says about a call; None if it cannot say. Raises QTasksError if it does not answer."""
        ...

    def report_end(self, subject: Subject, state: ServiceState) -> None:
        """Let the dispatcher end a call as the service's own report would: hooks, flow, key. Raises QTasksError."""
        ...


@dataclass(frozen=True, slots=True)
class Subject:
    """The call that a question is about."""

    task: str
    """Its task; empty if it is not known. An end that is found is then not passed on."""
    call_id: str
    message_id: str | None = None
    unique: str | None = None
    """The unique key that it locks until it has ended, if that is known here."""
    flow: str | None = None
    """The flow that it belongs to, if that is known here."""


@dataclass(slots=True)
class _Answers:
    """What is known about one call."""

    next_s: float
    """When the next question may be asked, on the monotonic clock."""
    pause_s: float = PAUSE_FIRST_S
    state: ServiceState | None = None
    record: ResultRecord | None = None
    """The record when the question was asked: the answer says nothing about a later one."""
    reported: str = ""
    """The message whose end was passed on."""
    asking: threading.Lock = field(default_factory=threading.Lock)


class Inquiries:
    """Asks about calls, each at most once at a time and in growing intervals. Thread-safe.

    `service` and `results` open what is asked; both raise QTasksError.
    """

    def __init__(self, service: Callable[[], Service], results: Callable[[], ResultBackend], clock: Clock) -> None:
        self._service = service
        self._results = results
        self._clock = clock
        self._lock = threading.Lock()
        self._calls: OrderedDict[str, _Answers] = OrderedDict()
        self._threads = threading.BoundedSemaphore(MAX_THREADS)

    def state(self, subject: Subject, record: ResultRecord | None, *, at_once: bool = False) -> ServiceState | None:
        """What the service says about a call with this record, asked now if that is due; None if it says nothing new.

        Never raises: a service that cannot be reached says nothing. `at_once`: also the first time.
        """
        if not self._is_overdue(record):
            return None
        answers = self._of(subject, at_once=at_once)
        if self._clock.monotonic() >= answers.next_s and answers.asking.acquire(blocking=False):
            self._ask(subject, record, answers)
        return self._current(answers, record)

    def state_now(self, subject: Subject, record: ResultRecord | None) -> ServiceState | None:
        """What the service says about a call now, asked also if no question is due; None as in `state`."""
        if record is not None and record.status.is_final:
            return None
        answers = self._of(subject, at_once=True)
        answers.asking.acquire()
        self._ask(subject, record, answers, is_repeated=False)
        return self._current(answers, record)

    def is_due(self, subject: Subject, record: ResultRecord | None, *, at_once: bool = False) -> bool:
        """True if `state` would ask now, and so may block."""
        if not self._is_overdue(record):
            return False
        answers = self._of(subject, at_once=at_once)
        return self._clock.monotonic() >= answers.next_s and not answers.asking.locked()

    def known(self, subject: Subject, record: ResultRecord | None) -> ServiceState | None:
        """As `state`, without asking."""
        answers = self._calls.get(subject.call_id)
        return None if answers is None else self._current(answers, record)

    def ask_soon(
        self, subject: Subject, record: ResultRecord | None, wake: Callable[[], None], *, at_once: bool = False
    ) -> None:
        """Ask in a thread if that is due, then call `wake`. The answer is in `known`."""
        if not self._is_overdue(record):
            return
        answers = self._of(subject, at_once=at_once)
        if self._clock.monotonic() < answers.next_s or not self._threads.acquire(blocking=False):
            return
        if not answers.asking.acquire(blocking=False):
            self._threads.release()
            return

        def work() -> None:
            try:
                self._ask(subject, record, answers)
            finally:
                self._threads.release()
                wake()

        threading.Thread(target=work, name="qtasks-inquiry", daemon=True).start()

    def _is_outdated(self, service: Service, state: ServiceState, call_id: str, record: ResultRecord | None) -> bool:
        """True if an answer says nothing: the record is newer, or the turn of the unknown call comes later."""
        results = self._results()
        if state.status in ENDED:  # the call may have ended, or gone on, between the record and the answer
            return results.read(call_id) != record
        if state.status is not ResultStatus.UNKNOWN or (flow := _open_flow(results, call_id)) is None:
            return False
        _report_dead_calls(service, results, flow)
        return True

    def _is_overdue(self, record: ResultRecord | None) -> bool:
        if record is None:
            return True
        return not record.status.is_final and self._clock.now_ms() - record.updated_ms >= OVERDUE_MS

    def _of(self, subject: Subject, *, at_once: bool) -> _Answers:
        with self._lock:
            if (answers := self._calls.get(subject.call_id)) is None:
                now_s = self._clock.monotonic()
                answers = self._calls[subject.call_id] = _Answers(now_s if at_once else now_s + PAUSE_FIRST_S)
                if len(self._calls) > MAX_CALLS:
                    self._calls.popitem(last=False)
            self._calls.move_to_end(subject.call_id)
            return answers

    @staticmethod
    def _current(answers: _Answers, record: ResultRecord | None) -> ServiceState | None:
        return answers.state if answers.record == record else None

    def _ask(
        self, subject: Subject, record: ResultRecord | None, answers: _Answers, *, is_repeated: bool = True
    ) -> None:
        """Ask and store the answer. The caller has taken `answers.asking`; it is released here.

        `is_repeated`: the next question comes by itself, after a pause that grows.
        """
        try:
            service = self._service()
            message_id = record.message_id if record is not None else subject.message_id
            state = service.state_of(subject.call_id, message_id)
            if state is not None and self._is_outdated(service, state, subject.call_id, record):
                state = None
            answers.state, answers.record = state, record
            if state is None or state.status not in ENDED:
                return
            if subject.task and answers.reported != state.message_id:
                service.report_end(subject, state)
                answers.reported = state.message_id
        except Exception as error:  # any error: the record remains what it is
            fields = {"action": "inquiry_failed", "call_id": subject.call_id}
            log.debug("%s %s could not be looked up: %s", subject.task, subject.call_id, error, extra=fields)
        finally:
            if is_repeated:
                answers.next_s = self._clock.monotonic() + answers.pause_s
                answers.pause_s = min(answers.pause_s * 2, PAUSE_LAST_S)
            answers.asking.release()


def reason_of_wait(state: ServiceState | None) -> str | None:
    """Why a call waits; None if it has ended or runs, or nothing keeps it."""
    if state is None or state.status not in (ResultStatus.QUEUED, ResultStatus.RETRYING):
        return None
    parts = [] if state.reason is None else [state.reason]
    if state.next_attempt_ms is not None:
        due = datetime.fromtimestamp(state.next_attempt_ms / 1000, UTC).isoformat(timespec="seconds")
        parts.append(f"next attempt at {due}")
    return "; ".join(parts) or None


def _open_flow(results: ResultBackend, call_id: str) -> ResultRecord | None:
    """The record of the open flow that has a call, whose message is sent later; None if there is none."""
    flow = results.read(flow_id_of(call_id))
    if flow is not None and not flow.status.is_final:
        return flow
    return next((flow for flow in results.open_flows(MAX_FLOWS) if f'"{call_id}"' in (flow.value or "")), None)


def _report_dead_calls(service: Service, results: ResultBackend, flow: ResultRecord) -> None:
    """Let the dispatcher end the calls of a flow that are dead at the service: those after them wait for nothing."""
    plan = FlowPlan.read(flow)
    records = {call: results.read(call.call_id) for call in plan.calls}
    for call in plan.due_by(records.values())[:MAX_MEMBERS]:
        record = records[call]
        if record is None or not record.status.is_final:
            pass_on_end(service, plan, call, record)


def pass_on_end(
    service: Service, plan: FlowPlan, call: PlannedCall, record: ResultRecord | None
) -> ServiceState | None:
    """Ask about a call of a flow, and let the dispatcher end it if it has ended at the service. Returns the answer."""
    state = service.state_of(call.call_id, None if record is None else record.message_id)
    if state is not None and state.status in ENDED:
        fields = {"action": "flow_end_found", "task": call.task, "call_id": call.call_id}
        log.info("%s %s has ended unseen", call.task, call.call_id, extra=fields)
        service.report_end(Subject(call.task, call.call_id, flow=plan.flow_id), state)
    return state
