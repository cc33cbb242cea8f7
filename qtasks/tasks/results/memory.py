"""Results in the memory of one process: for tests, and for an embedded broker."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import replace

from qtasks.forks import per_process
from qtasks.tasks.results.backend import (
    FLOW_PREFIX,
    PRUNE_EVERY_MS,
    Lock,
    ResultRecord,
    ResultStatus,
    ResultWatchers,
    merged,
    stored_ms,
)

log = logging.getLogger("qtasks.results")


class MemoryResults:
    """Records in memory, lost when the process ends; finished ones are deleted `ttl_ms` after their last change.

    Those that never end are deleted later, see `stored_ms`. Kept ones are not deleted.
    """

    blocking = False

    def __init__(self, *, ttl_ms: int) -> None:
        self.watchers = ResultWatchers()
        self._ttl_ms = ttl_ms
        self._process: int | None = None
        per_process(self._begin)
        self._records: dict[str, ResultRecord] = {}
        self._calls: dict[str, str] = {}
        self._locks: dict[str, Lock] = {}
        self._pruned_ms = 0

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._parent, self._process = self._process, os.getpid()
        """The process from which this one was forked, until that was logged."""

    def write(
        self, records: Sequence[ResultRecord], unlocked: Sequence[Lock] = (), released: Sequence[str] = ()
    ) -> None:
        """See `ResultBackend.write`."""
        with self._lock:
            for record in records:
                old = self._records.get(record.call_id)
                if (new := merged(record, old)) is not old:
                    self._records[record.call_id] = new
                    self._calls[record.message_id] = record.call_id
                if record.updated_ms - self._pruned_ms >= min(PRUNE_EVERY_MS, self._ttl_ms):
                    self._prune(record.updated_ms)
            for lock in unlocked:
                if (current := self._locks.get(lock.key)) is not None and current.owner == lock.owner:
                    del self._locks[lock.key]
            for call_id in released:
                if (record_of_call := self._records.get(call_id)) is not None:
                    self._records[call_id] = replace(record_of_call, kept=False)
        for record in records:
            self.watchers.notify(record)

    def lock(self, locks: Sequence[Lock], *, now_ms: int) -> list[Lock]:
        """See `ResultBackend.lock`."""
        with self._lock:
            for lock in locks:
                current = self._locks.get(lock.key)
                if current is None or current.until_ms <= now_ms or current.owner == lock.owner:
                    self._locks[lock.key] = lock
            return [self._locks[lock.key] for lock in locks]

    def read(self, key: str) -> ResultRecord | None:
        """The record of a call id or a message id."""
        with self._lock:
            record = self._records.get(key) or self._records.get(self._calls.get(key, ""))
            parent = self._parent
            if parent is None or (record is not None and record.status.is_final):
                return record
            self._parent = None
        text = "results in memory are not shared with process %d, from which this one was forked: %s"
        log.warning(text, parent, "set QTASKS_RESULTS to sqlite:///results.db", extra={"action": "results_forked"})
        return record

    def read_calls(self, call_ids: Sequence[str]) -> list[ResultRecord | None]:
        """See `ResultBackend.read_calls`."""
        return [self.read(call_id) for call_id in call_ids]

    def statuses(self, call_ids: Sequence[str]) -> dict[str, ResultStatus]:
        """See `ResultBackend.statuses`."""
        return {record.call_id: record.status for record in self.read_calls(call_ids) if record is not None}

    def open_flows(self, limit: int) -> list[ResultRecord]:
        """See `ResultBackend.open_flows`."""
        with self._lock:
            flows = [
                record
                for record in self._records.values()
                if record.kept and not record.status.is_final and record.call_id.startswith(FLOW_PREFIX)
            ]
        return sorted(flows, key=lambda flow: flow.updated_ms)[:limit]

    def close(self) -> None:
        """Records stay readable: a stopped application may still be asked for its results."""

    def _prune(self, now_ms: int) -> None:
        self._pruned_ms = now_ms
        for record in list(self._records.values()):
            if not record.kept and record.updated_ms <= now_ms - stored_ms(record.status, self._ttl_ms):
                del self._records[record.call_id]
                self._calls.pop(record.message_id, None)
        for lock in list(self._locks.values()):
            if lock.until_ms <= now_ms:
                del self._locks[lock.key]
