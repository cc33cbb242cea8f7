"""The delivery that a task runs for: as an object, as the current one, and as fields of log records."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

from qtasks.tasks.progress import MAX_NOTE, PUBLISH_EVERY_S, Progress

if TYPE_CHECKING:
    from asyncio import Future


class StopReason(Enum):
    """Why a run is asked to end before its time is up."""

    DRAIN = auto()
    """The process ends. The run is not waited for any more: the call runs again."""
    CANCEL = auto()
    """The call was cancelled."""


class ThreadUse:
    """Whether a run is in a thread of the pool: only there it cannot be cancelled."""

    __slots__ = ("_lock", "is_left", "is_refused", "is_running", "is_waiting", "overrun")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.is_refused = False
        self.is_waiting = False
        """True while no thread is free."""
        self.is_running = False
        self.is_left = False
        """True if the function has returned an awaitable: the rest of it runs on the event loop."""
        self.overrun: Future[Any] | None = None
        """The end of a run that is not awaited any more, because its thread could not be stopped."""

    def begin(self) -> bool:
        """Note that a thread begins. False if it must not: the run has ended meanwhile."""
        with self._lock:
            self.is_waiting = False
            self.is_running = not self.is_refused
            return self.is_running

    def end(self) -> None:
        """Note that the thread has ended."""
        self.is_running = False

    def refuse(self) -> bool:
        """Let no thread begin any more. True if one is running."""
        with self._lock:
            self.is_refused = True
            return self.is_running


NO_THREAD: Final = ThreadUse()
"""Of the runs that are in no thread. It never changes."""


class RunLink:
    """Connects the context of a run with the code that runs it: the time limit, the request to stop, the progress.

    `until_s` is on the clock `monotonic`. Progress may be reported from any thread; `publish` is called when `progress`
    should be recorded.
    """

    __slots__ = (
        "_monotonic", "_published_s", "grace_s", "is_stop_seen", "on_stop", "progress", "publish", "stop_reason",
        "thread", "until_s", "waits",
    )  # fmt: skip

    def __init__(
        self, until_s: float = math.inf, monotonic: Callable[[], float] = time.monotonic, *, grace_s: float = 0
    ) -> None:
        self.until_s = until_s
        self.grace_s = grace_s
        """How long the run is waited for after that, if it can only be asked to end."""
        self.progress: str | None = None
        """The latest progress, as JSON."""
        self.publish: Callable[[], None] | None = None
        self._monotonic = monotonic
        self.stop_reason: StopReason | None = None
        """Why the run was asked to end, if it was. A cancel replaces a drain."""
        self.is_stop_seen = False
        """True if the function knows that it was asked to end: what it returns then is not its whole result."""
        self.on_stop: Callable[[StopReason], None] | None = None
        """Called, on any thread, when the run is asked to end."""
        self.thread = NO_THREAD
        self.waits: list[frozenset[str]] = []
        """What the function waits for: the end of one call of each set of call ids."""
        self._published_s = -math.inf

    def stop(self, reason: StopReason) -> None:
        """Ask the run to end; may be called from any thread."""
        if not self.is_cancelled:
            self.stop_reason = reason
        if (on_stop := self.on_stop) is not None:
            on_stop(reason)

    @property
    def is_cancelled(self) -> bool:
        """True if the run was asked to end because its call was cancelled."""
        return self.stop_reason is StopReason.CANCEL

    def see_stop(self) -> bool:
        """For the function: true if the time is up, or the run was asked to end, which the function then knows."""
        if self.stop_reason is not None:
            self.is_stop_seen = True
        return self.stop_reason is not None or self.left_s() <= 0

    def left_s(self) -> float:
        """Seconds until the time is up; infinite without a limit."""
        return self.until_s - self._monotonic()

    def report(self, progress: Progress) -> None:
        """Publish progress, at most ten times a second; the last step always. Raises ValueError for NaN or infinity."""
        for number in (progress.done, progress.total):
            if number is not None and not math.isfinite(number):
                raise ValueError(f"progress is counted in finite numbers, not {number!r}")
        self.progress = progress.to_json()
        now_s = self._monotonic()
        if self.publish is None or (now_s - self._published_s < PUBLISH_EVERY_S and progress.done != progress.total):
            return
        self._published_s = now_s
        self.publish()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskContext:
    """The delivery a task runs for. A task receives it in a parameter ``ctx: TaskContext = injected``."""

    task: str
    """The name of the task."""
    call_id: str
    """Made by the caller, the same in every attempt and in duplicates: the key for idempotency."""
    message_id: str
    """The broker's id, as its logs and dead letters show it."""
    attempt: int
    """1 for the first attempt. Comes from a header that the signature does not cover: do not base security on it."""
    retries: int
    """How many attempts may follow the first one."""
    schedule_id: str | None = None
    """The schedule that published this message, if one did."""
    snoozed: int = 0
    """How often this call has raised `Snooze`."""
    carried: Mapping[str, str] = field(default_factory=dict)
    """The texts that the sender's middleware attached."""
    deadline: datetime | None = field(default=None, compare=False)
    """The end of this attempt's time, a moment before the broker's timeout; None in a direct call."""
    link: RunLink = field(default_factory=RunLink, repr=False, compare=False)
    """Internal: what the dispatcher and this run exchange."""

    @property
    def retried(self) -> int:
        """Attempts before this one."""
        return self.attempt - 1

    @property
    def is_last_attempt(self) -> bool:
        """True if no attempt follows: a failure now ends in the dead-letter queue."""
        return self.retried >= self.retries

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Report the progress of this run, for `TaskResult.progress`. Call it as often as you like.

        At most ten reports a second are recorded. Never waits; does nothing without a result backend. Raises ValueError
        for infinity and NaN.
        """
        self.link.report(Progress(done, total, note[:MAX_NOTE]))

    @property
    def time_left_s(self) -> float:
        """Seconds until `deadline`; negative after it, infinite if there is none."""
        return self.link.left_s()

    @property
    def should_stop(self) -> bool:
        """True if the function should end: its time is up, its call was cancelled, or the process is about to stop.

        An ``async def`` is stopped: it gets ``asyncio.CancelledError``. A thread cannot be stopped, so a ``def`` that
        runs for long checks this. If it does not end soon after its time is up, its attempt has failed. If it returns
        after it has seen that its call was cancelled, the call ends as cancelled; what a ``def`` returns that never
        looks is the result.
        """
        return self.link.see_stop()

    @property
    def is_cancelled(self) -> bool:
        """True if the call was cancelled while it runs: one of the reasons for `should_stop`."""
        return self.link.is_cancelled and self.link.see_stop()

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger named ``qtasks.task.<name>``; its records have the fields task, call_id, message_id and attempt.

        What a call passes as `extra` is kept; of a field with the same name the value of the call counts.
        """
        fields: Mapping[str, object] = {
            "task": self.task,
            "call_id": self.call_id,
            "message_id": self.message_id,
            "attempt": self.attempt,
        }
        return _TaskLogger(logging.getLogger(f"qtasks.task.{self.task}"), fields)


_PROPERTIES = frozenset(
    {"progress", "retried", "is_last_attempt", "logger", "time_left_s", "should_stop", "is_cancelled"}
)


class _TaskLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds the fields of the context to the `extra` of each call. Before Python 3.13 an adapter replaces it."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """The message and the arguments of a log call, with the fields."""
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


class Injected:
    """The class of `injected`. If a function body sees it, the function was called directly, without a context."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "injected"

    def __getattr__(self, name: str) -> Any:
        if name in TaskContext.__dataclass_fields__ or name in _PROPERTIES:
            raise RuntimeError(
                f"there is no task context here: the function was called directly, so `{name}` has no value; "
                "pass a TaskContext(...) of your own"
            )
        raise AttributeError(name)


injected: Final[Any] = Injected()
"""Default of a parameter that the dispatcher fills: ``ctx: TaskContext = injected``."""


CURRENT: ContextVar[TaskContext | None] = ContextVar("qtasks_context", default=None)
"""The context of the task that runs here, also in threads of the pool; None outside of tasks."""

LOG_FIELDS = ("task", "call_id", "message_id", "attempt")
NO_TASK = "-"
"""The value of the fields in log records made outside of tasks."""


def current_context() -> TaskContext | None:
    """The context of the task that runs here; None outside of tasks."""
    return CURRENT.get()


class TaskLogFilter(logging.Filter):
    """Adds `task`, `call_id`, `message_id` and `attempt` to every log record; outside of tasks their value is "-".

    Attach it to a handler: ``handler.addFilter(TaskLogFilter())``; a format may then use ``%(task)s %(call_id)s``.
    A field that the record already has is not changed.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; never drops a record."""
        context = current_context()
        for name in LOG_FIELDS:
            if not hasattr(record, name):
                setattr(record, name, NO_TASK if context is None else getattr(context, name))
        return True
