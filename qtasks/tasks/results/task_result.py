"""The handle of one call: its state and its result."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from qtasks.error_codes import ErrorCode
from qtasks.errors import ResultError, ResultTimeout, TaskCancelled, TaskExpired, TaskFailed
from qtasks.tasks.encode.pickling import Purpose
from qtasks.tasks.progress import Progress
from qtasks.tasks.results.backend import Lock, ResultBackend, ResultRecord, ResultStatus, pauses, read_record
from qtasks.tasks.results.celery_result import CeleryResult
from qtasks.tasks.results.inquiry import ENDED, Inquiries, ServiceState, Subject, reason_of_wait
from qtasks.tasks.results.unique import unlock
from qtasks.tasks.results.wait_in_task import WaitInTask
from qtasks.tasks.results.waiting import wake

if TYPE_CHECKING:
    from typing import Self

    from qtasks.tasks.encode.result_codec import ResultForm

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

    def cancel_call(self, call: CallToCancel) -> bool:
        """Cancel a call: no attempt begins any more, and one that runs is asked to end.

        Returns True if the call is cancelled or being cancelled; False if it has ended otherwise, or nothing is known
        of it. Without a result backend: True if the broker still had its message, or it runs in this process. May
        block. Raises BrokerUnreachable, ApiError, and ResultError.
        """
        ...

    @property
    def inquiries(self) -> Inquiries:
        """Asks the service about calls whose records say nothing for some time."""
        ...

    def now_ms(self) -> int:
        """The current Unix time in milliseconds."""
        ...

    def is_deadlocked(self) -> bool:
        """See `DeadlockCheck`."""
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
    """The lock of a unique call. If it is not known here, the process that ends the call frees it."""
    is_planned: bool = False
    """True for a call of a flow: it may be sent later, even if nothing is known of it now."""


class TaskResult(CeleryResult[R]):
    """The handle of one call: what `.delay()` returns.

    `id` is the call's id. If `deduplicated` is true, nothing was sent: an earlier call of the task with the same
    deduplication id takes its place, `id` is the message id of that call, and its result is the result.
    Without a result backend every accessor raises ResultsDisabled, which names the missing setting.

    If the record of the call says nothing for some seconds, the accessors ask the service, in growing intervals: a call
    that is dead there has failed. They never raise because it does not answer.
    """

    _internal = frozenset(
        {"accepted", "after", "awaiting_for", "has_lock", "of_task", "planned", "unlock", "waited_for", "with_lock"}
    )

    __slots__ = (
        "_form", "_is_planned", "_lock", "_names", "_parent", "_runtime", "deduplicated", "id", "message_id", "task",
    )  # fmt: skip

    def __init__(
        self,
        runtime: ResultAccess,
        form: Callable[[], ResultForm[R]],
        *,
        task: str,
        id: str,  # noqa: A002 - the name it has for users
        message_id: str | None,
        deduplicated: bool = False,
        is_planned: bool = False,
    ) -> None:
        self._runtime = runtime
        self._form = form
        self.task = task
        """The name of the task."""
        self.id = id
        """The id of the call: the same in all attempts, in the logs and in `TaskContext.call_id`."""
        self.message_id = message_id
        """The broker's id of the message that carries the call; None until it is sent, or for a handle of an id."""
        self.deduplicated = deduplicated
        """True if nothing was sent, because an earlier call takes its place."""
        self._lock: Lock | None = None
        self._names: tuple[str, ...] = ()
        self._is_planned = is_planned
        self._parent: Callable[[], Any] | None = None

    def __repr__(self) -> str:
        return f"<TaskResult of {self._title}>"

    def accepted(self, message_id: str, *, deduplicated: bool) -> None:
        """Store the broker's answer to the message. Only for the code that sends it."""
        self.message_id = message_id
        self.deduplicated = deduplicated
        self._is_planned = False
        if deduplicated:
            self.id = message_id
            fields = {"action": "deduplicated", "task": self.task, "message_id": message_id}
            log.info("%s was not sent: message %s takes its place", self.task, message_id, extra=fields)

    def planned(self) -> Self:
        """The same handle for a call that is sent later: the service need not know it yet."""
        self._is_planned = True
        self._names = ()  # its id is not one that a caller has chosen
        return self

    def of_task(self, names: tuple[str, ...]) -> Self:
        """The same handle, for an id that a caller has chosen: it shows nothing of a call of another task."""
        self._names = names
        return self

    def after(self, parent: Callable[[], Any]) -> Self:
        """The same handle for a call of a flow; `parent` makes the handle of what comes before it."""
        self._parent = parent
        return self

    @property
    def parent(self) -> Any:
        """The handle of what comes before the call in its flow: a `TaskResult`, or the `GroupResult` of a chord.

        ``chord(...).delay().parent.counts()`` says how many members have failed. None for a call that nothing comes
        before, and for a handle that was made from an id.
        """
        return None if self._parent is None else self._parent()

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
        """The current state of the call. Unknown: neither the results nor the broker know the id."""
        return _status(self._record())

    async def astatus(self) -> ResultStatus:
        """As `status`, without blocking the event loop."""
        return _status(await self._arecord())

    @property
    def waiting_for(self) -> str | None:
        """Why the call does not run now: what its last attempt met, what it waits for, when the next one is due.

        ``"ConnectionError: no answer; next attempt at 2030-01-01T12:00:00+00:00"``. Every look asks the service. None
        for a call that has ended, runs, or starts at once, and if the service does not answer.

        `qtasks broker`, `qtasks dev` and an embedded broker name a delay, a retry, a queue, a key, and an application
        that does not answer. The hosted service knows the call by its message, and names only attempts that failed and
        when the next one is due.
        """
        record = self._own(self._backend().read(self.id))
        reason = reason_of_wait(self._runtime.inquiries.state_now(self._subject, record))
        if reason is None and record is not None and record.status is ResultStatus.RETRYING:
            return record.error  # the service has not noted the end of the attempt yet, or does not answer
        return reason

    async def awaiting_for(self) -> str | None:
        """As `waiting_for`, without blocking the event loop."""
        return await asyncio.to_thread(lambda: self.waiting_for)

    @property
    def progress(self) -> Progress | None:
        """The progress of the running call, if it has reported any."""
        return _progress(self._own(self._backend().read(self.id)))

    async def aprogress(self) -> Progress | None:
        """As `progress`, without blocking the event loop."""
        return _progress(self._own(await read_record(self._backend(), self.id)))

    @property
    def is_finished(self) -> bool:
        """True if the state will not change any more."""
        return self.status.is_final

    @property
    def attempts(self) -> int:
        """How many attempts have begun; 0 before the first one."""
        return 0 if (record := self._record()) is None else record.attempt

    @property
    def error(self) -> str | None:
        """The error of the last attempt ("TypeName: message"), or why the call was cancelled; None without one."""
        return None if (record := self._record()) is None else record.error

    @property
    def finished_at(self) -> datetime | None:
        """When the call ended; None while it has not."""
        record = self._record()
        if record is None or not record.status.is_final:
            return None
        return datetime.fromtimestamp(record.updated_ms / 1000, UTC)

    @property
    def return_value(self) -> R:
        """The result of a call that has succeeded. Raises the same errors as a `get` that does not wait."""
        record = self._record()
        if record is None or not record.status.is_final:
            raise self._late(record, 0)
        return self._value(record)

    def cancel(self) -> bool:
        """Cancel the call, also from another process: `task.result(id).cancel()`; for a flow, all that is left of it.

        No attempt begins any more. One that runs is asked to end, some seconds later if it runs in another process: an
        ``async def`` gets ``asyncio.CancelledError``, a ``def`` sees `TaskContext.should_stop`. Until it has ended the
        status is ``cancelling``, then ``cancelled``, and waiting for the result raises TaskCancelled. A ``def`` that
        does not look, and returns, has succeeded.

        Returns True if the call is cancelled or being cancelled; False if it had ended already, or nothing is known of
        it. Without a result backend only the broker and this process are asked: True if they had the call. Raises
        BrokerUnreachable, ApiError, and ResultError.
        """
        if self._names and (results := self._runtime.results_or_none()) is not None:
            self._own(results.read(self.id))
        call = CallToCancel(
            task=self._task_to_cancel(),
            id=self.id,
            message_id=self.message_id,
            locks=() if self._lock is None else (self._lock,),
            is_planned=self._is_planned,
        )
        return self._runtime.cancel_call(call)

    async def acancel(self) -> bool:
        """As `cancel`, without blocking the event loop."""
        return await asyncio.to_thread(self.cancel)

    def __await__(self) -> Generator[Any, None, R]:
        """Wait for the result, without a time limit: ``await result``."""
        return self.aget().__await__()

    def waited_for(self, timeout: float | None) -> R:
        """See `CeleryResult.waited_for`."""
        backend = self._backend()
        if self._runtime.runs_on_this_thread():
            raise ResultError(
                f"{self._title}: .get() would block the event loop that has to run the task",
                fix="await result.aget()",
                code=ErrorCode.GET_WOULD_BLOCK,
            )
        changed = threading.Event()
        waits = _waits(timeout)
        with backend.watchers.waiting(self.id, changed.set), self._wait_in_task() as wait:
            while True:
                changed.clear()
                record = self._watched(backend.read(self.id), changed.set)
                wait_s = next(waits, None)
                if record is not None and record.status.is_final:
                    if wait_s is None or not backend.watchers.has_running_hooks(record.call_id):
                        return self._value(record)
                elif wait_s is None:
                    raise self._late(record, timeout)
                wait.check()
                changed.wait(wait_s)

    async def aget(self, timeout: float | None = None) -> R:  # noqa: ASYNC109 - the same words as `get`
        """As `get`, without blocking the event loop."""
        backend = self._backend()
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        waits = _waits(timeout)
        with backend.watchers.waiting(self.id, lambda: wake(loop, changed)), self._wait_in_task() as wait:
            while True:
                changed.clear()
                record = self._watched(await read_record(backend, self.id), lambda: wake(loop, changed))
                wait_s = next(waits, None)
                if record is not None and record.status.is_final:
                    if wait_s is None or not backend.watchers.has_running_hooks(record.call_id):
                        return self._value(record)
                elif wait_s is None:
                    raise self._late(record, timeout)
                wait.check()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), wait_s)

    @property
    def _title(self) -> str:
        """The call as errors name it."""
        return f"{self.task} {self.id}" if self.task else self.id

    def _form_of(self, record: ResultRecord) -> ResultForm[R]:  # noqa: ARG002
        """Reads the result of the call with this record."""
        return self._form()

    def _task_to_cancel(self) -> str:
        """The task of the call; empty if it is not known. May block."""
        return self.task

    def _wait_in_task(self) -> WaitInTask:
        return WaitInTask(self._runtime, self.task, [self.id])

    def _backend(self) -> ResultBackend:
        return self._runtime.results()

    @property
    def _subject(self) -> Subject:
        unique = None if self._lock is None else self._lock.key
        return Subject(self.task, self.id, self.message_id, unique)

    @property
    def _may_be_unknown(self) -> bool:
        """True for a handle made from an id, which may be any text."""
        return self.message_id is None and not self._is_planned

    def _record(self) -> ResultRecord | None:
        """The record of the call, or what the service knows better."""
        record = self._own(self._backend().read(self.id))
        if record is not None and record.status.is_final:
            return record
        return self._better(record, self._runtime.inquiries.state(self._subject, record, at_once=self._may_be_unknown))

    def _own(self, record: ResultRecord | None) -> ResultRecord | None:
        """`record`. Raises ResultError if it is that of a call of another task."""
        if record is None or not self._names or record.task in ("", *self._names):
            return record
        raise ResultError(
            f"{self.id} is a call of {record.task}, not of {self.task}",
            fix=f"tasks.result({self.id!r})",
            code=ErrorCode.CALL_OF_ANOTHER_TASK,
        )

    async def _arecord(self) -> ResultRecord | None:
        record = self._own(await read_record(self._backend(), self.id))
        if record is not None and record.status.is_final:
            return record
        inquiries, subject, at_once = self._runtime.inquiries, self._subject, self._may_be_unknown
        if not inquiries.is_due(subject, record, at_once=at_once):
            return self._better(record, inquiries.known(subject, record))
        asked = functools.partial(inquiries.state, subject, record, at_once=at_once)
        return self._better(record, await asyncio.to_thread(asked))

    def _watched(self, record: ResultRecord | None, wake: Callable[[], None]) -> ResultRecord | None:
        """As `_record`, for a wait that goes on: the answer to a question comes later, with a call of `wake`.

        Raises ResultError for an unknown call.
        """
        inquiries, record = self._runtime.inquiries, self._own(record)
        inquiries.ask_soon(self._subject, record, wake, at_once=self._may_be_unknown)
        record = self._better(record, inquiries.known(self._subject, record))
        if _status(record) is ResultStatus.UNKNOWN:
            raise ResultError(
                f"{self._title} is unknown: neither the results nor the broker have a call with this id",
                code=ErrorCode.CALL_UNKNOWN,
            )
        return record

    def _better(self, record: ResultRecord | None, state: ServiceState | None) -> ResultRecord | None:
        """`record`, or the end that the service knows of; a record of the status unknown if it does not know the id."""
        if state is None or (state.status not in ENDED and state.status is not ResultStatus.UNKNOWN):
            return record
        if state.status is ResultStatus.UNKNOWN and (self._is_planned or record is not None):
            return record
        return ResultRecord(
            call_id=self.id,
            message_id=state.message_id,
            task=self.task,
            status=state.status,
            attempt=state.attempt,
            updated_ms=self._runtime.now_ms(),
            error="cancelled at the broker" if state.status is ResultStatus.CANCELLED else state.reason,
        )

    def _late(self, record: ResultRecord | None, timeout: float | None) -> ResultTimeout:
        state = f"it is {_status(record)}"
        if record is not None and record.error is not None:
            state += f" after attempt {record.attempt}: {record.error}"
        if (reason := reason_of_wait(self._runtime.inquiries.known(self._subject, record))) is not None:
            state += f"; it waits: {reason}"
        return ResultTimeout(f"{self._title} has not finished within {timeout} s; {state}")

    def _value(self, record: ResultRecord) -> R:
        if record.status is ResultStatus.FAILED:
            error = record.error or "unknown error"
            raise TaskFailed(f"{record.task} {record.call_id} failed on attempt {record.attempt}: {error}", error=error)
        if record.status in (ResultStatus.CANCELLED, ResultStatus.EXPIRED):
            reason = record.error or "no reason was given"
            kind = TaskExpired if record.status is ResultStatus.EXPIRED else TaskCancelled
            raise kind(f"{record.task} {record.call_id} was not run to its end: {reason}", reason=reason)
        # The call id of this handle, not that of the record, which others may have written; except if only the message
        # id is known.
        call_id = record.call_id if self.id == record.message_id else self.id
        purpose = Purpose.result(record.task, call_id)
        return self._form_of(record).load(record.value or "null", purpose)


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
