"""What the backends on a disk or a network share: records are put by whoever has one and written together.

Whoever comes to `flush` first writes everything in one transaction; the others find their own already written. So
commits are shared when they are many.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager

from qtasks.tasks.results.backend import PRUNE_EVERY_MS, Hold, Record, Watchers, folded


class BatchedResults(ABC):
    """Records that wait for the next flush, and how it goes. A backend says how they are written and read."""

    blocking = True

    def __init__(self, *, ttl_ms: int) -> None:
        self.watchers = Watchers()
        self._ttl_ms = ttl_ms
        self._pending_lock = threading.Lock()
        self._pending: list[Record] = []
        self._freed: list[Hold] = []
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._pruned_ms = 0

    def put(self, record: Record) -> None:
        """Queue a record for the next flush."""
        with self._pending_lock:
            self._pending.append(record)

    def release(self, hold: Hold) -> None:
        """Let go of a hold with the next flush."""
        with self._pending_lock:
            self._freed.append(hold)

    def flush(self) -> None:
        """Write what was put, in one transaction, unless another thread has just done so."""
        with self._write_lock:
            with self._pending_lock:
                records, self._pending = self._pending, []
                freed, self._freed = self._freed, []
            if not records and not freed:
                return
            with self._translated():
                self._write(folded(records), freed)
        for record in records:
            self.watchers.notify(record)

    def acquire(self, holds: Sequence[Hold], *, now_ms: int) -> list[Hold]:
        """See `ResultBackend.acquire`; all in one transaction."""
        with self._write_lock, self._translated():
            return self._acquire(holds, now_ms)

    def read(self, key: str) -> Record | None:
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

    def _prune_before_ms(self, records: Sequence[Record]) -> int | None:
        """Unix time before which finished records may go, when it is time to look for them."""
        now_ms = max((record.updated_ms for record in records), default=0)
        if now_ms - self._pruned_ms < min(PRUNE_EVERY_MS, self._ttl_ms):
            return None
        self._pruned_ms = now_ms
        return now_ms - self._ttl_ms

    @abstractmethod
    def _write(self, records: Sequence[Record], freed: Sequence[Hold]) -> None:
        """Write all of it or nothing."""

    @abstractmethod
    def _acquire(self, holds: Sequence[Hold], now_ms: int) -> list[Hold]: ...

    @abstractmethod
    def _read(self, key: str) -> Record | None: ...

    @abstractmethod
    def _disconnect(self) -> None: ...

    @abstractmethod
    def _translated(self) -> AbstractContextManager[None]:
        """Make ResultError of what goes wrong inside."""
