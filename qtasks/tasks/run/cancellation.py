"""Cancelling a call: at the broker, in the results, and where it runs.

A call waits at the broker or runs in some process; which of the two changes at any moment. The process that runs
a call has its lock (see `lease`), so the lock decides: the canceller tries to take it. With the lock nothing runs, and
the call is recorded as cancelled: a later delivery finds that record and does not run. Without the lock the call is
recorded as cancelling. The process that runs it reads this with the next renewal of its lock, or at once if it is this
process; it stops the run and records how it ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from qtasks.clock import Clock
from qtasks.error_codes import ErrorCode
from qtasks.errors import ResultError
from qtasks.tasks.control import BY_CALLER
from qtasks.tasks.results.backend import Lock, ResultBackend, ResultRecord, ResultStatus
from qtasks.tasks.results.flow_plan import FlowPlan
from qtasks.tasks.results.task_result import CallToCancel
from qtasks.tasks.run.lease import BRIEF_LEASE_MS, run_key
from qtasks.tasks.run.process_id import is_gone, new_owner

log = logging.getLogger("qtasks.cancel")


@dataclass(frozen=True, slots=True, kw_only=True)
class Canceller:
    """Cancels a call. May block."""

    results: ResultBackend | None
    clock: Clock
    cancel_message: Callable[[str], bool]
    """Cancels a message at the broker, by message id or call id; False if the broker has none to cancel."""
    stop_here: Callable[[str], bool]
    """Stops the run of a call in this process; False if there is none."""
    finds_all: bool
    """False if the broker may have a message of the call that it does not find by the ids that are known."""

    def cancel(self, call: CallToCancel) -> bool:
        """See `ResultAccess.cancel_call`."""
        if self.results is None:
            return self._cancel_without_results(call)
        record = self.results.read(call.id)
        if record is not None and record.status.is_final:
            return record.status is ResultStatus.CANCELLED
        was_at_broker = self._cancel_at_broker(call, record)
        may_come = was_at_broker or call.is_planned or not self.finds_all
        call_id = call.id if record is None else record.call_id
        return self._cancel_in_results(self.results, call, call_id, may_come=may_come)

    def _cancel_at_broker(self, call: CallToCancel, record: ResultRecord | None = None) -> bool:
        """Cancel the message of a call, by each id under which the broker may have it."""
        message_ids = (call.id, call.message_id, None if record is None else record.message_id)
        return any(self.cancel_message(each) for each in dict.fromkeys(message_ids) if each is not None)

    def _cancel_in_results(self, results: ResultBackend, call: CallToCancel, call_id: str, *, may_come: bool) -> bool:
        """Record that a call is cancelled, or is being cancelled while it runs. False if it has ended.

        False, too, for a call without a record that does not run, unless a delivery `may_come`.
        """
        # Twice: the run may end between the first try and the record that it is being cancelled.
        for _ in range(2):
            lock = self._lock_of_idle_call(results, call_id)
            record = results.read(call_id)
            if lock is not None and record is None and not may_come:
                results.write((), [lock])
                return False
            if record is not None and record.status.is_final:
                results.write((), [] if lock is None else [lock])
                return record.status is ResultStatus.CANCELLED
            if lock is not None:
                results.write([self._record(call, record, ResultStatus.CANCELLED)], [lock, *call.locks])
                return True
            results.write([self._record(call, record, ResultStatus.CANCELLING)])
            self.stop_here(call_id)
        return True

    def _lock_of_idle_call(self, results: ResultBackend, call_id: str) -> Lock | None:
        """Take the lock of a call; None if it runs."""
        now_ms = self.clock.now_ms()
        lock = Lock(run_key(call_id), new_owner(), now_ms + BRIEF_LEASE_MS)
        (valid,) = results.lock([lock], now_ms=now_ms)
        if valid.owner != lock.owner and is_gone(valid.owner):
            results.write((), [valid])
            (valid,) = results.lock([lock], now_ms=now_ms)
        return lock if valid.owner == lock.owner else None

    def _record(self, call: CallToCancel, record: ResultRecord | None, status: ResultStatus) -> ResultRecord:
        now_ms = self.clock.now_ms()
        if record is not None:
            return replace(record, status=status, updated_ms=now_ms, error=BY_CALLER)
        return ResultRecord(
            call_id=call.id,
            message_id=call.message_id or call.id,
            task=call.task,
            status=status,
            attempt=1,
            updated_ms=now_ms,
            error=BY_CALLER,
        )

    def _cancel_without_results(self, call: CallToCancel) -> bool:
        """Cancel the message, and a run in this process. No other run can be reached."""
        was_at_broker = self._cancel_at_broker(call)
        if self.stop_here(call.id):
            return True
        if was_at_broker:
            fields = {"action": "cancel", "task": call.task, "call_id": call.id}
            log.warning(
                "%s %s was cancelled at the broker only: an attempt that runs in another process goes on, because no "
                "result backend is configured; set QTASKS_RESULTS in every process",
                call.task,
                call.id,
                extra=fields,
            )
        elif not self.finds_all:
            raise ResultError(
                f"{call.task} {call.id} cannot be cancelled: the broker may have it under an id that is not known here",
                fix="set QTASKS_RESULTS, or cancel through the handle that .delay() returned, after its batch was sent",
                code=ErrorCode.CALL_NOT_CANCELLABLE,
            )
        return was_at_broker


def cancel_flow(
    results: ResultBackend, flow: ResultRecord, cancel: Callable[[CallToCancel], bool], *, now_ms: int
) -> bool:
    """Cancel every call of an open flow that has not ended: `cancel` those on their way, record the later ones.

    The later ones first, so that a call that ends in this moment is not continued. Returns True if one was cancelled.
    """
    plan = FlowPlan.read(flow)
    ended = {call: record for call in plan.calls if (record := results.read(call.call_id)) and record.status.is_final}
    due = plan.due_by(ended.values())
    later_calls = [call for call in plan.calls if call not in due and call not in ended]
    results.write([call.ended(ResultStatus.CANCELLED, BY_CALLER, now_ms) for call in later_calls])
    on_their_way = [CallToCancel(task=call.task, id=call.call_id, is_planned=True) for call in due if call not in ended]
    cancelled = [cancel(call) for call in on_their_way]
    close_if_over(results, plan, now_ms=now_ms)
    return bool(later_calls) or any(cancelled)


def close_if_over(results: ResultBackend, plan: FlowPlan, *, now_ms: int) -> bool:
    """Close a flow whose last call has succeeded, or of which all calls have ended. Returns True if it is over."""
    records = (results.read(call.call_id) for call in plan.calls)
    closed = plan.closed((record for record in records if record is not None), now_ms)
    if closed is not None:
        results.write([closed], (), plan.all_ids)
    return closed is not None
