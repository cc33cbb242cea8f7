"""A watch over the files of an open database: it notices that one was removed, renamed or replaced.

SQLite goes on to write into a file that has lost its name, and what is written there is lost with the process. The
files have their names as long as a store has the database open: SQLite deletes its write-ahead log only when the last
connection is closed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from qtasks.clock import Clock
from qtasks.threads import DaemonThreadPool

PERIOD_MS: Final = 500
"""How often all files are looked at, in milliseconds. After each commit, the database and its log are."""

_LOG_MAGIC: Final = b"\x37\x7f\x06"
"""The first bytes of a log."""

FileId = tuple[int, int]
"""The identity of a file, under all its names: device and inode."""


def file_id(status: os.stat_result) -> FileId:
    """The identity of the file with this status."""
    return status.st_dev, status.st_ino


def file_at(path: str) -> FileId | None:
    """The identity of the file at `path`; None if there is none."""
    try:
        return _id(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


class FileWatch:
    """Watches the files of the database at `path`, which SQLite has opened. `locked` holds those opened before.

    It never opens a file: see `file_lock`.
    """

    def __init__(self, path: str, locked: Mapping[str, FileId]) -> None:
        log = f"{path}-wal"
        self._files = {**locked, log: file_at(log)}  # SQLite has opened it just now
        if (index := file_at(f"{path}-shm")) is not None:  # a SQLite may be built to keep it elsewhere
            self._files[f"{path}-shm"] = index
        self._essential = {name: self._files[name] for name in (path, log)}
        self._database, self._log = Path(path), Path(log)
        self._modified_ns = self._database.stat().st_mtime_ns
        self._moves = self._moves_seen = 0
        """Counts when the store begins and when it ends to move the log into the database: odd meanwhile."""
        self._ending = asyncio.Event()
        self._thread = DaemonThreadPool(1, "qtasks-watch")

    def change(self) -> str | None:
        """A sentence about the first file that is not the opened one any more; None if all are."""
        return _change(self._files)

    def overwriting(self) -> str | None:
        """A sentence if another program has emptied the database, or its log does not begin as one. None otherwise."""
        try:
            if not self._database.stat().st_size:
                return _sentence(str(self._database), "was emptied")
            # Opening and closing the log ends no lock: SQLite locks the database and the ``-shm`` file only.
            with self._log.open("rb") as log:
                start = log.read(len(_LOG_MAGIC))
        except OSError:
            return None  # `change` says more
        return None if start in (b"", _LOG_MAGIC) else _sentence(str(self._log), "was emptied or overwritten")

    def is_written_elsewhere(self) -> bool:
        """True if the database file was written since the last look, and not because the log was moved into it."""
        moves = self._moves
        try:
            modified_ns = self._database.stat().st_mtime_ns
        except OSError:
            return False  # `change` says more
        is_elsewhere = modified_ns != self._modified_ns and moves == self._moves_seen == self._moves and not moves % 2
        self._modified_ns, self._moves_seen = modified_ns, moves
        return is_elsewhere

    def note_move(self) -> None:
        """The store begins or ends to move the log into the database."""
        self._moves += 1

    def essential_change(self) -> str | None:
        """As `change`, for the files with the messages only: quick enough for every commit (3 microseconds)."""
        return _change(self._essential)

    async def run(self, clock: Clock, fail: Callable[[str], None], check: Callable[[], Awaitable[None]]) -> None:
        """Look every `PERIOD_MS` until the end or a change; call `fail` with the sentence.

        `check` is called when another program has written into the database file: it looks whether that did harm.
        """
        loop = asyncio.get_running_loop()
        while not self._ending.is_set():
            # On a thread of its own: a disk in a network may not answer, and readers may be busy.
            change, is_written_elsewhere = await loop.run_in_executor(self._thread, self._look)
            if change is not None:
                fail(change)
                return
            if is_written_elsewhere:
                await check()
            await clock.wait(self._ending.wait(), clock.now_ms() + PERIOD_MS)

    def _look(self) -> tuple[str | None, bool]:
        return self.change() or self.overwriting(), self.is_written_elsewhere()

    def end(self) -> None:
        """Let `run` return. Idempotent."""
        self._ending.set()
        self._thread.shutdown(wait=False)


def _change(files: Mapping[str, FileId | None]) -> str | None:
    for path, opened in files.items():
        try:
            now = file_at(path)
        except OSError as error:
            return _sentence(path, f"cannot be looked at ({error.strerror})")
        if now is None:
            return _sentence(path, "was removed or renamed")
        if now != opened:
            return _sentence(path, "was replaced by another file")
    return None


def _id(path: str) -> FileId:
    return file_id(os.stat(path))  # noqa: PTH116 - `Path.stat` takes half as long again, and every commit calls this


def _sentence(path: str, what: str) -> str:
    # Without the folder: strangers may see this at ``/readyz``.
    return (
        f"{Path(path).name} {what} while the broker used it, so nothing is accepted any more. Make sure that no"
        " other program touches the files of the database, put the file back if it is missing, and start again"
    )
