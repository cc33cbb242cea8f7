"""The store in a SQLite file: one connection for writes with group commit, read-only connections, and a lock file."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Concatenate, Final, ParamSpec, TypeVar

import apsw

from qtasks.broker.core.values import Accepted, ClaimBatch, Publication, Recovery, Rooms
from qtasks.broker.steady_clock import SteadyClock
from qtasks.broker.store import storage_errors
from qtasks.broker.store.ballast import Ballast, DiskRoom, ballast_path
from qtasks.broker.store.connection import MEMORY, connect, connect_read_only, run_in_transaction
from qtasks.broker.store.file_lock import FileLock
from qtasks.broker.store.file_watch import FileWatch
from qtasks.broker.store.group_commit import GroupCommit
from qtasks.broker.store.integrity import lost_commits, page_check, wal_check
from qtasks.broker.store.interface import SHORT_WRITE
from qtasks.broker.store.verbs import broker_time, dead_letters, retention, schedules
from qtasks.broker.store.verbs.accept import accept
from qtasks.broker.store.verbs.claim import claim
from qtasks.broker.store.verbs.settle import recover
from qtasks.clock import Clock
from qtasks.errors import StoreError
from qtasks.threads import DaemonThreadPool

log = logging.getLogger("qtasks.broker")

P = ParamSpec("P")
T = TypeVar("T")

_READERS: Final = 2
"""Threads for reads, and as many for long ones."""
_ACCEPTING: Final = frozenset({schedules.fire, dead_letters.retry_dead_letters})
"""Verbs that store new messages, as `accept` does: they are refused while there is no room for them."""


class SqliteStore:
    """A store in one file, or with the path ``:memory:`` in memory, where nothing survives the process.

    Made by `open`. Belongs to the event loop that it is made in. `release` runs at the end of `close`. A change of a
    file that `watch` notices makes the store fail.
    """

    def __init__(
        self,
        path: str,
        db: apsw.Connection,
        clock: SteadyClock,
        *,
        release: Callable[[], None],
        watch: FileWatch | None = None,
    ) -> None:
        self.path = path
        self.promise = "memory: lost when the process ends" if path == MEMORY else "sqlite: fsync per commit"
        self.clock = clock
        self._db = db
        self._release = release
        self._closed = False
        self._watch = watch
        self._commits = GroupCommit(
            db, clock, on_loop=path == MEMORY, file_change=None if watch is None else watch.essential_change
        )
        self.broken = self._commits.broken
        self.written = self._commits.written
        self._room = None if path == MEMORY else DiskRoom(db, path)
        self.lacks_room = asyncio.Event() if self._room is None else self._room.lacking
        if self._room is not None:
            self._commits.make_room = self._room.make_room
        self._readers = DaemonThreadPool(_READERS, "qtasks-read")
        self._long_readers = DaemonThreadPool(_READERS, "qtasks-read-long")
        self._thread = threading.local()
        self._read_connections: list[apsw.Connection] = []
        self._watching: asyncio.Task[None] | None = None
        if watch is not None:
            self._commits.note_move = watch.note_move
            self._watching = asyncio.create_task(
                watch.run(clock, self.fail, self._check_foreign_write), name="qtasks-watch"
            )

    @classmethod
    async def open(cls, path: str, clock: Clock) -> tuple[SqliteStore, Recovery]:
        """Open or create the store at `path`, and make the attempts due again that a dead process left unfinished.

        Raises StoreLocked if another store has the file open (the message names its process), SchemaTooNew, or
        StoreError if the file is not a qtasks database.
        """
        path = _real(path)
        lock = None if path == MEMORY else FileLock.acquire(path)
        db: apsw.Connection | None = None

        def release() -> None:
            if db is not None:
                _close(db)
            if lock is not None:
                lock.release()

        try:
            if lock is not None and (lost := lost_commits.sentence(path)) is not None:
                raise storage_errors.damaged(path, lost)
            db = connect(path)
            watch = None if lock is None else _watched(db, path, lock)
            steady = run_in_transaction(db, broker_time.resume, clock)
            recovery = run_in_transaction(db, recover, now_ms=steady.now_ms())
            if watch is not None and (change := watch.change()) is not None:
                raise StoreError(change)
        except apsw.Error as error:
            release()
            if storage_errors.is_full(error) and Ballast(ballast_path(path), 0).remove():
                return await cls.open(path, clock)  # an earlier process has left it for this moment
            raise storage_errors.of_start(error, path) from error
        except BaseException:
            release()
            raise
        return cls(path, db, steady, release=release, watch=watch), recovery

    async def write(self, verb: Callable[Concatenate[apsw.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See `Store.write`."""
        return await self._commits.submit(self._work(verb, *args, **kwargs))

    async def write_patiently(
        self, verb: Callable[Concatenate[apsw.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """See `Store.write_patiently`."""
        return await self._commits.submit(self._work(verb, *args, **kwargs), is_patient=True)

    async def write_long(
        self, verb: Callable[Concatenate[apsw.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """See `Store.write_long`."""
        return await self._commits.submit(self._work(verb, *args, **kwargs), is_long=True)

    def _work(
        self, verb: Callable[Concatenate[apsw.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> Callable[[], T]:
        work = functools.partial(verb, self._db, *args, **kwargs)
        return self._if_room(work) if getattr(verb, "__wrapped__", verb) in _ACCEPTING else work

    async def read(self, query: Callable[Concatenate[apsw.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See `Store.read`. Runs on a thread, on a connection of its own."""
        return await self._read(self._readers, lambda db: query(db, *args, **kwargs))

    async def read_long(
        self, query: Callable[Concatenate[apsw.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """See `Store.read_long`."""
        return await self._read(self._long_readers, lambda db: query(db, *args, **kwargs))

    async def _read(self, readers: DaemonThreadPool, query: Callable[[apsw.Connection], T]) -> T:
        if self._closed:
            raise StoreError("the store is closed")
        if self.path == MEMORY:  # a second connection would open another, empty database
            return await self.write(query)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(readers, lambda: query(self._read_connection()))
        except (apsw.BusyError, UnicodeDecodeError) as error:
            raise storage_errors.translated(error) from error
        except apsw.Error as error:
            if not storage_errors.is_fatal(error):
                raise
            self.fail(storage_errors.reason_of_failure(error, self.path))
            raise StoreError(self.failure or "") from error

    async def accept(self, publications: Sequence[Publication], *, now_ms: int) -> list[Accepted]:
        """See `Store.accept`."""
        return await self._commits.submit(
            self._if_room(lambda: accept(self._db, publications, now_ms=now_ms)),
            is_long=len(publications) > SHORT_WRITE,
        )

    def _if_room(self, work: Callable[[], T]) -> Callable[[], T]:
        """`work`, which stores new messages, or StoreFull if there is no room for them when its turn comes."""
        if (room := self._room) is None:
            return work

        def checked() -> T:
            room.check()
            return work()

        return checked

    @property
    def shortage(self) -> str | None:
        """See `Store.shortage`."""
        return None if self._room is None else self._room.shortage

    async def look_for_room(self) -> None:
        """See `Store.look_for_room`."""
        if (room := self._room) is None or not self.lacks_room.is_set():
            return
        loop = asyncio.get_running_loop()
        self._commits.shortens_log = await loop.run_in_executor(self._readers, room.log_takes_room)
        await self.write(retention.make_spare, room.spare_bytes)
        free_inside = await self.write(retention.free_bytes)
        await loop.run_in_executor(self._readers, room.look, free_inside)

    async def claim(self, *, now_ms: int, limit: int, rooms: Rooms) -> ClaimBatch:
        """See `Store.claim`."""
        return await self.write(claim, now_ms=now_ms, limit=limit, rooms=rooms)

    @property
    def failure(self) -> str | None:
        """See `Store.failure`."""
        return self._commits.failure

    def fail(self, reason: str) -> None:
        """See `Store.fail`."""
        self._commits.fail(reason)

    async def _check_foreign_write(self) -> None:
        """Another program has written into the database file: fail if that has damaged it."""
        with contextlib.suppress(StoreError):  # the store has failed
            if findings := await self.read_long(page_check.fresh_findings):
                what = f"another program wrote into it while the broker used it; {'; '.join(findings[:3])}"
                self.fail(storage_errors.sentence_of_damage(self.path, what))

    async def close(self) -> None:
        """See `Store.close`."""
        if self._closed:
            return
        self._closed = True
        if self._watch is not None and self._watching is not None:
            self._watch.end()
            self._watching.cancel()  # a disk that does not answer would keep it
            await asyncio.wait([self._watching])
        await self._commits.close()
        for connection in self._read_connections:
            connection.interrupt()  # a check of all pages would delay the end
        self._readers.shutdown()
        self._long_readers.shutdown()
        for connection in self._read_connections:
            connection.close()
        if self._room is not None:
            self._room.close()
        if self.path != MEMORY:
            page_check.note_failure(self.path, failed=self.failure is not None)
        if self._watch is not None and self._watch.overwriting() is not None:
            self._db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # what is left would be destroyed
        self._release()

    def _read_connection(self) -> apsw.Connection:
        """The read-only connection of this thread."""
        connection: apsw.Connection | None = getattr(self._thread, "connection", None)
        if connection is None:
            connection = self._thread.connection = connect_read_only(self.path)
            self._read_connections.append(connection)
        return connection


def _watched(db: apsw.Connection, path: str, lock: FileLock) -> FileWatch:
    """Check the database that SQLite has just opened; a watch over its files. Raises StoreError."""
    lock.confirm()
    wal_check.empty_log(db)
    watch = FileWatch(path, lock.files)
    if (page_check.is_small(db) or page_check.has_failed(path)) and (findings := page_check.page_findings(db)):
        raise storage_errors.damaged(path, "; ".join(findings[:3]))
    return watch


def _close(db: apsw.Connection) -> None:
    """Close the connection, also on a disk that fails: the log keeps what could not be moved into the database."""
    try:
        db.close()
    except apsw.Error as error:
        log.warning("the write-ahead log cannot be moved into the database at the end: %s", error)


def _real(path: str) -> str:
    """The path without symbolic links, as SQLite resolves it; the process may change its folder afterwards."""
    return path if path == MEMORY else os.path.realpath(path)
