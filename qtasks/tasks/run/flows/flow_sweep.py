"""The slow look at open flows: a lost report delays the end of a flow, it never loses one.

One process at a time looks, every few minutes. A flow that is over is closed. Where nothing has happened for long, the
service is asked about the calls that should be on their way; an end that it knows is passed on to the dispatcher.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from qtasks.clock import Clock
from qtasks.errors import QTasksError
from qtasks.randomness import Random
from qtasks.tasks.results.backend import Lock, ResultBackend, ResultRecord, ResultStatus
from qtasks.tasks.results.flow_plan import FlowPlan, PlannedCall
from qtasks.tasks.results.inquiry import Service, ServiceState, Subject, pass_on_end
from qtasks.tasks.run.cancellation import close_if_over
from qtasks.tasks.run.process_id import new_owner

log = logging.getLogger("qtasks.flow")

EVERY_MS: Final = 5 * 60 * 1000
"""Time between two looks, in all processes together; each process adds up to a half at random."""

QUIET_MS: Final = 2 * 60 * 1000
"""The service is asked about a flow in which nothing has happened for this long."""

LOST_MS: Final = 3 * 24 * 60 * 60 * 1000
"""A call whose turn came this long ago, and which the service does not know, was never sent."""

MAX_FLOWS: Final = 500
"""Flows in one look; those that were not looked at for the longest time come first."""

FEW_LOOKS_MS: Final = 4 * EVERY_MS
"""For this long a flow is resumed where the service cannot say whether it has gone on."""

_SUCCEEDED: Final = ResultStatus.SUCCEEDED
_LOCK: Final = "sweep:flows"


class FlowSweep:
    """Looks at the open flows in `results`. `service` opens what is asked; it raises QTasksError. May block."""

    def __init__(self, results: ResultBackend, service: Callable[[], Service], clock: Clock) -> None:
        self._results = results
        self._service = service
        self._clock = clock
        self._owner = new_owner()

    def run_once(self) -> int:
        """Look at the open flows unless another process does. Returns how many there were. Raises QTasksError."""
        now_ms = self._clock.now_ms()
        lock = Lock(_LOCK, self._owner, now_ms + EVERY_MS)
        (valid,) = self._results.lock([lock], now_ms=now_ms)
        if valid.owner != self._owner:
            return 0
        flows = self._results.open_flows(MAX_FLOWS)
        for flow in flows:
            try:
                self._look_at(flow, now_ms)
            except QTasksError as error:
                fields = {"action": "flow_unread", "call_id": flow.call_id}
                log.warning("the flow %s could not be looked at: %s", flow.call_id, error, extra=fields)
        if len(flows) == MAX_FLOWS:  # the others come first next time
            self._results.write([replace(flow, updated_ms=now_ms) for flow in self._still_open(flows)])
        return len(flows)

    def _still_open(self, flows: list[ResultRecord]) -> list[ResultRecord]:
        records = [self._results.read(flow.call_id) for flow in flows]
        return [record for record in records if record is not None and not record.status.is_final]

    def _look_at(self, flow: ResultRecord, now_ms: int) -> None:
        plan = FlowPlan.read(flow)
        if close_if_over(self._results, plan, now_ms=now_ms):
            return
        records = {call: self._results.read(call.call_id) for call in plan.calls}
        recorded = [record for record in records.values() if record is not None]
        quiet_ms = now_ms - max(record.updated_ms for record in (flow, *recorded))
        if quiet_ms < QUIET_MS:
            return
        succeeded = [record.call_id for record in recorded if record.status is ResultStatus.SUCCEEDED]
        is_lost = False
        for call in dict.fromkeys([*plan.due(succeeded), *plan.due_by(recorded)]):
            record = records[call]
            if record is None or not record.status.is_final:
                is_lost |= self._ask_about(plan, call, record, quiet_ms)
            else:  # the process died before it ended the later calls
                note = f"the flow ended with {call.task} {call.call_id}: {record.error}"
                later_calls = [later for later in plan.after(call.call_id) if records[later] is None]
                self._results.write([later.ended(record.status, note, now_ms) for later in later_calls])
        if is_lost:
            self._go_on_with_what_worked(plan)
        close_if_over(self._results, plan, now_ms=now_ms)

    def _go_on_with_what_worked(self, plan: FlowPlan) -> None:
        """Report the last failure in each group that has ended and goes on with what worked: the dispatcher does that.

        The process that saw it died, or could not reach the service.
        """
        for group in plan.collecting:
            records = [record for call in group.calls if (record := self._results.read(call.call_id)) is not None]
            failed = [record for record in records if record.status.is_final and record.status is not _SUCCEEDED]
            if failed and len(records) == len(group.calls) and all(record.status.is_final for record in records):
                last = max(failed, key=lambda record: record.updated_ms)
                fields = {"action": "flow_resumed", "task": last.task, "call_id": last.call_id}
                log.info("a flow goes on without %s %s", last.task, last.call_id, extra=fields)
                self._service().report_end(Subject(last.task, last.call_id, flow=plan.flow_id), _end_of(last))

    def _ask_about(self, plan: FlowPlan, call: PlannedCall, record: ResultRecord | None, quiet_ms: int) -> bool:
        """Ask the service about a call. Returns True if it seems that the call was never sent."""
        state = pass_on_end(self._service(), plan, call, record)
        if state is None:  # the hosted service knows no call ids; it is not given a call again and again
            return record is None and quiet_ms < FEW_LOOKS_MS
        if state.status is ResultStatus.UNKNOWN and quiet_ms >= LOST_MS:
            note = "it was never sent: send the dead letter of the call before it again, or start the flow again"
            log.error("%s %s: %s", call.task, call.call_id, note, extra=_fields("flow_lost", call))
            now_ms = self._clock.now_ms()
            lost = (call, *plan.after(call.call_id))
            self._results.write([each.ended(ResultStatus.FAILED, note, now_ms) for each in lost])
        return state.status is ResultStatus.UNKNOWN


class FlowSweeper:
    """Runs a sweep again and again, in a thread, until it is closed."""

    def __init__(self, sweep: FlowSweep, random: Random) -> None:
        self._sweep = sweep
        self._random = random
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="qtasks-flows", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, after the look that it has begun. Idempotent."""
        self._closed.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._closed.wait(EVERY_MS / 1000 * (1 + self._random.fraction() / 2)):
            try:
                self._sweep.run_once()
            except QTasksError as error:
                log.warning("open flows could not be looked at: %s", error, extra={"action": "sweep_failed"})


def _end_of(record: ResultRecord) -> ServiceState:
    """The recorded end of a call, as the service says it."""
    is_cancelled = record.status is ResultStatus.CANCELLED
    return ServiceState(
        status=ResultStatus.CANCELLED if is_cancelled else ResultStatus.FAILED,
        message_id=record.message_id,
        attempt=record.attempt,
        created_ms=record.updated_ms,
        reason=record.error,
    )


def _fields(action: str, call: PlannedCall) -> dict[str, object]:
    return {"action": action, "task": call.task, "call_id": call.call_id}
