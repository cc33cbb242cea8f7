"""The handle of one call: its state and its result."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from pydantic import TypeAdapter

from qtasks.error_codes import ErrorCode
from qtasks.errors import ResultError, ResultTimeout, TaskCancelled, TaskExpired, TaskFailed
from qtasks.tasks.encode.pickling import Pickles, Purpose
from qtasks.tasks.encode.result_codec import load
from qtasks.tasks.progress import Progress
from qtasks.tasks.results.backend import Lock, ResultBackend, ResultRecord, ResultStatus, pauses, read_record
from qtasks.tasks.results.unique import unlock
from qtasks.tasks.results.waiting import wake

if TYPE_CHECKING:
    from typing import Self


R = TypeVar("R")

log = logging.getLogger("qtasks.result")


class ResultAccess(Protocol):
    """The part of the application's runtime that a handle uses."""

    def results(self) -> ResultBackend:
        """The result backend. Raises ResultsDisabled if none is configured."""
        ...

    def results_or_none(self) -> ResultBackend | None:
        """The result backend, or None if none is configured."""
        ...

    def pickles(self) -> Pickles:
        """Writes and reads pickles. Raises ConfigurationError if they are not allowed here."""
        ...

    def cancel_call(self, call: CallToCancel) -> bool:
        """Cancel a call: no attempt begins any more, and one that runs is asked to end.

        Returns True if the call is cancelled or being cancelled; False if it has ended otherwise, or nothing is known
        of it. Without a result backend: True if the broker still had its message, or it runs in this process. May
        block. Raises BrokerUnreachable, ApiError, and ResultError.
        """
        ...

    def now_ms(self) -> int:
        """The current Unix time in milliseconds."""
        ...

    def runs_on_this_thread(self) -> bool:
        """True if the caller is on an event loop that runs the tasks: waiting there would block them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CallToCancel:
    """A call, and what its caller knows of it."""

    task: str
    id: str
    """Its call id, or the id of one of its messages."""
    message_id: str | None = None
    locks: Sequence[Lock] = ()
    """The lock of a unique call. If it is not known here, whoever ends the call frees it."""
    is_planned: bool = False
    """True for a call of a flow: it may be sent later, even if nothing is known of it now."""


class TaskResult(Generic[R]):
    """The handle of one call: what `.delay()` returns.

    `id` is the call's id. If `deduplicated` is true, nothing was sent: an earlier call with the same deduplication id
    takes its place, `id` is the message id of that call, and its result is the result. Without a result backend every
    accessor raises ResultsDisabled, which names the missing setting.
    """

    __slots__ = ("_adapter", "_lock", "_runtime", "deduplicated", "id", "message_id", "task")

    def __init__(
        self,
        runtime: ResultAccess,
        adapter: Callable[[], TypeAdapter[R] | None],
        *,
        task: str,
        id: str,  # noqa: A002 - the name it has for users
        message_id: str | None,
        deduplicated: bool = False,
    ) -> None:
        self._runtime = runtime
        self._adapter = adapter
        self.task = task
        self.id = id
        self.message_id = message_id
        self.deduplicated = deduplicated
        self._lock: Lock | None = None

    def __repr__(self) -> str:
        return f"<TaskResult of {self.task} {self.id}>"

    def accepted(self, message_id: str, *, deduplicated: bool) -> None:
        """Store the broker's answer to the message. Only for the code that sends it."""
        self.message_id = message_id
        self.deduplicated = deduplicated
        if deduplicated:
            self.id = message_id
            fields = {"action": "deduplicated", "task": self.task, "message_id": message_id}
            log.info("%s was not sent: message %s takes its place", self.task, message_id, extra=fields)

    def with_lock(self, lock: Lock) -> Self:
        """The same handle with the lock of a unique call, which `cancel` ends."""
        self._lock = lock
        return self

    @property
    def has_lock(self) -> bool:
        """True for the handle of a unique call that has the lock of its key."""
        return self._lock is not None

    def unlock(self) -> None:
        """End the lock of a unique call that was not sent after all. Raises ResultError."""
        lock, self._lock = self._lock, None
        if lock is not None:
            unlock(self._backend(), lock)

    @property
    def status(self) -> ResultStatus:
        """The current state of the call."""
        return _status(self._backend().read(self.id))

    async def astatus(self) -> ResultStatus:
        """As `status`, without blocking the event loop."""
        return _status(await read_record(self._backend(), self.id))

    @property
    def progress(self) -> Progress | None:
        """The progress of the running call, if it has reported any."""
        return _progress(self._backend().read(self.id))

    async def aprogress(self) -> Progress | None:
        """As `progress`, without blocking the event loop."""
        return _progress(await read_record(self._backend(), self.id))

    @property
    def is_finished(self) -> bool:
        """True if the state will not change any more."""
        return self.status.is_final

    @property
    def attempts(self) -> int:
        """How many attempts have begun; 0 before the first one."""
        return 0 if (record := self._backend().read(self.id)) is None else record.attempt

    @property
    def error(self) -> str | None:
        """The error of the last attempt ("TypeName: message"), or why the call was cancelled; None without one."""
        return None if (record := self._backend().read(self.id)) is None else record.error

    @property
    def finished_at(self) -> datetime | None:
        """When the call ended; None while it has not."""
        record = self._backend().read(self.id)
        if record is None or not record.status.is_final:
            return None
        return datetime.fromtimestamp(record.updated_ms / 1000, UTC)

    @property
    def return_value(self) -> R:
        """The result of a call that has succeeded. Raises the same errors as a `get` that does not wait."""
        record = self._backend().read(self.id)
        if record is None or not record.status.is_final:
            raise self._late(record, 0)
        return self._value(record)

    def cancel(self) -> bool:
        """Cancel the call, also from another process: `task.result(id).cancel()`.

        No attempt begins any more. One that runs is asked to end, some seconds later if it runs in another process: an
        ``async def`` gets ``asyncio.CancelledError``, a ``def`` sees `TaskContext.should_stop`. Until it has ended the
        status is ``cancelling``, then ``cancelled``, and waiting for the result raises TaskCancelled. A ``def`` that
        does not look, and returns, has succeeded.

        Returns True if the call is cancelled or being cancelled; False if it had ended already, or nothing is known of
        it. Without a result backend only the broker and this process are asked: True if they had the call. Raises
        BrokerUnreachable, ApiError, and ResultError.
        """
        call = CallToCancel(
            task=self.task,
            id=self.id,
            message_id=self.message_id,
            locks=() if self._lock is None else (self._lock,),
        )
        return self._runtime.cancel_call(call)

    async def acancel(self) -> bool:
        """As `cancel`, without blocking the event loop."""
        return await asyncio.to_thread(self.cancel)

    def __await__(self) -> Generator[Any, None, R]:
        """Wait for the result, without a time limit: ``await result``."""
        return self.aget().__await__()

    def get(self, timeout: float | None = None) -> R:
        """Wait for the result and return it.

        `timeout` is in seconds; None waits without a limit. Raises ResultTimeout, TaskFailed if the task has failed for
        good, TaskCancelled or TaskExpired if it was cancelled or has expired, and ResultError on the thread of the
        event loop that has to run the task.
        """
        backend = self._backend()
        if self._runtime.runs_on_this_thread():
            raise ResultError(
                f"{self.task}: .get() would block the event loop that has to run the task",
                fix="await result.aget()",
                code=ErrorCode.GET_WOULD_BLOCK,
            )
        changed = threading.Event()
        waits = _waits(timeout)
        with backend.watchers.waiting(self.id, changed.set):
            while True:
                changed.clear()
                record = backend.read(self.id)
                if record is not None and record.status.is_final:
                    return self._value(record)
                if (wait_s := next(waits, None)) is None:
                    raise self._late(record, timeout)
                changed.wait(wait_s)

    async def aget(self, timeout: float | None = None) -> R:  # noqa: ASYNC109 - the same words as `get`
        """As `get`, without blocking the event loop."""
        backend = self._backend()
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        waits = _waits(timeout)
        with backend.watchers.waiting(self.id, lambda: wake(loop, changed)):
            while True:
                changed.clear()
                record = await read_record(backend, self.id)
                if record is not None and record.status.is_final:
                    return self._value(record)
                if (wait_s := next(waits, None)) is None:
                    raise self._late(record, timeout)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), wait_s)

    def _backend(self) -> ResultBackend:
        return self._runtime.results()

    def _late(self, record: ResultRecord | None, timeout: float | None) -> ResultTimeout:
        state = f"it is {_status(record)}"
        if record is not None and record.error is not None:
            state += f" after attempt {record.attempt}: {record.error}"
        return ResultTimeout(f"{self.task} {self.id} has not finished within {timeout} s; {state}")

    def _value(self, record: ResultRecord) -> R:
        if record.status is ResultStatus.FAILED:
            error = record.error or "unknown error"
            raise TaskFailed(f"{self.task} {record.call_id} failed on attempt {record.attempt}: {error}", error=error)
        if record.status in (ResultStatus.CANCELLED, ResultStatus.EXPIRED):
            reason = record.error or "no reason was given"
            kind = TaskExpired if record.status is ResultStatus.EXPIRED else TaskCancelled
            raise kind(f"{self.task} {record.call_id} was not run to its end: {reason}", reason=reason)
        # The call id of this handle, not that of the record, which others may have written; except if only the message
        # id is known.
        call_id = record.call_id if self.id == record.message_id else self.id
        purpose = Purpose.result(record.task, call_id)
        return load(self._adapter(), record.value or "null", self._runtime.pickles, purpose)


def _status(record: ResultRecord | None) -> ResultStatus:
    return ResultStatus.QUEUED if record is None else record.status


def _progress(record: ResultRecord | None) -> Progress | None:
    return None if record is None or record.progress is None else Progress.from_json(record.progress)


def _waits(timeout_s: float | None) -> Iterator[float]:
    """Seconds between reads of the record, until the time is up."""
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    for pause_s in pauses():
        wait_s = pause_s if deadline_s is None else min(pause_s, deadline_s - time.monotonic())
        if wait_s <= 0:
            return
        yield wait_s
