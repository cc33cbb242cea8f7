"""Many calls in one request: ``with tasks.batch(): ...``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Hashable, Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from qtasks.errors import BrokerUnreachable, PartlyRefused
from qtasks.tasks.results.backend import ResultRecord, ResultStatus
from qtasks.tasks.results.flow_plan import FlowPlan, PlannedCall
from qtasks.tasks.results.task_result import TaskResult
from qtasks.tasks.send.outgoing import Outgoing
from qtasks.tasks.send.runtime_port import Runtime
from qtasks.tasks.send.send_middleware import EnteredMiddleware

if TYPE_CHECKING:
    from typing import Self

    from qtasks.qstash.operations.publishing import BatchError, PublishResponse

log = logging.getLogger("qtasks.batch")

_open: ContextVar[tuple[Batch, ...]] = ContextVar("qtasks_batches", default=())


class BatchedCall(NamedTuple):
    """A call that waits for the end of its batch."""

    message: Outgoing
    handle: TaskResult[Any]
    middleware: EnteredMiddleware
    caller: Hashable
    """See `_caller`."""


@dataclass(frozen=True, slots=True)
class BatchedFlow:
    """A flow whose first calls wait for the end of a batch."""

    plan: FlowPlan
    caller: Hashable


class Batch:
    """Sends the calls made inside together when the block ends; sends none of its calls if the block raises.

    Until the end of the block the handles have no `message_id`. The end raises what `.delay()` raises, and
    PartlyRefused if the broker refused some of the calls. Works as ``with`` and as ``async with``.

    Threads and asyncio tasks that were started inside may go on after the block. What they call until its end is sent
    with it, also if the block raises, because nothing tells them; what they call later is sent at once. The same goes
    for a process that was forked inside: it sends its own calls at once, and none of those that the batch has.

    With `joins`, a batch inside another one of the same application hands its calls to that one.
    """

    def __init__(self, runtime: Runtime, *, joins: bool = False) -> None:
        self._runtime = runtime
        self._joins = joins
        self._process = os.getpid()
        self._changing = threading.Lock()
        self._is_open = False
        self._caller: Hashable = None
        self._calls: list[BatchedCall] = []
        self._not_sent: list[TaskResult[Any]] = []
        """Handles on unique calls that were not sent: their keys must be unlocked."""
        self._flows: list[BatchedFlow] = []
        """Flows whose first calls are in the batch."""
        self._unsent_flows: list[FlowPlan] = []
        """Flows that have a record, and of which nothing was sent."""
        self._unsent_calls: list[ResultRecord] = []
        """Records of calls of flows that were not sent, and of those after them."""
        self._token: Token[tuple[Batch, ...]] | None = None

    @classmethod
    def current(cls, runtime: Runtime) -> Batch | None:
        """The innermost open batch of this application in this context."""
        for batch in reversed(_open.get()):
            if batch.serves(runtime):
                return batch
        return None

    def serves(self, runtime: Runtime) -> bool:
        """True if calls through `runtime` belong to this batch: it is open, and not that of a parent process."""
        return self._runtime is runtime and self._is_open and self._process == os.getpid()

    def add(self, message: Outgoing, handle: TaskResult[Any], middleware: EnteredMiddleware) -> bool:
        """Add a call that is sent at the end of the block. False if the block has ended meanwhile."""
        return self.take([BatchedCall(message, handle, middleware, _caller())], ())

    def open_flow(self, plan: FlowPlan | None) -> None:
        """Write the record of a flow before its calls are sent, if it has one."""
        if plan is not None:
            self._flows.append(BatchedFlow(plan, _caller()))

    def take(self, calls: Sequence[BatchedCall], flows: Sequence[BatchedFlow]) -> bool:
        """Add the calls and the flows of a batch that joins this one. False if this one has ended meanwhile."""
        with self._changing:
            if self._is_open:
                self._calls.extend(calls)
                self._flows.extend(flows)
            return self._is_open

    def __len__(self) -> int:
        """The number of calls that wait."""
        return len(self._calls)

    def __enter__(self) -> Self:
        self._is_open, self._caller, self._process = True, _caller(), os.getpid()
        self._token = _open.set((*_open.get(), self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if messages := self._ended(error):
                self._write_flows()
                self._conclude(self._runtime.publisher().publish_many(messages))
        except BaseException as failure:
            unsent = self._fail(failure)
            if error is None or not isinstance(failure, Exception):
                raise
            _note_unsent(error, unsent, failure)
        finally:
            self._undo()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if messages := self._ended(error):
                if self._flows:
                    await asyncio.to_thread(self._write_flows)
                publisher = await self._runtime.apublisher()
                self._conclude(await publisher.apublish_many(messages))
        except BaseException as failure:
            unsent = self._fail(failure)
            if error is None or not isinstance(failure, Exception):
                raise
            _note_unsent(error, unsent, failure)
        finally:
            if self._not_sent or self._unsent_flows or self._unsent_calls:
                await asyncio.to_thread(self._undo)

    def _ended(self, error: BaseException | None) -> list[Outgoing]:
        """Close the batch and return the messages to send."""
        assert self._token is not None
        with contextlib.suppress(ValueError):  # a generator may be closed in another context than it has begun in
            _open.reset(self._token)
        if self._process != os.getpid():  # the parent sends them
            self._calls, self._flows, self._is_open = [], [], False
            return []
        with self._changing:
            self._is_open = False
        if error is not None and not isinstance(error, GeneratorExit):
            self._drop(error)
        if self._joins and error is None:
            while (outer := Batch.current(self._runtime)) is not None:
                if outer.take(self._calls, self._flows):
                    self._calls, self._flows = [], []
                    break
        return [call.message for call in self._calls]

    def _drop(self, error: BaseException) -> None:
        """Leave out what the block itself has called: `error` leaves it. Others who called inside do not see that."""
        others = [call for call in self._calls if call.caller != self._caller]
        self._calls = [call for call in self._calls if call.caller == self._caller]
        self._flows = [flow for flow in self._flows if flow.caller != self._caller]
        try:
            self._fail(error)
        finally:
            self._calls = others

    def _write_flows(self) -> None:
        """Write the records of all flows of the batch at once. Raises ResultError."""
        if self._flows:
            now_ms = self._runtime.now_ms()
            carried = {call.message.envelope.flow.get("id"): call.message.carried for call in self._calls}
            self._flows = [
                replace(flow, plan=flow.plan.carrying(carried.get(flow.plan.flow_id, {}))) for flow in self._flows
            ]
            plans = [flow.plan for flow in self._flows]
            self._runtime.results().write([plan.record(ResultStatus.RUNNING, now_ms) for plan in plans])
            self._unsent_flows = plans

    def _undo(self) -> None:
        """Unlock the keys of calls that were not sent, and end the flows that cannot go on. Raises ResultError."""
        for handle in self._not_sent:
            handle.unlock()
        if self._unsent_flows or self._unsent_calls:
            now_ms, note = self._runtime.now_ms(), "the flow was not sent"
            ended = [plan.record(ResultStatus.FAILED, now_ms, note) for plan in self._unsent_flows]
            released = [plan.flow_id for plan in self._unsent_flows]
            self._runtime.results().write([*ended, *self._unsent_calls], (), released)

    def _fail(self, error: BaseException) -> int:
        """Pass `error` to the middleware, and note the keys to unlock: nothing was sent. Returns how many calls."""
        if isinstance(error, BrokerUnreachable) and error.sent:
            self._unsent_flows = []  # the broker may have the calls
        calls, self._calls = self._calls, []
        self._not_sent.extend(call.handle for call in calls if call.handle.has_lock)
        for call in calls:
            call.middleware.fail(error)
        return len(calls)

    def _conclude(self, answers: Sequence[PublishResponse | BatchError]) -> None:
        """Pass the broker's answers to the handles and to the middleware. Raises PartlyRefused."""
        from qtasks.qstash.operations.publishing import BatchError

        calls, self._calls = self._calls, []
        self._unsent_flows = []
        refused: dict[str, str] = {}
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, BatchError):
                call_id = call.message.call_id
                refused[call_id] = answer.error
                self._not_sent.extend([call.handle] if call.handle.has_lock else [])
                call.middleware.fail(PartlyRefused(answer.error, refused={call_id: answer.error}))
                self._end_flow_of(call.message, ResultStatus.FAILED, f"the broker refused it: {answer.error}")
            else:
                if answer.deduplicated:
                    note = f"message {answer.message_id} with the same deduplication id takes its place"
                    self._end_flow_of(call.message, ResultStatus.CANCELLED, note)
                call.handle.accepted(answer.message_id, deduplicated=answer.deduplicated)
                call.middleware.succeed(call.handle)
        if refused:
            first = next(iter(refused.values()))
            raise PartlyRefused(
                f"{len(refused)} of {len(answers)} calls were refused, the first one with: {first}", refused=refused
            )

    def _end_flow_of(self, message: Outgoing, status: ResultStatus, note: str) -> None:
        """Note that a call which starts a flow was not sent, so that neither it nor what follows it runs."""
        call = PlannedCall(message.task, message.call_id)
        for plan in (flow.plan for flow in self._flows):
            if call in plan.calls:
                later = f"the flow ended with {call.task} {call.call_id}: {note}"
                now_ms = self._runtime.now_ms()
                self._unsent_calls.append(call.ended(status, note, now_ms))
                self._unsent_calls.extend(after.ended(status, later, now_ms) for after in plan.after(call.call_id))


def _caller() -> Hashable:
    """Who makes a call: a thread, or an asyncio task in it."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return task or threading.get_ident()


def _note_unsent(error: BaseException, count: int, failure: BaseException) -> None:
    """Add to the error that leaves a block that the calls of others could not be sent, either."""
    text = f"{count} calls that other threads or asyncio tasks made inside the batch were not sent: {failure}"
    log.error(text, extra={"action": "batch_lost"})
    error.add_note(text)
