"""Group commit: many writes in one transaction, so that one fsync serves all of them.

How it works. A write is queued with a future. In the next turn of the event loop all queued writes run, one after the
other, on the loop's own thread and in one transaction, which is then committed. So a lone write is committed at once,
and under load one fsync serves many. The statements stay on the loop's thread because each takes a few microseconds
of C; passing the interpreter lock to another thread and back costs a hundred times that while the loop is busy. For
the same reason the loop's thread also commits while commits are quick. On a disk where they are slow, the writer
thread commits, and the writes that arrive meanwhile form the next group. The writer thread also moves the write-ahead
log into the database file, after the results have been returned.

Nothing here keeps the loop busy for long. A group ends when its statements have taken `TURN_S`. A long write, such as
the messages of a large URL group, runs on the writer thread, alone in its transaction; short writes and long ones take
turns, so that a short write waits for one long write at most. A patient write, for whose result no client waits, waits
`PATIENCE_S` for another one to share its commit. If another program holds a lock
on the file, the writer thread waits for it: for `BUSY_S`, then all writes that wait are refused.

A write that raises never fails its neighbours: the group is rolled back, and its members run again one by one. If the
storage fails to sync, no further write is accepted, because what the disk holds is unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, TypeVar

import apsw

from qtasks.broker.store import storage_errors
from qtasks.broker.store.connection import CHECKPOINT_PAGES
from qtasks.clock import Clock
from qtasks.errors import StoreError
from qtasks.threads import DaemonThreadPool

T = TypeVar("T")

log = logging.getLogger("qtasks.broker")

GROUP_LIMIT: Final = 200
"""Writes in one commit at most. Limits how long the statements of one group keep the loop busy: a few milliseconds."""
QUICK_S: Final = 0.002
"""Commits that take less, in seconds, run on the loop's thread: a busy loop pays about as much for a thread switch."""
TURN_S: Final = 0.01
"""Seconds after which a group takes no further write: its statements keep the loop busy."""
PATIENCE_S: Final = 0.002
"""Longest wait of a patient write for another one to share its commit, seconds."""
BUSY_S: Final = 5.0
"""Longest wait for the lock of another program, seconds; for all writes that wait together."""
_AVERAGED_COMMITS: Final = 8
"""About how many of the last commits count in the expected duration of the next."""


class _QueuedWrite(NamedTuple):
    """Work that runs in a transaction, and the future for its result."""

    work: Callable[[], Any]
    future: asyncio.Future[Any]
    is_long: bool

    def succeed(self, result: object) -> None:
        """Return `result`, unless the caller was cancelled; the write is committed all the same."""
        if not self.future.done():
            self.future.set_result(result)

    def refuse(self, error: BaseException) -> None:
        """Raise `error`, unless the caller was cancelled."""
        if not self.future.done():
            self.future.set_exception(error)


class GroupCommit:
    """Commits writes to one connection in groups. Belongs to the event loop that it is created in.

    `on_loop` keeps everything on the loop's thread: right for a database in memory. `file_change` is asked after each
    commit, before the results are returned: a sentence means that what was committed is not in the file of this name.
    """

    def __init__(
        self,
        db: apsw.Connection,
        clock: Clock,
        *,
        on_loop: bool,
        file_change: Callable[[], str | None] | None = None,
    ) -> None:
        self._db = db
        self._clock = clock
        self._on_loop = on_loop
        self._file_change = file_change or (lambda: None)
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_QueuedWrite] = deque()
        self._long_writes: deque[_QueuedWrite] = deque()
        self._long_is_next = False
        self._running = False
        """A group or a checkpoint is under way, or about to start."""
        self._alarm: asyncio.TimerHandle | None = None
        """Starts a group at the end of the patience of a write."""
        self._one_by_one = 0
        """Number of the next writes that run in groups of one, because their group failed."""
        self._refusal: str | None = None
        """The reason why no write is accepted any more; None while writes are accepted."""
        self.failure: str | None = None
        """The reason why the storage is broken; None while it is not."""
        self.broken = asyncio.Event()
        self.written = asyncio.Event()
        """Set after each commit that has changed something."""
        self._changes = 0
        """The rows that were changed until the last commit."""
        self._commit_s = 0.0  # the expected duration of a commit
        self._log_pages = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.make_room: Callable[[], bool] = lambda: False
        """Called in the writer thread when the disk is full; True if a write may now succeed."""
        self._ran_again: _QueuedWrite | None = None
        """The last write that has run once more because there may be room for it."""
        self.note_move: Callable[[], None] = lambda: None
        """Called before and after the log is moved into the database."""
        self.shortens_log = False
        """True: the next checkpoint also gives the room of the log back to the disk."""
        self._writer = DaemonThreadPool(1, "qtasks-commit")
        db.set_busy_timeout(0)  # the loop's thread never waits for a lock
        db.set_wal_hook(self._note_log_pages)  # replaces SQLite's own, which moves the log before a commit returns

    def submit(self, work: Callable[[], T], *, is_long: bool = False, is_patient: bool = False) -> asyncio.Future[T]:
        """Queue `work`, which writes to the connection; the future completes after the commit.

        `is_long`: it may take more than some milliseconds, so it runs on the writer thread. `is_patient`: it may wait
        `PATIENCE_S` for company, if commits cost anything.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        if self._refusal is not None:
            future.set_exception(StoreError(self._refusal))
            return future
        queue = self._long_writes if is_long and not self._on_loop else self._queue
        queue.append(_QueuedWrite(work, future, is_long))
        if not is_patient or self._on_loop:
            self._start()
        elif self._alarm is None:
            self._alarm = self._loop.call_later(PATIENCE_S, self._start)
        return future

    def _start(self) -> None:
        """Run what is queued, unless that is under way. Idempotent."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if not self._running and (self._queue or self._long_writes):
            self._running = True
            self._idle.clear()
            # Not at once: other writes of this turn of the loop join the group.
            self._loop.call_soon(self._run_group)

    def fail(self, reason: str) -> None:
        """Refuse all writes from now on, those that are queued included, because the storage is broken. Idempotent.

        A group under way ends as its commit ends.
        """
        if self.failure is not None:
            return
        self._refusal = self.failure = reason
        self.broken.set()
        self._refuse_queued(StoreError(reason))

    async def close(self) -> None:
        """Accept no more writes, and finish those that are queued."""
        self._refusal = self._refusal or "the store is closed"
        self._start()
        await self._idle.wait()
        self._writer.shutdown()

    def _run_group(self) -> None:
        """Run queued writes in one transaction."""
        error = self._begin()
        if isinstance(error, apsw.BusyError) and not self._on_loop:
            self._in_thread(self._begin_patiently, self._begun)
        else:
            self._begun(error)

    def _begin(self) -> apsw.Error | None:
        """Begin a transaction; return the error if that fails."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except apsw.Error as error:
            return error
        return None

    def _begin_patiently(self) -> apsw.Error | None:
        """Begin a transaction once another program has released its lock on the file. Runs on the writer thread."""
        with self._patience():
            return self._begin()

    @contextlib.contextmanager
    def _patience(self) -> Iterator[None]:
        """Wait for locks meanwhile. Only on the writer thread."""
        self._db.set_busy_timeout(round(BUSY_S * 1000))
        try:
            yield
        finally:
            self._db.set_busy_timeout(0)

    def _begun(self, error: apsw.Error | None) -> None:
        """Run queued writes in the transaction that has begun, unless that failed with `error`."""
        if error is not None:
            self._begin_failed(error)
        elif self._long_writes and (self._long_is_next or not self._queue):
            self._long_is_next = False
            write = self._long_writes.popleft()
            self._in_thread(lambda: self._run_long(write), lambda ended: self._commit_ended([write], *ended))
        elif self._queue:
            self._long_is_next = True
            self._run_short()
        else:  # all were refused while the transaction began
            self._roll_back()
            self._continue(0)

    def _run_short(self) -> None:
        """Run short writes on the loop's thread, then commit."""
        limit = 1 if self._one_by_one else GROUP_LIMIT
        group: list[_QueuedWrite] = []
        results: list[Any] = []
        started_s = now_s = self._clock.monotonic()
        try:
            while self._queue and len(group) < limit and now_s - started_s < TURN_S:
                group.append(self._queue.popleft())
                results.append(group[-1].work())
                now_s = self._clock.monotonic()
        except Exception as error:
            self._group_failed(group, error)
            return
        if self._on_loop or (self._commit_s < QUICK_S and now_s - started_s < TURN_S):
            self._commit_ended(group, results, self._commit())
        else:
            self._in_thread(self._commit, lambda error: self._commit_ended(group, results, error))

    def _run_long(self, write: _QueuedWrite) -> tuple[list[Any], Exception | None]:
        """Run a long write and commit it; return its result, or the error. Runs on the writer thread."""
        try:
            return [write.work()], self._commit()
        except Exception as error:
            return [], error

    def _commit(self) -> Exception | None:
        """Commit; return the error if that fails. Runs on the loop's thread or on the writer thread."""
        started_s = self._clock.monotonic()
        try:
            self._db.execute("COMMIT")
        except Exception as error:
            return error
        self._commit_s += (self._clock.monotonic() - started_s - self._commit_s) / _AVERAGED_COMMITS
        return None

    def _in_thread(self, work: Callable[[], T], then: Callable[[T], None]) -> None:
        """Run `work` on the writer thread, then `then` with its result on the loop's thread."""
        job = self._writer.submit(work)
        job.add_done_callback(lambda done: self._loop.call_soon_threadsafe(then, done.result()))

    def _commit_ended(self, group: list[_QueuedWrite], results: list[Any], error: Exception | None) -> None:
        if error is not None:
            self._group_failed(group, error)
            return
        if (change := self._file_change()) is not None:
            self._break_for(change, group)
            return
        if (changes := self._db.total_changes()) != self._changes:
            self._changes = changes
            self.written.set()
        for write, result in zip(group, results, strict=True):
            write.succeed(result)
        self._continue(len(group))

    def _begin_failed(self, error: apsw.Error) -> None:
        """No transaction can begin: refuse everything that waits, so that nothing waits for the same reason again."""
        if storage_errors.is_fatal(error):
            self._break(error, [])
            return
        self._refuse_queued(storage_errors.translated(error))
        self._continue(self._one_by_one)

    def _group_failed(self, group: list[_QueuedWrite], error: BaseException) -> None:
        """Roll back. Then run the members of a group one by one, or report the error of a single one."""
        self._roll_back()
        if storage_errors.is_fatal(error):
            self._break(error, group)
            return
        if self.failure is not None:  # since the group began
            self._break_for(self.failure, group)
            return
        if len(group) > 1:
            self._queue.extendleft(reversed(group))
            self._one_by_one = len(group)
            self._loop.call_soon(self._run_group)
            return
        [write] = group
        if storage_errors.is_full(error) and write is not self._ran_again:
            self._ran_again = write
            self._in_thread(self._free_room, lambda freed: self._room_freed(write, error, *freed))
            return
        self._refuse(write, error)

    def _refuse(self, write: _QueuedWrite, error: BaseException) -> None:
        write.refuse(storage_errors.translated(error))
        self._continue(1)

    def _free_room(self) -> tuple[bool, apsw.Error | None]:
        """The disk is full: make room. A log that is moved into the database has room, too, from its beginning."""
        return self.make_room(), self._checkpoint()

    def _room_freed(
        self, write: _QueuedWrite, error: BaseException, made: bool, checkpoint_error: apsw.Error | None
    ) -> None:
        if checkpoint_error is not None and storage_errors.is_fatal(checkpoint_error):
            self._break(checkpoint_error, [write])
        elif self.failure is not None or (not made and checkpoint_error is not None):
            self._refuse(write, error)
        elif write.is_long:
            self._long_writes.appendleft(write)
            self._long_is_next = True
            self._run_group()
        else:
            self._queue.appendleft(write)
            self._long_is_next = False
            self._one_by_one = max(1, self._one_by_one)
            self._run_group()

    def _roll_back(self) -> None:
        # SQLite itself has rolled back after some errors (a full disk, a failed write).
        if self._db.in_transaction:
            with contextlib.suppress(apsw.Error):
                self._db.execute("ROLLBACK")

    def _refuse_queued(self, error: BaseException) -> None:
        for queue in (self._queue, self._long_writes):
            for write in queue:
                write.refuse(error)
            queue.clear()

    def _break(self, error: apsw.Error, group: list[_QueuedWrite]) -> None:
        """The storage has failed: refuse all writes from now on, those of `group` included."""
        self._break_for(storage_errors.reason_of_failure(error, self._db.filename), group)

    def _break_for(self, reason: str, group: list[_QueuedWrite]) -> None:
        self.fail(reason)
        for write in group:
            write.refuse(StoreError(self.failure or ""))
        self._continue(0)

    def _continue(self, completed: int) -> None:
        """After `completed` writes: move the log if it is long, else run the next group, else become idle."""
        self._one_by_one = max(0, self._one_by_one - completed)
        if (self._log_pages >= CHECKPOINT_PAGES or self.shortens_log) and not self.broken.is_set():
            self._log_pages = 0
            self._in_thread(self._checkpoint, self._checkpoint_ended)
        elif self._queue or self._long_writes:
            self._loop.call_soon(self._run_group)
        else:
            self._running = False
            self._idle.set()

    def _note_log_pages(self, _db: apsw.Connection, _name: str, pages: int) -> int:
        """SQLite calls this after every commit with the length of the write-ahead log."""
        self._log_pages = pages
        return apsw.SQLITE_OK

    def _checkpoint(self) -> apsw.Error | None:
        """Move the log into the database file. Pages that a reader still needs stay for the next time."""
        shortens, self.shortens_log = self.shortens_log, False
        self.note_move()
        try:
            with self._patience():
                self._db.wal_checkpoint(
                    mode=apsw.SQLITE_CHECKPOINT_TRUNCATE if shortens else apsw.SQLITE_CHECKPOINT_PASSIVE
                )
        except apsw.Error as error:
            failed = error
        else:
            return None
        finally:
            self.note_move()
        return self._checkpoint() if storage_errors.is_full(failed) and self.make_room() else failed

    def _checkpoint_ended(self, error: apsw.Error | None) -> None:
        if error is not None and storage_errors.is_fatal(error):
            self._break(error, [])
            return
        if (
            error is not None
        ):  # a full disk, for example: the log still holds everything, and a later commit tries again
            log.warning("the write-ahead log cannot be moved into the database: %s", error)
        self._continue(0)
