"""The common part of backends on a disk or a network: one transaction per write, and threads take turns."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

from qtasks.forks import per_process
from qtasks.tasks.results.backend import (
    PRUNE_EVERY_MS,
    UNFINISHED_MS,
    Lock,
    ResultRecord,
    ResultStatus,
    ResultWatchers,
    latest_records,
)


class DatabaseResults(ABC):
    """Records in a database. A subclass writes and reads them; only one thread at a time writes, and one reads."""

    blocking = True

    def __init__(self, *, ttl_ms: int) -> None:
        self.watchers = ResultWatchers()
        self._ttl_ms = ttl_ms
        self._pruned_ms = 0
        per_process(self._begin)

    def _begin(self) -> None:
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._forget()

    def write(
        self, records: Sequence[ResultRecord], unlocked: Sequence[Lock] = (), released: Sequence[str] = ()
    ) -> None:
        """See `ResultBackend.write`; all in one transaction."""
        with self._write_lock, self._translated():
            self._write(latest_records(records), unlocked, released)
        for record in records:
            self.watchers.notify(record)

    def lock(self, locks: Sequence[Lock], *, now_ms: int) -> list[Lock]:
        """See `ResultBackend.lock`; all in one transaction."""
        with self._write_lock, self._translated():
            return self._lock(locks, now_ms)

    def read(self, key: str) -> ResultRecord | None:
        """The record of a call id or a message id."""
        with self._read_lock, self._translated():
            return self._read(key)

    def read_calls(self, call_ids: Sequence[str]) -> list[ResultRecord | None]:
        """See `ResultBackend.read_calls`."""
        with self._read_lock, self._translated():
            return self._read_calls(call_ids)

    def statuses(self, call_ids: Sequence[str]) -> dict[str, ResultStatus]:
        """See `ResultBackend.statuses`."""
        with self._read_lock, self._translated():
            return {call_id: ResultStatus(status) for call_id, status in self._statuses(call_ids)}

    def open_flows(self, limit: int) -> list[ResultRecord]:
        """See `ResultBackend.open_flows`."""
        with self._read_lock, self._translated():
            return self._open_flows(limit)

    def close(self) -> None:
        """Close the connections; a later use opens them again."""
        with self._write_lock, self._read_lock:
            self._disconnect()

    def _prune_before_ms(self, records: Sequence[ResultRecord]) -> int | None:
        """Unix time before which finished records are deleted; None if it is not yet time to look for them."""
        now_ms = max((record.updated_ms for record in records), default=0)
        if now_ms - self._pruned_ms < min(PRUNE_EVERY_MS, self._ttl_ms):
            return None
        self._pruned_ms = now_ms
        return now_ms - self._ttl_ms

    @staticmethod
    def _unfinished_before_ms(before_ms: int) -> list[tuple[str, int]]:
        """For each status of an unfinished call: Unix time before which its records are deleted, see `stored_ms`."""
        return [(status.value, before_ms - span_ms) for status, span_ms in UNFINISHED_MS.items()]

    @abstractmethod
    def _write(self, records: Sequence[ResultRecord], unlocked: Sequence[Lock], released: Sequence[str]) -> None:
        """Write everything or nothing."""

    @abstractmethod
    def _lock(self, locks: Sequence[Lock], now_ms: int) -> list[Lock]: ...

    @abstractmethod
    def _read(self, key: str) -> ResultRecord | None: ...

    def _read_calls(self, call_ids: Sequence[str]) -> list[ResultRecord | None]:
        return [self._read(call_id) for call_id in call_ids]

    @abstractmethod
    def _statuses(self, call_ids: Sequence[str]) -> Iterable[tuple[str, str]]: ...

    @abstractmethod
    def _open_flows(self, limit: int) -> list[ResultRecord]: ...

    @abstractmethod
    def _disconnect(self) -> None: ...

    @abstractmethod
    def _forget(self) -> None:
        """Start without connections. Those of the parent process, if there are any, are not closed."""

    @abstractmethod
    def _translated(self) -> AbstractContextManager[None]:
        """Turn the errors of the driver into ResultError."""
