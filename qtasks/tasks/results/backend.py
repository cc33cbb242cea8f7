"""What every result backend promises, and the rules they share.

A call leaves one record: its latest state. The dispatcher writes it, whoever holds a `TaskResult` reads it, often in
another process. Within one process a waiter is woken at once (`Watchers`); across processes it polls, at first often.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

POLL_FIRST_S = 0.002
POLL_LAST_S = 0.05
PRUNE_EVERY_MS = 60 * 60 * 1000


class ResultStatus(StrEnum):
    """Where a call stands. Queued: nothing has been heard of it since it was accepted."""

    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """Whether waiting any longer is pointless."""
        return self in _FINAL


_FINAL = frozenset({ResultStatus.SUCCEEDED, ResultStatus.FAILED, ResultStatus.CANCELLED, ResultStatus.EXPIRED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The latest known state of one call."""

    call_id: str
    message_id: str
    task: str
    status: ResultStatus
    attempt: int
    updated_ms: int
    value: str | None = None
    """The result as JSON, once succeeded, or as a pickle (see `tasks.pickling`) where JSON cannot carry it."""
    error: str | None = None
    """"TypeName: message" of the last failure; why it was cancelled."""
    progress: str | None = None
    """How far a running call has come, as JSON."""


def row_of(record: Record) -> tuple[str | int | None, ...]:
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
    )


def record_of(row: Sequence[Any]) -> Record:
    """The reverse of `row_of`."""
    call_id, message_id, task, status, attempt, updated_ms, value, error, progress = row
    return Record(
        call_id=call_id,
        message_id=message_id,
        task=task,
        status=ResultStatus(status),
        attempt=attempt,
        updated_ms=updated_ms,
        value=value,
        error=error,
        progress=progress,
    )


def supersedes(new: Record, old: Record | None) -> bool:
    """Whether `new` may take the place of `old`: a success stands, whatever a duplicate delivery says later."""
    return old is None or old.status is not ResultStatus.SUCCEEDED or new.status is ResultStatus.SUCCEEDED


def folded(records: Iterable[Record]) -> list[Record]:
    """Of each call the record that stands in the end.

    In an order that all writers share, so that no two wait for each other.
    """
    last: dict[str, Record] = {}
    for record in records:
        if supersedes(record, last.get(record.call_id)):
            last[record.call_id] = record
    return [last[call_id] for call_id in sorted(last)]


@dataclass(frozen=True, slots=True)
class Hold:
    """`owner` has `key` for itself until `until_ms` (Unix time), or until it lets go."""

    key: str
    owner: str
    until_ms: int


class ResultBackend(Protocol):
    """A place for records, and for what somebody holds. Every method may be called from any thread."""

    blocking: bool
    """Whether `flush` and `read` wait for a disk or a network, so that an event loop calls them in a thread."""
    watchers: Watchers

    def put(self, record: Record) -> None:
        """Take a record, in order, without waiting. It is kept only once `flush` has returned."""
        ...

    def flush(self) -> None:
        """Keep everything that was put before. Raises ResultError; what was put is then gone."""
        ...

    def acquire(self, holds: Sequence[Hold], *, now_ms: int) -> list[Hold]:
        """Try to get each hold; the answer is the one that stands, ours or not.

        What nobody holds any more is free, and an owner may extend its own. Raises ResultError when it cannot be told.
        """
        ...

    def release(self, hold: Hold) -> None:
        """Let go of `hold` with the next `flush`, if it is still its owner's; without waiting."""
        ...

    def read(self, key: str) -> Record | None:
        """The record of a call id or a message id. Raises ResultError when it cannot be read."""
        ...

    def close(self) -> None:
        """Let go of files and connections. Idempotent."""
        ...


class Watchers:
    """Who in this process waits for which call, by call id or message id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, list[Callable[[], None]]] = {}

    @contextmanager
    def watching(self, key: str, wake: Callable[[], None]) -> Iterator[None]:
        """Have `wake` called, on some thread, whenever the record changes."""
        with self._lock:
            self._waiting.setdefault(key, []).append(wake)
        try:
            yield
        finally:
            with self._lock:
                self._waiting[key].remove(wake)
                if not self._waiting[key]:
                    del self._waiting[key]

    def waiting(self, key: str, wake: Callable[[], None]) -> AbstractContextManager[None]:
        """As `watching`, for one who does nothing else until the record is final."""
        return self.watching(key, wake)

    def notify(self, record: Record) -> None:
        """Wake whoever waits for the call of `record`."""
        if not self._waiting:
            return
        with self._lock:
            wakes = [*self._waiting.get(record.call_id, ()), *self._waiting.get(record.message_id, ())]
        for wake in wakes:
            wake()


def pauses(last_s: float = POLL_LAST_S) -> Iterator[float]:
    """Seconds between looks at a record that another process may write: 2 ms at first, growing to `last_s`."""
    pause_s = POLL_FIRST_S
    while True:
        yield pause_s
        pause_s = min(pause_s * 1.5, last_s)
