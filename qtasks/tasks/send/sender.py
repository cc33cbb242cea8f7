"""How one call is sent: lock its unique key, run the middleware, then add it to the open batch or publish it.

The steps are written once, as a generator that yields all work that may block. `send` does that work
directly, `asend` without blocking the event loop.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from qtasks.errors import ArgumentsError, QTasksError
from qtasks.tasks.results.backend import Lock, ResultBackend, ResultStatus
from qtasks.tasks.results.inquiry import ENDED, OVERDUE_MS, Subject
from qtasks.tasks.results.task_result import TaskResult
from qtasks.tasks.results.unique import take, unlock
from qtasks.tasks.send import tracing
from qtasks.tasks.send.batch import Batch
from qtasks.tasks.send.outgoing import Outgoing
from qtasks.tasks.send.runtime_port import Runtime
from qtasks.tasks.send.send_middleware import EnteredMiddleware

if TYPE_CHECKING:
    from qtasks.tasks.encode.result_codec import ResultForm

T = TypeVar("T")
R = TypeVar("R")

SENT_WITHIN_MS = 10 * 60 * 1000
"""A call that has a unique key and is not known to the service after this time was never sent."""

Work = Outgoing | Callable[[], Any]
"""A message to publish, or a call that may block. The generator receives its result."""
Steps = Generator[Work, Any, T]


class SendableTask(Protocol[R]):
    """The part of a task that sending uses."""

    def result_form(self) -> ResultForm[R]:
        """Reads the stored results."""
        ...

    def not_encodable(self, message: Outgoing, error: ValueError) -> ArgumentsError:
        """The error that names the argument because of which a call cannot be encoded."""
        ...


def send(runtime: Runtime, task: SendableTask[R], message: Outgoing) -> TaskResult[R]:
    """Send a call, blocking. Returns the handle of an earlier call if that one holds the unique key."""
    steps = _steps(runtime, task, message)
    try:
        work = next(steps)
        while True:
            try:
                value = runtime.publisher().publish(work) if isinstance(work, Outgoing) else work()
            except BaseException as error:
                work = steps.throw(error)
            else:
                work = steps.send(value)
    except StopIteration as end:
        handle: TaskResult[R] = end.value
        return handle
    except QTasksError as error:
        raise _shortened(error)  # noqa: B904 - it is the same error


async def asend(runtime: Runtime, task: SendableTask[R], message: Outgoing) -> TaskResult[R]:
    """As `send`, without blocking the event loop."""
    steps = _steps(runtime, task, message)
    try:
        work = next(steps)
        while True:
            try:
                if isinstance(work, Outgoing):
                    value = await (await runtime.apublisher()).apublish(work)
                else:
                    value = await asyncio.to_thread(work)
            except BaseException as error:
                work = steps.throw(error)
            else:
                work = steps.send(value)
    except StopIteration as end:
        handle: TaskResult[R] = end.value
        return handle
    except QTasksError as error:
        raise _shortened(error)  # noqa: B904 - it is the same error


def _shortened(error: QTasksError) -> QTasksError:
    """The error of a call that was not sent, with a short traceback: its text says what happened."""
    from qtasks.user_frames import without_our_frames  # here: only an error needs it

    return without_our_frames(error)


def _steps(runtime: Runtime, task: SendableTask[R], message: Outgoing) -> Steps[TaskResult[R]]:
    if message.unique is None:
        return (yield from _publishing(runtime, task, message))
    now_ms = runtime.now_ms()
    lock = _lock(message, now_ms)
    results = yield runtime.results
    owner = yield functools.partial(take, results, lock, now_ms, _dead_owner(runtime, message.task, results))
    if owner is not None:
        return TaskResult(
            runtime,
            task.result_form,
            task=message.task,
            id=owner,
            message_id=None,
            deduplicated=True,
            is_planned=True,
        )
    try:
        return (yield from _publishing(runtime, task, message, lock))
    except BaseException:
        yield functools.partial(unlock, results, lock)
        raise


def _publishing(
    runtime: Runtime, task: SendableTask[R], message: Outgoing, lock: Lock | None = None
) -> Steps[TaskResult[R]]:
    entered = EnteredMiddleware(runtime.send_middleware, tracing.carry(message))
    try:
        message = encoded(task, entered.message)
        handle = TaskResult(
            runtime, task.result_form, task=message.task, id=message.call_id, message_id=None, is_planned=True
        )
        if lock is not None:
            handle.with_lock(lock)
        if message.stored_call is not None:
            yield functools.partial(runtime.store_call, message)
        while (batch := Batch.current(runtime)) is not None:
            if batch.add(message, handle, entered):
                return handle
        answer = yield message
    except BaseException as error:
        entered.fail(error)
        raise
    handle.accepted(answer.message_id, deduplicated=answer.deduplicated)
    entered.succeed(handle)
    return handle


def encoded(task: SendableTask[Any], message: Outgoing) -> Outgoing:
    """Encode a call, once. Raises ArgumentsError that names the argument that cannot be encoded."""
    try:
        return message.encoded()
    except ValueError as error:
        raise task.not_encodable(message, error) from None


def _dead_owner(runtime: Runtime, task: str, results: ResultBackend) -> Callable[[Lock, int], bool]:
    """See `take`: whether the service has given up the call that has a key. A young one is not asked about."""

    def is_dead(lock: Lock, age_ms: int) -> bool:
        if age_ms < OVERDUE_MS:
            return False
        record, subject = results.read(lock.owner), Subject(task, lock.owner, unique=lock.key)
        state = runtime.inquiries.state(subject, record, at_once=True)
        if state is not None and state.status is ResultStatus.UNKNOWN:
            # Its process may have ended before the call was sent. A batch that is still open is waited for.
            return record is None and age_ms >= SENT_WITHIN_MS
        return state is not None and state.status in ENDED

    return is_dead


def _lock(message: Outgoing, now_ms: int) -> Lock:
    """The lock on the unique key; it outlasts the delay of the message."""
    assert message.unique is not None
    delay_ms = max(message.options.delay_ms or 0, (message.options.not_before_s or 0) * 1000 - now_ms, 0)
    return message.unique.lock(message.call_id, now_ms, delay_ms)
