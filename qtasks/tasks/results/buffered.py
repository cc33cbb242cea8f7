"""What the backends on a disk or a network share: records are put by whoever has one and written together.

Whoever comes to `flush` first writes everything in one transaction; the others find their own already written. So
commits are shared when they are many.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager

from qtasks.tasks.results.backend import PRUNE_EVERY_MS, Lock, ResultRecord, ResultWatchers, folded


class BufferedResults(ABC):
    """Records that wait for the next flush, and how it goes. A backend says how they are written and read."""

    blocking = True

    def __init__(self, *, ttl_ms: int) -> None:
        self.watchers = ResultWatchers()
        self._ttl_ms = ttl_ms
        self._pending_lock = threading.Lock()
        self._pending: list[ResultRecord] = []
        self._unlocked: list[Lock] = []
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._pruned_ms = 0

    def record(self, record: ResultRecord) -> None:
        """Queue a record for the next flush."""
        with self._pending_lock:
            self._pending.append(record)

    def unlock(self, lock: Lock) -> None:
        """End a lock with the next flush."""
        with self._pending_lock:
            self._unlocked.append(lock)

    def flush(self) -> None:
        """Write what was put, in one transaction, unless another thread has just done so."""
        with self._write_lock:
            with self._pending_lock:
                records, self._pending = self._pending, []
                unlocked, self._unlocked = self._unlocked, []
            if not records and not unlocked:
                return
            with self._translated():
                self._write(folded(records), unlocked)
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

    def close(self) -> None:
        """Write what is left and let go of connections; a later use opens them again."""
        try:
            self.flush()
        finally:
            with self._write_lock, self._read_lock:
                self._disconnect()

    def _prune_before_ms(self, records: Sequence[ResultRecord]) -> int | None:
        """Unix time before which finished records may go, when it is time to look for them."""
        now_ms = max((record.updated_ms for record in records), default=0)
        if now_ms - self._pruned_ms < min(PRUNE_EVERY_MS, self._ttl_ms):
            return None
        self._pruned_ms = now_ms
        return now_ms - self._ttl_ms

    @abstractmethod
    def _write(self, records: Sequence[ResultRecord], unlocked: Sequence[Lock]) -> None:
        """Write all of it or nothing."""

    @abstractmethod
    def _lock(self, locks: Sequence[Lock], now_ms: int) -> list[Lock]: ...

    @abstractmethod
    def _read(self, key: str) -> ResultRecord | None: ...

    @abstractmethod
    def _disconnect(self) -> None: ...

    @abstractmethod
    def _translated(self) -> AbstractContextManager[None]:
        """Make ResultError of what goes wrong inside."""
