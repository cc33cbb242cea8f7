"""SQLite behind the store's verbs: one writer connection, group commit, read-only readers, a lock file.

How it works. A verb that changes something is a function of `verbs`, queued with a future. In the next turn of the
event loop everything queued runs, one verb after the other, on the loop's own thread inside one transaction, and is
committed. So a lone publish is committed at once, and under load one fsync serves many. The statements stay on the
loop's thread because each of them is a few microseconds of C, and passing the interpreter lock to another thread and
back costs a hundred times that when the loop is busy. For the same reason a commit is made in place while commits are
quick; on a disk where they are not, the writer thread makes them, and what arrives meanwhile forms the next group.
The writer thread also moves the log into the database file, after the answers have left.

One bad verb never fails its neighbours: its exception rolls the group back, and the members run again one
by one. When the storage itself fails to sync, nothing more is accepted (what the disk holds is unknown).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw

from qtasks.broker.core.values import (
    Accepted,
    AccountCredentials,
    ClaimBatch,
    DeadLetterCriteria,
    LogCriteria,
    Page,
    Publication,
    Recovery,
    Retention,
    Settled,
    Settlement,
    StoredToken,
)
from qtasks.broker.store import queries, retention, tokens, verbs
from qtasks.broker.store.file_lock import FileLock
from qtasks.broker.store.resources import Resources
from qtasks.errors import SchemaTooNew, StoreError, StoreFull
from qtasks.protocol.messages import DeadLetter, LogEntry, Message, SigningKeys

T = TypeVar("T")
Verb = Callable[[apsw.Connection], Any]

log = logging.getLogger("qtasks.broker")

MEMORY: Final = ":memory:"
GROUP_LIMIT: Final = 200
"""Verbs in one commit at most: bounds how long the loop is busy with statements (a few milliseconds)."""
QUICK_S: Final = 0.002
"""A commit that takes less is made in place: to hand it to a thread and back costs a busy loop about as much."""
_MEMORY_OF_PACE: Final = 8
"""About how many commits make the pace that is expected of the next."""
CHECKPOINT_PAGES: Final = 4_000
"""Pages of the write-ahead log from which on it is moved into the database file."""
_READERS: Final = 2
_BUSY_TIMEOUT_MS: Final = 5_000


class SqliteStore(Resources):
    """A store in one file, or in memory with path ``:memory:`` (then nothing survives the process).

    Open it with `open`; it belongs to the event loop it was opened in.
    """

    def __init__(self, path: str, db: apsw.Connection, lock: FileLock | None) -> None:
        self.path = path
        self.promise = "memory: lost when the process ends" if path == MEMORY else "sqlite: fsync per commit"
        self._db = db
        self._lock = lock
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[Verb, asyncio.Future[Any]]] = deque()
        self._committing = False
        self._one_by_one = 0
        self._broken: str | None = None
        self.broken = asyncio.Event()
        """Set when the storage has failed for good: the process should end and be started again."""
        self._closed = False
        self._pace_s = 0.0  # of late commits
        self._log_pages = 0
        self._congested: frozenset[str] = frozenset()  # a hint for accept; the rows are the truth
        self._idle = asyncio.Event()
        self._idle.set()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="qtasks-commit")
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="qtasks-read")
        self._local = threading.local()
        self._read_connections: list[apsw.Connection] = []
        db.set_wal_hook(self._note_log)  # instead of SQLite's own, which moves the log before a commit returns

    @classmethod
    async def open(cls, path: str, *, now_ms: int) -> tuple[SqliteStore, Recovery]:
        """Open or create the store at `path`, bring its schema up to date, and return what a dead process left due.

        Raises StoreLocked when another process holds the file (the message names it), SchemaTooNew, or
        StoreError when the file is not a database of ours.
        """
        lock = None if path == MEMORY else FileLock.acquire(Path(f"{path}.lock"))
        try:
            db = connect(path)
            try:
                recovery = inside(db, lambda db: verbs.recover(db, now_ms=now_ms))
            except BaseException:
                db.close()
                raise
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        return cls(path, db, lock), recovery

    async def accept(self, publications: Sequence[Publication], *, now_ms: int) -> list[Accepted]:
        """See `Store.accept`."""
        return await self._write(lambda db: verbs.accept(db, publications, now_ms=now_ms, congested=self._congested))

    async def claim(self, *, now_ms: int, limit: int, host_limit: int, in_flight: Mapping[str, int]) -> ClaimBatch:
        """See `Store.claim`."""
        found = await self._write(
            lambda db: verbs.claim(db, now_ms=now_ms, limit=limit, host_limit=host_limit, in_flight=in_flight)
        )
        self._congested = found.parked
        return found

    async def settle(self, settlement: Settlement, *, now_ms: int) -> Settled | None:
        """See `Store.settle`."""
        return await self._write(lambda db: verbs.settle(db, settlement, now_ms=now_ms))

    async def cancel(self, account: int, message_ids: Sequence[str], *, now_ms: int) -> int:
        """See `Store.cancel`."""
        return await self._write(lambda db: verbs.cancel(db, account, message_ids, now_ms=now_ms))

    async def ensure_account(self, credentials: AccountCredentials, fresh: SigningKeys) -> int:
        """See `verbs.ensure_account`."""
        return await self._write(lambda db: verbs.ensure_account(db, credentials, fresh))

    async def prune(self, keep: Retention, *, now_ms: int) -> int:
        """See `retention.prune` and `retention.forget`; both in one transaction."""
        return await self._write(
            lambda db: retention.prune(db, keep, now_ms=now_ms) + retention.forget(db, now_ms=now_ms)
        )

    async def probe(self, *, now_ms: int) -> None:
        """Write something, to see that the storage takes it. Raises StoreError when it does not."""
        await self._write(lambda db: verbs.probe(db, now_ms=now_ms))

    async def add_token(self, token: str, account: int, name: str, *, read_only: bool, now_ms: int) -> bool:
        """See `tokens.add`."""
        return await self._write(lambda db: tokens.add(db, token, account, name, read_only=read_only, now_ms=now_ms))

    async def remove_token(self, account: int, name: str) -> bool:
        """See `tokens.remove`."""
        return await self._write(lambda db: tokens.remove(db, account, name))

    async def tokens(self) -> list[StoredToken]:
        """See `tokens.every`."""
        return await self._read(tokens.every)

    async def message(self, account: int, message_id: str) -> Message | None:
        """See `Store.message`."""
        return await self._read(lambda db: queries.message(db, account, message_id))

    async def log(self, account: int, which: LogCriteria, *, cursor: str | None, count: int) -> Page[LogEntry]:
        """See `Store.log`."""
        return await self._read(lambda db: queries.log(db, account, which, cursor=cursor, count=count))

    async def dead_letters(
        self, account: int, which: DeadLetterCriteria, *, cursor: str | None, count: int
    ) -> Page[DeadLetter]:
        """See `Store.dead_letters`."""
        return await self._read(lambda db: queries.dead_letters(db, account, which, cursor=cursor, count=count))

    async def keys(self, account: int) -> SigningKeys:
        """See `Store.keys`."""
        return await self._read(lambda db: verbs.keys(db, account))

    async def close(self) -> None:
        """Finish what was submitted, then release file and lock. Idempotent."""
        if self._closed:
            return
        self._closed = True
        await self._idle.wait()
        self._writer.shutdown()
        self._readers.shutdown()
        for connection in self._read_connections:
            connection.close()
        self._db.close()
        if self._lock is not None:
            self._lock.release()

    def _write(self, verb: Callable[[apsw.Connection], T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self._loop.create_future()
        if self._closed or self._broken is not None:
            future.set_exception(StoreError(self._broken or "the store is closed"))
            return future
        self._queue.append((verb, future))
        if not self._committing:
            self._committing = True
            self._idle.clear()
            # Not at once: what else this turn of the loop submits joins the group.
            self._loop.call_soon(self._run_group)
        return future

    def _run_group(self) -> None:
        """Run what is queued in one transaction."""
        size = 1 if self._one_by_one else min(len(self._queue), GROUP_LIMIT)
        group = [self._queue.popleft() for _ in range(size)]
        answers: list[Any] = []
        try:
            self._db.execute("BEGIN IMMEDIATE")
            answers.extend(verb(self._db) for verb, _ in group)
        except Exception as error:
            self._failed(group, error)
            return
        if self.path == MEMORY or self._pace_s < QUICK_S:
            self._committed(group, answers, self._commit())
        else:
            self._in_thread(self._commit, lambda error: self._committed(group, answers, error))

    def _commit(self) -> apsw.Error | None:
        """Make what was written last; the error if it cannot be. Runs on the loop's thread or the writer's."""
        began_s = time.perf_counter()
        try:
            self._db.execute("COMMIT")
        except apsw.Error as error:
            return error
        self._pace_s += (time.perf_counter() - began_s - self._pace_s) / _MEMORY_OF_PACE
        return None

    def _in_thread(self, work: Callable[[], T], then: Callable[[T], None]) -> None:
        """Have the writer thread do something that takes long; the loop goes on with `then`."""
        doing = self._writer.submit(work)
        doing.add_done_callback(lambda done: self._loop.call_soon_threadsafe(then, done.result()))

    def _committed(
        self, group: list[tuple[Verb, asyncio.Future[Any]]], answers: list[Any], error: apsw.Error | None
    ) -> None:
        if error is not None:
            self._failed(group, error)
        else:
            self._settled(group, answers)

    def _settled(self, group: list[tuple[Verb, asyncio.Future[Any]]], answers: list[Any]) -> None:
        for (_, future), answer in zip(group, answers, strict=True):
            if not future.done():  # a caller may have gone away; the work is done all the same
                future.set_result(answer)
        self._next(len(group))

    def _failed(self, group: list[tuple[Verb, asyncio.Future[Any]]], error: BaseException) -> None:
        """Roll back; run the members of a group again one by one, or report the error of a lone one."""
        # SQLite itself has rolled back after some errors (full disk, failed write): ask, do not assume.
        if self._db.in_transaction:
            with contextlib.suppress(apsw.Error):
                self._db.execute("ROLLBACK")
        if isinstance(error, apsw.IOError):
            # After a failed sync the page cache no longer tells what the disk holds: repeating proves nothing.
            self._break(_failed_storage(error), group)
            return
        if len(group) > 1:
            self._queue.extendleft(reversed(group))
            self._one_by_one = len(group)
            self._loop.call_soon(self._run_group)
            return
        [(_, future)] = group
        if not future.done():
            future.set_exception(_translate(error))
        self._next(1)

    def _break(self, reason: str, group: list[tuple[Verb, asyncio.Future[Any]]]) -> None:
        self._broken = reason
        self.broken.set()
        for _, future in [*group, *self._queue]:
            if not future.done():
                future.set_exception(StoreError(reason))
        self._queue.clear()
        self._next(0)

    def _next(self, done: int) -> None:
        self._one_by_one = max(0, self._one_by_one - done)
        if self._log_pages >= CHECKPOINT_PAGES and self._broken is None:
            self._log_pages = 0
            self._in_thread(self._checkpoint, self._checkpointed)
        elif self._queue:
            self._loop.call_soon(self._run_group)
        else:
            self._committing = False
            self._idle.set()

    def _note_log(self, _db: apsw.Connection, _name: str, pages: int) -> int:
        """SQLite tells of every commit how long the write-ahead log is now."""
        self._log_pages = pages
        return apsw.SQLITE_OK

    def _checkpoint(self) -> apsw.Error | None:
        """Move the log into the database file; readers may keep some of it for the next time."""
        try:
            self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.Error as error:
            return error
        return None

    def _checkpointed(self, error: apsw.Error | None) -> None:
        if isinstance(error, apsw.IOError):
            self._break(_failed_storage(error), [])
            return
        if error is not None:  # no room, say: the log holds everything, and the next commit tries again
            log.warning("the write-ahead log cannot be moved into the database: %s", error)
        self._next(0)

    async def _read(self, query: Callable[[apsw.Connection], T]) -> T:
        if self._closed:
            raise StoreError("the store is closed")
        if self.path == MEMORY:  # a second connection would see another, empty database
            return await self._write(query)
        return await self._loop.run_in_executor(self._readers, lambda: query(self._reader()))

    def _reader(self) -> apsw.Connection:
        connection: apsw.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = apsw.Connection(self.path, flags=apsw.SQLITE_OPEN_READONLY)
            connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
            connection.execute("PRAGMA query_only = ON")
            self._local.connection = connection
            self._read_connections.append(connection)
        return connection


def connect(path: str, vfs: str | None = None) -> apsw.Connection:
    """A writer connection with the promised durability and the current schema."""
    try:
        if path != MEMORY:
            # Messages are nobody else's business; SQLite gives its other files the mode of this one.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        db = apsw.Connection(path, vfs=vfs)
        db.set_busy_timeout(_BUSY_TIMEOUT_MS)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA fullfsync = ON")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        db.execute("PRAGMA journal_size_limit = 67108864")
        db.execute("PRAGMA cache_size = -16384")
        if path == MEMORY:
            _copy_blank(db)
        else:
            migrate(db)
    except (apsw.NotADBError, apsw.CorruptError) as error:
        raise StoreError(
            f"{path} is not a qtasks database, or it is damaged: {error}",
            fix="name another file with --db, or restore a backup",
        ) from error
    except (apsw.CantOpenError, OSError) as error:
        raise StoreError(
            f"cannot open {path}: {error}", fix="check that the directory exists and may be written"
        ) from error
    return db


def migrate(db: apsw.Connection) -> None:
    """Bring the schema up to date, one transaction a step; a newer schema than ours is refused."""
    steps = sorted(
        (entry for entry in resources.files("qtasks.broker.store.schema").iterdir() if entry.name.endswith(".sql")),
        key=lambda entry: entry.name,
    )
    version = db.pragma("user_version")
    if version > len(steps):
        raise SchemaTooNew(
            f"the database has schema version {version}; this program knows versions up to {len(steps)}",
            fix="start the newer program that wrote it, or name another file with --db",
        )
    for number, step in enumerate(steps[version:], version + 1):
        sql = step.read_text(encoding="utf-8")

        def apply(db: apsw.Connection, sql: str = sql, number: int = number) -> None:
            db.execute(sql)
            db.execute(f"PRAGMA user_version = {number}")

        inside(db, apply)


def _copy_blank(db: apsw.Connection) -> None:
    """Give a new database the current schema as a copy: tests open stores in memory by the thousand."""
    blank = apsw.Connection(MEMORY)
    blank.deserialize("main", _blank())
    with db.backup("main", blank, "main") as copy:
        copy.step()
    blank.close()


@functools.cache
def _blank() -> bytes:
    """An empty database with the current schema."""
    db = apsw.Connection(MEMORY)
    migrate(db)
    image = db.serialize("main")
    db.close()
    return image


def inside(db: apsw.Connection, verb: Callable[[apsw.Connection], T]) -> T:
    """Run `verb` in a transaction of its own, inline."""
    db.execute("BEGIN IMMEDIATE")
    try:
        answer = verb(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return answer


def _failed_storage(error: apsw.IOError) -> str:
    return f"the storage failed: {error}; restart the broker once the disk is sound"


def _translate(error: BaseException) -> BaseException:
    if isinstance(error, apsw.FullError):
        return StoreFull("no space left for the store; nothing of this request was stored")
    if isinstance(error, apsw.BusyError):
        return StoreError("the store is busy: another program holds a lock on it; nothing of this request was stored")
    if isinstance(error, apsw.Error):
        return StoreError(f"the store refused: {error}")
    return error
