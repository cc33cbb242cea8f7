"""Results in one SQLite file that several processes read and write.

It uses a rollback journal instead of a write-ahead log, because the system's SQLite may have a bug that resets the log
under two writers (fixed in 3.51.3).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtasks.error_codes import ErrorCode
from qtasks.errors import ResultError
from qtasks.forks import keep_inherited, rest_before_forks
from qtasks.tasks.results.backend import FLOW_PREFIX, REFUSED, Lock, ResultRecord, record_of, row_of
from qtasks.tasks.results.database import DatabaseResults
from qtasks.tasks.results.results_file import APPLICATION_ID, refuse_foreign

log = logging.getLogger("qtasks.results")

BUSY_TIMEOUT_S = 5.0
"""How long one process waits for another one's transaction."""

SCHEMA_VERSION = 5

_CREATE = """
CREATE TABLE IF NOT EXISTS results (
    call_id    TEXT NOT NULL PRIMARY KEY,
    message_id TEXT NOT NULL,
    task       TEXT NOT NULL,
    status     TEXT NOT NULL CHECK (
        status IN ('queued', 'running', 'retrying', 'cancelling', 'succeeded', 'failed', 'cancelled', 'expired')
    ),
    attempt    INTEGER NOT NULL CHECK (attempt >= 1),
    updated_ms INTEGER NOT NULL,
    value      TEXT,
    error      TEXT,
    progress   TEXT,
    kept       INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID
"""
# Earlier versions had fewer states, which SQLite cannot change in place, and fewer columns at the end.
_COPY = {
    1: "INSERT INTO results SELECT *, NULL, 0 FROM results_before",
    2: "INSERT INTO results SELECT *, 0 FROM results_before",
    3: "INSERT INTO results SELECT *, 0 FROM results_before",
}
# For a call that was deduplicated: its caller knows only the id of the earlier message.
_CREATE_BY_MESSAGE = "CREATE INDEX IF NOT EXISTS results_by_message ON results (message_id)"
# For pruning: finished records, oldest first.
_CREATE_BY_AGE = (
    "CREATE INDEX IF NOT EXISTS results_by_age ON results (updated_ms) "
    "WHERE status IN ('succeeded', 'failed', 'cancelled', 'expired')"
)
# For pruning those that never end.
_CREATE_UNFINISHED = (
    "CREATE INDEX IF NOT EXISTS results_unfinished ON results (status, updated_ms) "
    "WHERE status IN ('queued', 'running', 'retrying', 'cancelling')"
)
# For open flows, those unchanged for the longest time first.
_IS_KEPT_FLOW = f"kept AND substr(call_id, 1, {len(FLOW_PREFIX)}) = '{FLOW_PREFIX}'"
_CREATE_FLOWS = f"CREATE INDEX IF NOT EXISTS results_flows ON results (updated_ms) WHERE {_IS_KEPT_FLOW}"
_REFUSED = ", ".join(f"'{pair}'" for pair in REFUSED)
# The rules of `backend.merged`.
_WRITE = f"""
INSERT INTO results (call_id, message_id, task, status, attempt, updated_ms, value, error, progress, kept)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (call_id) DO UPDATE SET
    message_id = excluded.message_id, status = excluded.status, attempt = excluded.attempt,
    updated_ms = excluded.updated_ms, value = excluded.value, error = excluded.error, progress = excluded.progress,
    kept = results.kept OR (excluded.kept AND results.status <> 'succeeded')
WHERE excluded.status = 'succeeded' OR results.status || ' ' || excluded.status NOT IN ({_REFUSED})
"""  # noqa: S608 - the pairs are constants
_RELEASE = "UPDATE results SET kept = 0 WHERE call_id = ? AND kept"
_SELECT = """
SELECT call_id, message_id, task, status, attempt, updated_ms, value, error, progress, kept FROM results
"""
_READ = f"{_SELECT} WHERE call_id = ? OR message_id = ?"
_READ_CALLS = f"{_SELECT} WHERE call_id IN (SELECT value FROM json_each(?))"  # noqa: S608 - a constant
_READ_STATUSES = "SELECT call_id, status FROM results WHERE call_id IN (SELECT value FROM json_each(?))"
_READ_OPEN_FLOWS = f"""
{_SELECT} WHERE {_IS_KEPT_FLOW} AND status NOT IN ('succeeded', 'failed', 'cancelled', 'expired')
ORDER BY updated_ms LIMIT ?
"""
_PRUNE = """
DELETE FROM results
WHERE status IN ('succeeded', 'failed', 'cancelled', 'expired') AND updated_ms <= ? AND NOT kept
"""
_PRUNE_UNFINISHED = """
DELETE FROM results WHERE status IN ('queued', 'running', 'retrying', 'cancelling')
AND status = ? AND updated_ms <= ? AND NOT kept
"""
# The locks. Existing files have the table under this name.
_CREATE_LOCKS = """
CREATE TABLE IF NOT EXISTS holds (
    key      TEXT NOT NULL PRIMARY KEY,
    owner    TEXT NOT NULL,
    until_ms INTEGER NOT NULL
) WITHOUT ROWID
"""
# A lock is taken if it does not exist, if it has expired, or if its owner extends it.
_TAKE_LOCK = """
INSERT INTO holds (key, owner, until_ms) VALUES (?, ?, ?)
ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, until_ms = excluded.until_ms
WHERE holds.until_ms <= ? OR holds.owner = excluded.owner
"""
_READ_LOCKS = "SELECT key, owner, until_ms FROM holds WHERE key IN (SELECT value FROM json_each(?))"
_UNLOCK = "DELETE FROM holds WHERE key = ? AND owner = ?"
_PRUNE_LOCKS = "DELETE FROM holds WHERE until_ms <= ?"


@dataclass(frozen=True, slots=True)
class _OpenedFile:
    """A connection, and the status of the file that it has opened."""

    connection: sqlite3.Connection
    status: os.stat_result

    def is_at(self, path: Path) -> bool:
        """False if the file was removed, renamed or replaced."""
        try:
            return os.path.samestat(self.status, path.stat())
        except FileNotFoundError:
            return False


class SQLiteResults(DatabaseResults):
    """Records in the file at `path`, which is created with mode 0600 if it does not exist.

    Finished records are deleted `ttl_ms` after their last change, if they are not kept; those that never end later, see
    `stored_ms`. If the file is removed or replaced, the new one is opened, as every other process does. Raises
    ResultError for a file that is not such a database, or was written by a newer version.
    """

    def __init__(self, path: str | Path, *, ttl_ms: int) -> None:
        self.path = Path(path)
        self._file = self.path.absolute()  # the process may change its folder
        self._writer: _OpenedFile | None = None
        self._reader: _OpenedFile | None = None
        super().__init__(ttl_ms=ttl_ms)
        rest_before_forks(self._rest)

    def _rest(self) -> Callable[[], None]:
        """Wait for the end of what is under way: a child that inherits an open transaction could roll it back."""
        locks = [lock for lock in (self._write_lock, self._read_lock) if lock.acquire(timeout=2 * BUSY_TIMEOUT_S)]

        def go_on() -> None:
            for lock in locks:
                lock.release()

        return go_on

    def _forget(self) -> None:
        keep_inherited(self._writer, self._reader)
        self._writer = self._reader = None

    def _read(self, key: str) -> ResultRecord | None:
        rows = self._selected(_READ, key, key)
        return record_of(rows[0]) if rows else None

    def _read_calls(self, call_ids: Sequence[str]) -> list[ResultRecord | None]:
        records = [record_of(row) for row in self._selected(_READ_CALLS, json.dumps(call_ids))]
        by_call = {record.call_id: record for record in records}
        return [by_call.get(call_id) for call_id in call_ids]

    def _statuses(self, call_ids: Sequence[str]) -> list[tuple[str, str]]:
        return self._selected(_READ_STATUSES, json.dumps(call_ids))

    def _open_flows(self, limit: int) -> list[ResultRecord]:
        return [record_of(row) for row in self._selected(_READ_OPEN_FLOWS, limit)]

    def _selected(self, query: str, *parameters: str | int) -> list[Any]:
        """All rows of a query; none if the file does not exist."""
        self._reader = self._at_its_place(self._reader)
        if self._reader is None:
            if not self._file.exists():
                return []
            self._reader = self._open()
        return self._reader.connection.execute(query, parameters).fetchall()

    def _disconnect(self) -> None:
        for opened in (self._writer, self._reader):
            if opened is not None:
                opened.connection.close()
        self._writer = self._reader = None

    def _write(self, records: Sequence[ResultRecord], unlocked: Sequence[Lock], released: Sequence[str]) -> None:
        before_ms = self._prune_before_ms(records)
        with _transaction(self._opened()) as connection:
            connection.executemany(_WRITE, [row_of(record) for record in records])
            connection.executemany(_UNLOCK, [(lock.key, lock.owner) for lock in unlocked])
            connection.executemany(_RELEASE, [(call_id,) for call_id in released])
            if before_ms is not None:
                connection.execute(_PRUNE, (before_ms,))
                connection.executemany(_PRUNE_UNFINISHED, self._unfinished_before_ms(before_ms))
                connection.execute(_PRUNE_LOCKS, (before_ms + self._ttl_ms,))

    def _lock(self, locks: Sequence[Lock], now_ms: int) -> list[Lock]:
        with _transaction(self._opened()) as connection:
            connection.executemany(_TAKE_LOCK, [(*lock, now_ms) for lock in locks])
            keys = json.dumps([lock.key for lock in locks])
            valid = {row[0]: Lock(*row) for row in connection.execute(_READ_LOCKS, (keys,))}
        return [valid[lock.key] for lock in locks]

    def _opened(self) -> sqlite3.Connection:
        self._writer = self._at_its_place(self._writer)
        if self._writer is None:
            self._writer = self._open()
        return self._writer.connection

    def _at_its_place(self, opened: _OpenedFile | None) -> _OpenedFile | None:
        """`opened`, unless its file is not at the path any more: what is written there would be lost."""
        if opened is None or opened.is_at(self._file):
            return opened
        log.warning("%s was removed or replaced by another program; it is opened again", self.path)
        opened.connection.close()
        return None

    def _open(self) -> _OpenedFile:
        refuse_foreign(self._file)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        # SQLite's own mode would be 0644. An existing file is not opened here: closing it would end the locks of this
        # process on it.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(os.path.realpath(self._file), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        connection = sqlite3.connect(
            self._file, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=8
        )
        try:
            connection.execute("PRAGMA journal_mode = TRUNCATE")  # emptying the journal is cheaper than deleting it
            connection.execute("PRAGMA synchronous = FULL")
            self._prepare(connection)
            return _OpenedFile(connection, self._file.stat())
        except BaseException:
            connection.close()
            raise

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        if version == SCHEMA_VERSION and application_id == APPLICATION_ID:
            return
        if version > SCHEMA_VERSION:
            raise ResultError(
                f"{self.path} was written by a newer version of this program", code=ErrorCode.RESULTS_TOO_NEW
            )
        with _transaction(connection):
            # Another process may have updated the file in the meantime.
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if (copy := _COPY.get(version)) is not None:
                _rebuild(connection, copy)
            for statement in (
                _CREATE,
                _CREATE_LOCKS,
                _CREATE_BY_MESSAGE,
                _CREATE_BY_AGE,
                _CREATE_UNFINISHED,
                _CREATE_FLOWS,
            ):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise ResultError(
                f"the results in {self.path} cannot be reached: {error}", code=ErrorCode.RESULTS_UNREACHABLE
            ) from error


def _rebuild(connection: sqlite3.Connection, copy: str) -> None:
    """Make the table of an earlier version anew; the statement `copy` carries its rows over."""
    connection.execute("DROP INDEX results_by_message")
    connection.execute("DROP INDEX results_by_age")
    connection.execute("ALTER TABLE results RENAME TO results_before")
    connection.execute(_CREATE)
    connection.execute(copy)
    connection.execute("DROP TABLE results_before")


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
