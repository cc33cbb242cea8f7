"""The interface of result backends, and the rules that all of them follow.

A call has one record: its latest state. The dispatcher writes it, a `TaskResult` reads it, often in another process.
Within one process a waiter is woken at once (`ResultWatchers`); across processes it polls, at first often.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from qtasks.errors import CeleryNameError
from qtasks.forks import per_process

POLL_FIRST_S = 0.002
POLL_LAST_S = 0.05
"""The first and the longest pause between two reads of a record that another process may write."""

HOOKS_S = 1.0
"""How long the hooks of a call that has succeeded may delay those in their process who wait for its result."""

PRUNE_EVERY_MS = 60 * 60 * 1000
DAY_MS = 24 * 60 * 60 * 1000

FLOW_PREFIX = "flow_"
"""The first characters of the call id of a flow's own record."""


class ResultStatus(StrEnum):
    """The state of a call.

    Queued: the broker has accepted it, and no attempt has begun. Cancelling: it was cancelled, and still runs. Unknown:
    no call with this id is known; it is shown to users and never stored.
    """

    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    UNKNOWN = "unknown"

    @property
    def is_final(self) -> bool:
        """True if the state will not change any more."""
        return self in _FINAL

    def __eq__(self, other: object) -> bool:
        if type(other) is str and other in _STATES_OF_CELERY:
            raise CeleryNameError(
                f"a status is never equal to {other!r}, which is a state of Celery",
                fix=f"result.state == {other!r}, or the words of result.status: {', '.join(ResultStatus)}",
            )
        return str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


_STATES_OF_CELERY = ("PENDING", "RECEIVED", "STARTED", "PROGRESS", "SUCCESS", "FAILURE", "RETRY", "REVOKED", "REJECTED")
_FINAL = frozenset({ResultStatus.SUCCEEDED, ResultStatus.FAILED, ResultStatus.CANCELLED, ResultStatus.EXPIRED})


UNFINISHED_MS = {
    ResultStatus.RUNNING: 30 * DAY_MS,
    ResultStatus.CANCELLING: 30 * DAY_MS,
    ResultStatus.QUEUED: 400 * DAY_MS,
    ResultStatus.RETRYING: 400 * DAY_MS,
}
"""How much longer than a finished record one that never ends is stored without a change, by its status.

Longer than any call waits: a delay and the wait for a retry are 366 days at most, and a run is interrupted or has a
next attempt before a month has passed.
"""


def stored_ms(status: ResultStatus, ttl_ms: int) -> int:
    """How long a record with this status is stored after its last change: `ttl_ms` for a final one, if not kept."""
    return ttl_ms + UNFINISHED_MS.get(status, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRecord:
    """The latest known state of one call: a result record."""

    call_id: str
    message_id: str
    task: str
    status: ResultStatus
    attempt: int
    updated_ms: int
    value: str | None = None
    """The result as JSON, once succeeded, or as a pickle (see `tasks.encode.pickling`) where JSON cannot carry it."""
    error: str | None = None
    """"TypeName: message" of the last failure; why it was cancelled."""
    progress: str | None = None
    """The progress of a running call, as JSON."""
    kept: bool = False
    """True while a flow needs the record: it is not pruned until it is released."""

    @property
    def owes_hooks(self) -> bool:
        """True if the call has failed, and its process calls the failure hooks or died before that was recorded."""
        return self.status is ResultStatus.RUNNING and self.error is not None

    def __post_init__(self) -> None:
        """Escape what no backend can store in `error`, which contains texts of any origin."""
        if self.error is not None:
            object.__setattr__(self, "error", storable(self.error))


def storable(text: str) -> str:
    r"""`text` with what no database takes escaped: half a surrogate pair as ``\udce9``, NUL as ``\u0000``."""
    return text.replace("\0", "\\u0000").encode(errors="backslashreplace").decode()


def row_of(record: ResultRecord) -> tuple[str | int | None, ...]:
    """A record as the columns of a table, in the order of its fields."""
    return (
        record.call_id,
        record.message_id,
        record.task,
        record.status.value,
        record.attempt,
        record.updated_ms,
        record.value,
        record.error,
        record.progress,
        record.kept,
    )


def record_of(row: Sequence[Any]) -> ResultRecord:
    """The reverse of `row_of`."""
    call_id, message_id, task, status, attempt, updated_ms, value, error, progress, kept = row
    return ResultRecord(
        call_id=call_id,
        message_id=message_id,
        task=task,
        status=ResultStatus(status),
        attempt=attempt,
        updated_ms=updated_ms,
        value=value,
        error=error,
        progress=progress,
        kept=bool(kept),
    )


def replaces(new: ResultStatus, old: ResultStatus) -> bool:
    """True if a record with the status `new` may be written over one with the status `old`.

    A success stands, also if a duplicate delivery reports otherwise; it is also what counts if a call was cancelled too
    late. A cancelled call runs no more. One that is being cancelled is so until it ends: a run that does not know of it
    yet may write that it goes on. A call that has ended cannot be cancelled.
    """
    if new is old or new is ResultStatus.SUCCEEDED:
        return True
    if old is ResultStatus.CANCELLING:
        return new.is_final
    if new is ResultStatus.CANCELLING:
        return not old.is_final
    return old not in (ResultStatus.SUCCEEDED, ResultStatus.CANCELLED)


REFUSED = sorted(f"{old} {new}" for old in ResultStatus for new in ResultStatus if not replaces(new, old))
"""The pairs of an old and a new status that `replaces` refuses, for backends that check them in a database."""


def merged(new: ResultRecord, old: ResultRecord | None) -> ResultRecord:
    """The record of a call after `new` is written over `old`: see `replaces`.

    A kept record stays kept: only a release ends that, because not every writer knows of the flow. A success that is
    reported again does not become kept again: its flow may have ended.
    """
    if old is None:
        return new
    if not replaces(new.status, old.status):
        return old
    kept = old.kept or (new.kept and old.status is not ResultStatus.SUCCEEDED)
    return new if new.kept == kept else replace(new, kept=kept)


def latest_records(records: Iterable[ResultRecord]) -> list[ResultRecord]:
    """One record of each call, as if they were written one by one, ordered by call id.

    All writers share this order, so that no two of them wait for each other.
    """
    last: dict[str, ResultRecord] = {}
    for record in records:
        last[record.call_id] = merged(record, last.get(record.call_id))
    return [last[call_id] for call_id in sorted(last)]


class Lock(NamedTuple):
    """The exclusive right of `owner` to `key`, until `until_ms` (Unix time) or until it unlocks."""

    key: str
    owner: str
    until_ms: int


class ResultBackend(Protocol):
    """Stores result records and locks. Every method may be called from any thread."""

    blocking: bool
    """True if `write`, `lock` and `read` wait for a disk or a network: an event loop then calls them in a thread."""
    watchers: ResultWatchers

    def write(
        self, records: Sequence[ResultRecord], unlocked: Sequence[Lock] = (), released: Sequence[str] = ()
    ) -> None:
        """Store `records`, in order, and end the locks in `unlocked` whose owners still have them.

        Then the records of the calls `released` (call ids) are no longer kept: they are pruned by their age, like any
        other. A call without a record may be among them. Everything or nothing is written. Raises ResultError.
        """
        ...

    def open_flows(self, limit: int) -> list[ResultRecord]:
        """Records of flows that have not ended, those unchanged for the longest time first, at most `limit`.

        They are kept, not final, and their call ids begin with `FLOW_PREFIX`. Raises ResultError.
        """
        ...

    def lock(self, locks: Sequence[Lock], *, now_ms: int) -> list[Lock]:
        """Try to take each lock; returns the valid one of each key, ours or not.

        An expired lock is free, and an owner may extend its own. Raises ResultError if the locks cannot be read.
        """
        ...

    def read(self, key: str) -> ResultRecord | None:
        """The record of a call id or a message id. Raises ResultError if it cannot be read."""
        ...

    def read_calls(self, call_ids: Sequence[str]) -> list[ResultRecord | None]:
        """The records of calls, by their call ids. Raises ResultError if they cannot be read."""
        ...

    def statuses(self, call_ids: Sequence[str]) -> dict[str, ResultStatus]:
        """The state of each of these calls that has a record, by call id. Reads no values. Raises ResultError."""
        ...

    def close(self) -> None:
        """Close files and connections. Idempotent."""
        ...


async def read_record(backend: ResultBackend, key: str) -> ResultRecord | None:
    """The record of a call id or a message id, without blocking the event loop. Raises ResultError."""
    return await asyncio.to_thread(backend.read, key) if backend.blocking else backend.read(key)


class ResultWatchers:
    """The functions in this process to call when the record of a call changes, by call id or message id."""

    def __init__(self) -> None:
        per_process(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, list[Callable[[], None]]] = {}
        self._hooks_until: dict[str, float] = {}
        """Calls whose success hooks run here, and until when waiting callers let them."""

    @contextmanager
    def watching(self, key: str, wake: Callable[[], None]) -> Iterator[None]:
        """Call `wake`, on any thread, whenever the record changes."""
        with self._lock:
            self._waiting.setdefault(key, []).append(wake)
        try:
            yield
        finally:
            with self._lock:
                wakes = self._waiting.get(key, [])
                if wake in wakes:  # not if the wait began before a fork
                    wakes.remove(wake)
                    if not wakes:
                        del self._waiting[key]

    def waiting(self, key: str, wake: Callable[[], None]) -> AbstractContextManager[None]:
        """As `watching`, for a caller that does nothing else until the record is final."""
        return self.watching(key, wake)

    @contextmanager
    def while_hooks_run(self, call_id: str) -> Iterator[None]:
        """While the block runs, callers in this process that wait for the call go on waiting, for `HOOKS_S` at most."""
        self._hooks_until[call_id] = time.monotonic() + HOOKS_S
        try:
            yield
        finally:
            self._hooks_until.pop(call_id, None)
            with self._lock:
                wakes = [*self._waiting.get(call_id, ())]
            for wake in wakes:
                wake()

    def has_running_hooks(self, call_id: str) -> bool:
        """True while a caller that waits for this call is to wait for its hooks, although its record is final."""
        return time.monotonic() < self._hooks_until.get(call_id, 0.0)

    def notify(self, record: ResultRecord) -> None:
        """Wake all who wait for the call of `record`."""
        if not self._waiting:
            return
        with self._lock:
            wakes = [*self._waiting.get(record.call_id, ()), *self._waiting.get(record.message_id, ())]
        for wake in wakes:
            wake()


def pauses(last_s: float = POLL_LAST_S) -> Iterator[float]:
    """Seconds between reads of a record that another process may write: 2 ms at first, growing to `last_s`."""
    pause_s = POLL_FIRST_S
    while True:
        yield pause_s
        pause_s = min(pause_s * 1.5, last_s)
