"""A delivery, and the attempt at a call that it starts."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

from qtasks.clock import Clock
from qtasks.errors import QTasksError
from qtasks.protocol.messages import DEFAULT_RETRIES, DEFAULT_TIMEOUT_MS
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.context import RunLink, TaskContext
from qtasks.tasks.control import AttemptTimeout
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.encode.parameters import Values
from qtasks.tasks.hooks import TaskEvent
from qtasks.tasks.results.backend import ResultRecord, ResultStatus
from qtasks.tasks.run.decision import Decision, DispatchResponse
from qtasks.tasks.run.run import Invoke, Run
from qtasks.tasks.send.outgoing import Outgoing, StoredCall

MARGIN_S = 1.0
"""An attempt is stopped this long before the broker's timeout, so that the broker gets the reason.

If a tenth of the timeout is shorter, it is stopped that long before. A ``def``, which is only asked to stop then, has
half of that time to end by itself.
"""

NOTHING_CARRIED: Final[Mapping[str, str]] = MappingProxyType({})


class Delivery(NamedTuple):
    """One message that arrived for a task. The signature covers `task`, `query` and `body` only."""

    task: str
    body: bytes
    signature: str
    message_id: str
    retried: int
    schedule_id: str | None = None
    query: str = ""
    """Raw query string. Only callbacks have one."""
    call: str = ""
    """The header in which a callback carries its call."""

    def __repr__(self) -> str:
        return f"Delivery(task={self.task!r}, message_id={self.message_id!r})"  # the rest may be secret


class Execution(Protocol):
    """What the handler of an attempt needs in order to run or republish its call."""

    async def run(self, attempt: Attempt, run: Run) -> Decision:
        """Run the function and decide what its end means."""
        ...

    async def republish(self, attempt: Attempt, message: Outgoing, note: str, *, action: str) -> Decision:
        """Send the message that the call continues as; `action` is the word for it, and `note` the reason."""
        ...


Decide = Callable[["Attempt", Execution], Awaitable[Decision]]


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One attempt at a call: what arrived and, as it proceeds, its arguments and its return value or exception."""

    task: BaseTask[..., Any]
    context: TaskContext
    envelope: Envelope
    invoke: Invoke | None = None
    """Runs the task if it has dependencies."""
    decide: Decide | None = None
    """Decides the attempt of a callback; None: the arguments are decoded and the function runs."""
    source: str | None = None
    """Id of the original request, if this delivery is the callback with its answer."""
    stored: StoredCall | None = None
    """The part of the call that was too large to travel with the message; stored in the result backend."""
    flow_id: str | None = None
    """Id of the flow that the call belongs to, for a delivery that does not carry the flow itself."""
    is_superseded: bool = False
    """True if another delivery reports the same: this one is acknowledged, and nothing is done."""
    is_brief: bool = False
    """True if the attempt takes no time: duplicates wait for it instead of coming back later."""
    can_expire: bool = True
    """True if the call must not run after its `expires_ms`."""
    refused: Callable[[DispatchResponse], DispatchResponse] | None = None
    """Changes the response if the call is running elsewhere or has ended; None: it is sent as it is."""
    arguments: Values = field(default_factory=dict)
    error: BaseException | None = None
    value: Any = None
    began_s: float = 0.0
    """When the attempt was admitted, on the monotonic clock."""
    running: asyncio.Task[Any] | None = None
    """The asyncio task that executes the attempt."""

    @property
    def overrun(self) -> Future[Any] | None:
        """The end of the function if its thread runs on, although the time of the attempt was up; otherwise None."""
        return self.context.link.thread.overrun if isinstance(self.error, AttemptTimeout) else None

    @property
    def kept_for(self) -> str | None:
        """Id of the flow that keeps the record of the call; None outside of flows that have a record."""
        return self.flow_id or self.envelope.flow.get("id")

    def unfit(self, error: QTasksError) -> Decision:
        """The decision about a call that cannot run because of `error`."""
        self.error = error
        return Decision.of_unfit_call(self.context, error)

    def event(self, decision: Decision) -> TaskEvent:
        """The attempt as hooks get it."""
        return TaskEvent(
            context=self.context, arguments=self.arguments, error=self.error, reason=decision.note, value=self.value
        )

    def records(
        self, status: ResultStatus, now_ms: int, value: str | None = None, error: str | None = None
    ) -> list[ResultRecord]:
        """The records of the call in this state."""
        context = self.context
        record = ResultRecord(
            call_id=context.call_id,
            message_id=context.message_id,
            task=context.task,
            status=status,
            attempt=context.attempt,
            updated_ms=now_ms,
            value=value,
            error=error,
            progress=context.link.progress,
            kept=self.kept_for is not None,
        )
        records = [record]
        if self.source is not None and self.source != context.message_id:
            # The handle of a deduplicated call knows it by the id of the original request.
            records.append(replace(record, call_id=self.source, message_id=self.source, kept=False))
        if self.stored is not None and status.is_final:
            records.append(self.stored.record(context.task, now_ms, status))
        return records


def context_of(task: str, delivery: Delivery, envelope: Envelope, clock: Clock) -> TaskContext:
    """The context of a delivery that carries `envelope` and arrives now."""
    timeout_s = (envelope.timeout_ms or DEFAULT_TIMEOUT_MS) / 1000
    margin_s = min(MARGIN_S, timeout_s / 10)
    limit_s = timeout_s - margin_s
    return TaskContext(
        task=task,
        call_id=envelope.call_id or envelopes.call_id_of_message(delivery.message_id),
        message_id=delivery.message_id,
        attempt=delivery.retried + 1,
        retries=DEFAULT_RETRIES if envelope.retries is None else envelope.retries,
        schedule_id=envelope.schedule or delivery.schedule_id,
        snoozed=envelope.snoozed,
        carried=MappingProxyType(dict(envelope.carried)) if envelope.carried else NOTHING_CARRIED,
        deadline=datetime.fromtimestamp(clock.now_ms() / 1000 + limit_s, UTC),
        link=RunLink(clock.monotonic() + limit_s, clock.monotonic, grace_s=margin_s / 2),
    )
