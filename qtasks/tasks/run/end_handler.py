"""Ends that only the broker saw, which it reports to the URL that `send.end_callback` describes.

A process was killed in the last attempt of a call, or was away for all of them, or the message was cancelled.

An end belongs to a call and a message. It changes nothing if the call has succeeded, if the end of that message is
recorded, or while another message of the call is under way. A dead letter that is sent again is a new message, so its
end is a new one: hooks are called once for each.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from qtasks.clock import Clock
from qtasks.errors import QTasksError
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.context import RunLink, TaskContext
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.results.backend import ResultRecord, ResultStatus
from qtasks.tasks.results.writer import ResultWriter
from qtasks.tasks.run.attempt import Attempt, Delivery, Execution
from qtasks.tasks.run.decision import Decision, DispatchResponse, error_text
from qtasks.tasks.run.end_report import EndReport, read_report
from qtasks.tasks.send import end_callback

log = logging.getLogger("qtasks.dispatch")

RETRY_AFTER_MS = 5_000
"""The wait for a results backend or a broker that does not answer."""

IsOpen = Callable[[str, str, str | None], Awaitable[bool]]
"""``await is_open(call_id, ended, message_id)``: True if a message of the call other than `ended` is under way.

`message_id` is one that may be. Raises QTasksError if the broker does not answer.
"""


class EndHandler:
    """Reads the reports of ends, and decides what each one changes. None as `is_open`: no broker can be asked."""

    def __init__(
        self, tasks: Mapping[str, BaseTask[..., Any]], writer: ResultWriter, is_open: IsOpen | None, clock: Clock
    ) -> None:
        self._tasks = tasks
        self._writer = writer
        self._is_open = is_open
        self._clock = clock

    def read(self, delivery: Delivery) -> Attempt:
        """The attempt that a verified report makes of an end. Raises PayloadError for a malformed one."""
        query, report = end_callback.read(delivery.query), read_report(delivery.body)
        call_id = query.call_id or envelopes.call_id_of_message(report.message_id)
        task = self._tasks.get(query.task)
        context = TaskContext(
            task=query.task if task is None else task.name,
            call_id=call_id,
            message_id=report.message_id,
            attempt=report.attempt,
            retries=report.retries,
            link=RunLink(self._clock.monotonic(), self._clock.monotonic),  # no time to wait for a run: it comes again
        )
        return Attempt(
            task=_unknown_task(query.task) if task is None else task,
            context=context,
            envelope=Envelope(call_id, retries=report.retries, unique=query.unique, flow=report.flow),
            decide=functools.partial(self._decide, report),
            flow_id=query.flow,
            is_superseded=query.is_request and not report.is_cancelled,  # its failure callback reports the same failure
            refused=_acknowledged,
        )

    async def _decide(self, report: EndReport, attempt: Attempt, _: Execution) -> Decision:
        try:
            record = await self._writer.read(attempt.context.call_id)
            changes = await self._changes(report, attempt.context.call_id, record)
        except QTasksError as error:
            return Decision.duplicate(DispatchResponse.later(error_text(error), error.code, after_ms=RETRY_AFTER_MS))
        if not changes:
            if record is not None and record.status is ResultStatus.EXPIRED and attempt.flow_id is not None:
                # What follows it may not know of that yet.
                return Decision.cancelled(record.error or "")._replace(status=ResultStatus.EXPIRED)
            return Decision.duplicate(DispatchResponse.acknowledgement())
        if report.is_cancelled:
            return Decision.cancelled("cancelled at the broker")
        return Decision.of_reported_failure(report.reason, notifies=not report.is_known)

    async def _changes(self, report: EndReport, call_id: str, record: ResultRecord | None) -> bool:
        """True if the report is news about the call."""
        if record is not None and record.status.is_final:
            is_other_failure = record.status is ResultStatus.FAILED and record.message_id != report.message_id
            # A dead letter that was sent again left no trace. An older message changes nothing.
            return is_other_failure and report.created_ms >= record.updated_ms
        if report.is_known and not self._writer.is_enabled:
            return False
        if self._is_open is None:
            return True
        return not await self._is_open(call_id, report.message_id, None if record is None else record.message_id)


def _acknowledged(response: DispatchResponse) -> DispatchResponse:
    """The response if the call runs elsewhere (the report comes again later) or has ended (there is no news)."""
    return response if response.status == 503 else DispatchResponse.acknowledgement()


def _unknown_task(name: str) -> BaseTask[..., Any]:
    """A task that this deployment does not have: its calls end, and it has no hooks."""

    def get_runtime() -> Any:
        raise NotImplementedError

    return BaseTask(get_runtime, lambda: None, name=name, options={})
