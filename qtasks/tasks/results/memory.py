"""Results in the memory of one process: for tests, and for a home inside the application."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from qtasks.tasks.results.backend import PRUNE_EVERY_MS, Hold, Record, Watchers, supersedes


class MemoryResults:
    """A dictionary of records, gone with the process. Finished ones are dropped `ttl_ms` after their last change."""

    blocking = False

    def __init__(self, *, ttl_ms: int) -> None:
        self.watchers = Watchers()
        self._ttl_ms = ttl_ms
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}
        self._calls: dict[str, str] = {}
        self._holds: dict[str, Hold] = {}
        self._pruned_ms = 0

    def put(self, record: Record) -> None:
        """Keep a record at once."""
        with self._lock:
            if supersedes(record, self._records.get(record.call_id)):
                self._records[record.call_id] = record
                self._calls[record.message_id] = record.call_id
            if record.updated_ms - self._pruned_ms >= min(PRUNE_EVERY_MS, self._ttl_ms):
                self._prune(record.updated_ms)
        self.watchers.notify(record)

    def acquire(self, holds: Sequence[Hold], *, now_ms: int) -> list[Hold]:
        """See `ResultBackend.acquire`."""
        with self._lock:
            for hold in holds:
                held = self._holds.get(hold.key)
                if held is None or held.until_ms <= now_ms or held.owner == hold.owner:
                    self._holds[hold.key] = hold
            return [self._holds[hold.key] for hold in holds]

    def release(self, hold: Hold) -> None:
        """Let go of a hold at once."""
        with self._lock:
            if (held := self._holds.get(hold.key)) is not None and held.owner == hold.owner:
                del self._holds[hold.key]

    def flush(self) -> None:
        """Nothing is left to do."""

    def read(self, key: str) -> Record | None:
        """The record of a call id or a message id."""
        with self._lock:
            return self._records.get(key) or self._records.get(self._calls.get(key, ""))

    def close(self) -> None:
        """Records stay readable: a stopped application may still be asked for its results."""

    def _prune(self, now_ms: int) -> None:
        self._pruned_ms = now_ms
        for record in list(self._records.values()):
            if record.status.is_final and record.updated_ms <= now_ms - self._ttl_ms:
                del self._records[record.call_id]
                self._calls.pop(record.message_id, None)
        for hold in list(self._holds.values()):
            if hold.until_ms <= now_ms:
                del self._holds[hold.key]
