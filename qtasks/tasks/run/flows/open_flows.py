"""The records of flows in the dispatcher: later calls end when one fails, and a flow that is over keeps nothing.

A flow is over when its last call has succeeded, or when every call of it has ended: the members of a group beside one
that failed still run to their ends. Where a group goes on with what worked, only the later calls of the failed member
end. A call that fails and succeeds later, because its dead letter was sent again, reopens the flow: its later calls are
queued again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from qtasks.clock import Clock
from qtasks.errors import ResultError
from qtasks.tasks.results.backend import ResultRecord, ResultStatus
from qtasks.tasks.results.flow_plan import FlowPlan, PlannedCall
from qtasks.tasks.results.writer import ResultWriter

log = logging.getLogger("qtasks.dispatch")


@dataclass(frozen=True, slots=True)
class RecordedFlow:
    """A flow as the results know it."""

    plan: FlowPlan
    end: ResultRecord | None
    """The record of its last call."""

    @property
    def has_failed(self) -> bool:
        """True if a call has failed, so that the last one is recorded as failed, too."""
        return self.end is not None and self.end.status in (ResultStatus.FAILED, ResultStatus.EXPIRED)

    @property
    def has_succeeded(self) -> bool:
        """True if the last call has succeeded."""
        return self.end is not None and self.end.status is ResultStatus.SUCCEEDED

    @property
    def has_ended(self) -> bool:
        """True if the last call has ended, or will not be sent."""
        return self.end is not None and self.end.status.is_final

    @property
    def is_cancelled(self) -> bool:
        """True if the flow was cancelled."""
        return self.end is not None and self.end.status is ResultStatus.CANCELLED


class OpenFlows:
    """Reads and changes the records of flows."""

    def __init__(self, writer: ResultWriter, clock: Clock) -> None:
        self._writer = writer
        self._clock = clock

    async def read(self, flow_id: str | None) -> RecordedFlow | None:
        """A flow; None if it has no record, or no longer. Raises ResultError."""
        if flow_id is None or (record := await self._writer.read(flow_id)) is None:
            return None
        plan = FlowPlan.read(record)
        return RecordedFlow(plan, await self._writer.read(plan.end.call_id))

    async def end_calls(
        self, calls: Sequence[PlannedCall], status: ResultStatus, note: str, *, attempt: int, kept: bool
    ) -> None:
        """Record calls that will not be sent, because a call before them ended with this status."""
        now_ms = self._clock.now_ms()
        self._writer.record(call.ended(status, note, now_ms, attempt=attempt, kept=kept) for call in calls)
        await self._writer.flush()

    async def reopen(self, flow: RecordedFlow, call_id: str) -> None:
        """A call has succeeded: what had ended only because of it is queued again. Raises ResultError."""
        later_calls = set(flow.plan.after(call_id))
        if not any([await self._has_ended_otherwise(call) for call in later_calls]):
            return
        ended = [call for call in flow.plan.calls if await self._has_ended_otherwise(call)]
        for call in ended:
            if call not in later_calls:
                later_calls.difference_update(flow.plan.after(call.call_id))
        queued = [call for call in ended if call in later_calls]
        if not queued:
            return
        now_ms = self._clock.now_ms()
        records = [flow.plan.record(ResultStatus.RUNNING, now_ms), *(call.queued(now_ms) for call in queued)]
        self._writer.record(records)
        await self._writer.flush()
        log.info("a flow goes on after %s", call_id, extra={"action": "flow_reopened", "call_id": call_id})

    async def settle(self, flow_id: str | None, call_id: str) -> None:
        """Close the flow of a call that has ended, if the flow is over. A failure is logged."""
        if flow_id is None:
            return
        try:
            flow = await self.read(flow_id)
            if flow is None:  # pruned long ago: nothing else would release the record of the call
                self._writer.release([call_id])
            elif (closed := await self._closed(flow)) is not None:
                self._writer.record([closed])
                self._writer.release(flow.plan.all_ids)
            else:
                return
            await self._writer.flush()
        except ResultError:
            log.exception("a flow could not be closed", extra={"action": "flow_open", "call_id": call_id})

    async def _closed(self, flow: RecordedFlow) -> ResultRecord | None:
        """The last record of a flow that is over; None while it is open."""
        if flow.end is None or not flow.end.status.is_final:
            return None  # as for most calls: the others need not be read
        records = [flow.end]
        if flow.end.status is not ResultStatus.SUCCEEDED:
            others = [await self._writer.read(call.call_id) for call in flow.plan.calls]
            records = [record for record in others if record is not None]
        return flow.plan.closed(records, self._clock.now_ms())

    async def _has_ended_otherwise(self, call: PlannedCall) -> bool:
        """True if the call has ended without a result."""
        record = await self._writer.read(call.call_id)
        return record is not None and record.status.is_final and record.status is not ResultStatus.SUCCEEDED
