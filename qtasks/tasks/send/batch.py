"""Many calls in one request: ``with tasks.batch(): ...``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

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

_open: ContextVar[tuple[Batch, ...]] = ContextVar("qtasks_batches", default=())


@dataclass(frozen=True, slots=True)
class BatchedCall:
    """A call that waits for the end of its batch."""

    message: Outgoing
    handle: TaskResult[Any]
    middleware: EnteredMiddleware


class Batch:
    """Sends the calls made inside together when the block ends; sends none of them if the block raises.

    Until the end of the block the handles have no `message_id`. The end raises what `.delay()` raises, and
    PartlyRefused if the broker refused some of the calls. Works as ``with`` and as ``async with``.

    With `joins`, a batch inside another one of the same application hands its calls to that one.
    """

    def __init__(self, runtime: Runtime, *, joins: bool = False) -> None:
        self._runtime = runtime
        self._joins = joins
        self._calls: list[BatchedCall] = []
        self._not_sent: list[TaskResult[Any]] = []
        """Handles on unique calls that were not sent: their keys must be unlocked."""
        self._flows: list[FlowPlan] = []
        """Flows whose first calls are in the batch."""
        self._unsent_flows: list[FlowPlan] = []
        """Flows that have a record, and of which nothing was sent."""
        self._unsent_calls: list[ResultRecord] = []
        """Records of calls of flows that were not sent, and of those after them."""
        self._token: Token[tuple[Batch, ...]] | None = None

    @classmethod
    def current(cls, runtime: Runtime) -> Batch | None:
        """The innermost open batch of this application in this context."""
        return next((batch for batch in reversed(_open.get()) if batch.serves(runtime)), None)

    def serves(self, runtime: Runtime) -> bool:
        """True if calls through `runtime` belong to this batch."""
        return self._runtime is runtime

    def add(self, message: Outgoing, handle: TaskResult[Any], middleware: EnteredMiddleware) -> None:
        """Add a call that is sent at the end of the block."""
        self._calls.append(BatchedCall(message, handle, middleware))

    def open_flow(self, plan: FlowPlan | None) -> None:
        """Write the record of a flow before its calls are sent, if it has one."""
        if plan is not None:
            self._flows.append(plan)

    def take(self, calls: Sequence[BatchedCall], flows: Sequence[FlowPlan]) -> None:
        """Add the calls and the flows of a batch that joins this one."""
        self._calls.extend(calls)
        self._flows.extend(flows)

    def __len__(self) -> int:
        """The number of calls that wait."""
        return len(self._calls)

    def __enter__(self) -> Self:
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
            self._fail(failure)
            raise
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
            self._fail(failure)
            raise
        finally:
            if self._not_sent or self._unsent_flows or self._unsent_calls:
                await asyncio.to_thread(self._undo)

    def _ended(self, error: BaseException | None) -> list[Outgoing]:
        """Close the batch and return the messages to send."""
        assert self._token is not None
        _open.reset(self._token)
        if error is not None:
            self._fail(error)
        elif self._joins and (outer := Batch.current(self._runtime)) is not None:
            outer.take(self._calls, self._flows)
            self._calls, self._flows = [], []
        return [call.message for call in self._calls]

    def _write_flows(self) -> None:
        """Write the records of all flows of the batch at once. Raises ResultError."""
        if self._flows:
            now_ms = self._runtime.now_ms()
            carried = {call.message.envelope.flow.get("id"): call.message.carried for call in self._calls}
            self._flows = [plan.carrying(carried.get(plan.flow_id, {})) for plan in self._flows]
            self._runtime.results().write([plan.record(ResultStatus.RUNNING, now_ms) for plan in self._flows])
            self._unsent_flows = self._flows

    def _undo(self) -> None:
        """Unlock the keys of calls that were not sent, and end the flows that cannot go on. Raises ResultError."""
        for handle in self._not_sent:
            handle.unlock()
        if self._unsent_flows or self._unsent_calls:
            now_ms, note = self._runtime.now_ms(), "the flow was not sent"
            ended = [plan.record(ResultStatus.FAILED, now_ms, note) for plan in self._unsent_flows]
            released = [plan.flow_id for plan in self._unsent_flows]
            self._runtime.results().write([*ended, *self._unsent_calls], (), released)

    def _fail(self, error: BaseException) -> None:
        """Pass `error` to the middleware, and note the keys to unlock: nothing was sent."""
        if isinstance(error, BrokerUnreachable) and error.sent:
            self._unsent_flows = []  # the broker may have the calls
        calls, self._calls = self._calls, []
        self._not_sent.extend(call.handle for call in calls if call.handle.has_lock)
        for call in calls:
            call.middleware.fail(error)

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
        for plan in self._flows:
            if call in plan.calls:
                later = f"the flow ended with {call.task} {call.call_id}: {note}"
                now_ms = self._runtime.now_ms()
                self._unsent_calls.append(call.ended(status, note, now_ms))
                self._unsent_calls.extend(after.ended(status, later, now_ms) for after in plan.after(call.call_id))
