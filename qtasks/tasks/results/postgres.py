"""Results in PostgreSQL.

It uses psycopg instead of asyncpg: a backend is called from any thread, by code without an event loop, and one thread
of the dispatcher writes for all. Missing tables are created. Nothing outlives a transaction in the session of a
connection, so that a pooler such as PgBouncer may give each transaction another one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qtasks.error_codes import ErrorCode
from qtasks.errors import ConfigurationError, ResultError
from qtasks.forks import keep_inherited
from qtasks.tasks.results.backend import FLOW_PREFIX, REFUSED, Lock, ResultRecord, record_of, row_of
from qtasks.tasks.results.database import DatabaseResults

if TYPE_CHECKING:
    import psycopg

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5

_SCHEMA_LOCK = 0x71746173  # "qtas": two processes that start at once must not both create the tables
_CREATE = """
CREATE TABLE IF NOT EXISTS qtasks_results (
    call_id    TEXT NOT NULL PRIMARY KEY,
    message_id TEXT NOT NULL,
    task       TEXT NOT NULL,
    status     TEXT NOT NULL,
    attempt    INTEGER NOT NULL CHECK (attempt >= 1),
    updated_ms BIGINT NOT NULL,
    value      TEXT,
    error      TEXT,
    progress   TEXT,
    kept       BOOLEAN NOT NULL DEFAULT FALSE
);
CREATE INDEX IF NOT EXISTS qtasks_results_by_message ON qtasks_results (message_id);
CREATE INDEX IF NOT EXISTS qtasks_results_by_age ON qtasks_results (updated_ms)
    WHERE status IN ('succeeded', 'failed', 'cancelled', 'expired');
CREATE INDEX IF NOT EXISTS qtasks_results_unfinished ON qtasks_results (status, updated_ms)
    WHERE status IN ('queued', 'running', 'retrying', 'cancelling');
CREATE TABLE IF NOT EXISTS qtasks_holds (
    key      TEXT NOT NULL PRIMARY KEY,
    owner    TEXT NOT NULL,
    until_ms BIGINT NOT NULL
);
"""
# A table of an earlier version has no `kept`. Altering locks all others out, so it is not done in vain.
_ADD_KEPT = """
DO $$ BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = 'qtasks_results'::regclass AND attname = 'kept'
    ) THEN
        ALTER TABLE qtasks_results ADD COLUMN kept BOOLEAN NOT NULL DEFAULT FALSE;
    END IF;
END $$
"""
_IS_KEPT_FLOW = f"kept AND left(call_id, {len(FLOW_PREFIX)}) = '{FLOW_PREFIX}'"
_CREATE_FLOWS = f"CREATE INDEX IF NOT EXISTS qtasks_results_flows ON qtasks_results (updated_ms) WHERE {_IS_KEPT_FLOW}"
_REFUSED = ", ".join(f"'{pair}'" for pair in REFUSED)
# The rules of `backend.merged`.
_WRITE = f"""
INSERT INTO qtasks_results AS r (call_id, message_id, task, status, attempt, updated_ms, value, error, progress, kept)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (call_id) DO UPDATE SET
    message_id = excluded.message_id, status = excluded.status, attempt = excluded.attempt,
    updated_ms = excluded.updated_ms, value = excluded.value, error = excluded.error, progress = excluded.progress,
    kept = r.kept OR (excluded.kept AND r.status <> 'succeeded')
WHERE excluded.status = 'succeeded' OR r.status || ' ' || excluded.status NOT IN ({_REFUSED})
"""  # noqa: S608 - the pairs are constants
_RELEASE = "UPDATE qtasks_results SET kept = FALSE WHERE call_id = %s AND kept"
_SELECT = """
SELECT call_id, message_id, task, status, attempt, updated_ms, value, error, progress, kept FROM qtasks_results
"""
_READ = f"{_SELECT} WHERE call_id = %(key)s OR message_id = %(key)s LIMIT 1"
_READ_STATUSES = "SELECT call_id, status FROM qtasks_results WHERE call_id = ANY(%s)"
_READ_OPEN_FLOWS = f"""
{_SELECT} WHERE {_IS_KEPT_FLOW} AND status NOT IN ('succeeded', 'failed', 'cancelled', 'expired')
ORDER BY updated_ms LIMIT %s
"""
_PRUNE = """
DELETE FROM qtasks_results
WHERE status IN ('succeeded', 'failed', 'cancelled', 'expired') AND updated_ms <= %s AND NOT kept
"""
_PRUNE_UNFINISHED = """
DELETE FROM qtasks_results WHERE status IN ('queued', 'running', 'retrying', 'cancelling')
AND status = %s AND updated_ms <= %s AND NOT kept
"""
# A lock is taken if it does not exist, if it has expired, or if its owner extends it; the row lock decides races.
_TAKE_LOCK = """
INSERT INTO qtasks_holds AS h (key, owner, until_ms) VALUES (%s, %s, %s)
ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, until_ms = excluded.until_ms
WHERE h.until_ms <= %s OR h.owner = excluded.owner
RETURNING owner, until_ms
"""
_READ_LOCK = "SELECT owner, until_ms FROM qtasks_holds WHERE key = %s"
_UNLOCK = "DELETE FROM qtasks_holds WHERE key = %s AND owner = %s"
_PRUNE_LOCKS = "DELETE FROM qtasks_holds WHERE until_ms <= %s"


class PostgresResults(DatabaseResults):
    """Records in the database of `url`.

    Finished records are deleted `ttl_ms` after their last change, if they are not kept; those that never end later, see
    `stored_ms`. Raises ConfigurationError
    without psycopg, ResultError when the database cannot be reached.
    """

    def __init__(self, url: str, *, ttl_ms: int) -> None:
        _driver()
        self._url = url
        self._writer: psycopg.Connection[Any] | None = None
        self._reader: psycopg.Connection[Any] | None = None
        super().__init__(ttl_ms=ttl_ms)

    def _write(self, records: Sequence[ResultRecord], unlocked: Sequence[Lock], released: Sequence[str]) -> None:
        before_ms = self._prune_before_ms(records)

        def write(connection: psycopg.Connection[Any]) -> None:
            with connection.transaction(), connection.cursor() as cursor:
                rows = [row_of(record) for record in records]
                if released:
                    _write_and_release(connection, rows, released)
                elif rows:
                    cursor.executemany(_WRITE, rows)
                if unlocked:
                    cursor.executemany(_UNLOCK, sorted((lock.key, lock.owner) for lock in unlocked))
                if before_ms is not None:
                    cursor.execute(_PRUNE, (before_ms,))
                    cursor.executemany(_PRUNE_UNFINISHED, self._unfinished_before_ms(before_ms))
                    cursor.execute(_PRUNE_LOCKS, (before_ms + self._ttl_ms,))

        self._through("_writer", write)

    def _lock(self, locks: Sequence[Lock], now_ms: int) -> list[Lock]:
        def take(connection: psycopg.Connection[Any]) -> list[Lock]:
            valid: dict[str, Lock] = {}
            with connection.transaction(), connection.cursor() as cursor:
                for lock in sorted(locks, key=lambda lock: lock.key):
                    row = cursor.execute(_TAKE_LOCK, (lock.key, lock.owner, lock.until_ms, now_ms)).fetchone()
                    row = row or cursor.execute(_READ_LOCK, (lock.key,)).fetchone()
                    assert row is not None, "a conflict is with a row that this transaction has locked"
                    valid[lock.key] = Lock(lock.key, *row)
            return [valid[lock.key] for lock in locks]

        return self._through("_writer", take)

    def _read(self, key: str) -> ResultRecord | None:
        row = self._through("_reader", lambda connection: connection.execute(_READ, {"key": key}).fetchone())
        return None if row is None else record_of(row)

    def _statuses(self, call_ids: Sequence[str]) -> list[tuple[str, str]]:
        ids = list(call_ids)
        return self._through("_reader", lambda connection: connection.execute(_READ_STATUSES, (ids,)).fetchall())

    def _open_flows(self, limit: int) -> list[ResultRecord]:
        rows = self._through("_reader", lambda connection: connection.execute(_READ_OPEN_FLOWS, (limit,)).fetchall())
        return [record_of(row) for row in rows]

    def _through(self, which: str, work: Callable[[psycopg.Connection[Any]], T]) -> T:
        """Do `work` on a connection; if the connection was lost, do it once more on a new one."""
        driver = _driver()
        previous: psycopg.Connection[Any] | None = getattr(self, which)
        if previous is not None:
            try:
                return work(previous)
            except driver.OperationalError:
                setattr(self, which, None)
                previous.close()
        connection = self._open()
        setattr(self, which, connection)
        return work(connection)

    def _open(self) -> psycopg.Connection[Any]:
        connection: psycopg.Connection[Any] = _driver().connect(
            self._url,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name="qtasks results",
            prepare_threshold=None,  # behind a pooler, the next transaction may have another session
        )
        try:
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (_SCHEMA_LOCK,))
                connection.execute(_CREATE)
                connection.execute(_ADD_KEPT)
                connection.execute(_CREATE_FLOWS)
        except BaseException:
            connection.close()
            raise
        return connection

    def _disconnect(self) -> None:
        for connection in (self._writer, self._reader):
            if connection is not None:
                connection.close()
        self._writer = self._reader = None

    def _forget(self) -> None:
        for connection in (self._writer, self._reader):
            if connection is not None:
                keep_inherited(connection)
                _detach(connection)
        self._writer = self._reader = None

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except _driver().Error as error:
            raise ResultError(
                f"the results in PostgreSQL cannot be reached: {error}", code=ErrorCode.RESULTS_UNREACHABLE
            ) from error


def _driver() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise ConfigurationError(
            "results in PostgreSQL need psycopg, which is not installed",
            fix='pip install "qstash-tasks[postgres]"',
            code=ErrorCode.PACKAGE_MISSING,
        ) from error
    return psycopg


def _detach(connection: psycopg.Connection[Any]) -> None:
    """Replace the socket of a connection of the parent process, so that the connection ends when the parent does."""
    with contextlib.suppress(_driver().Error, OSError), Path(os.devnull).open("r+b", buffering=0) as nothing:
        os.dup2(nothing.fileno(), connection.fileno(), inheritable=False)


def _write_and_release(
    connection: psycopg.Connection[Any], rows: Sequence[tuple[Any, ...]], released: Sequence[str]
) -> None:
    """Write `rows`, then release, one call after the other: see `latest_records` for the order."""
    statements = [(row[0], _WRITE, row) for row in rows]
    statements += [(call_id, _RELEASE, (call_id,)) for call_id in released]
    with connection.pipeline():
        for _, statement, parameters in sorted(statements, key=lambda entry: entry[0]):  # stable: a write comes first
            connection.execute(statement, parameters)
