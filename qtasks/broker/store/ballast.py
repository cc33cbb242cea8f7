"""Room to finish on a full disk.

On a full disk SQLite can change nothing, not even delete: every change is first written to the write-ahead log.
Therefore a file of `BALLAST_BYTES` lies next to the database, its ballast. It is removed when a write or a checkpoint
finds the disk full. From then on no new message is accepted, so that the room is left to attempts that end, to
cancelling, deleting and pruning. The ballast is made again as soon as the disk has room for twice its size. If the disk
stays full because the database itself has filled it, free pages inside the database serve instead of the file: SQLite
uses them before the file grows.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import Final

import apsw

from qtasks.broker.store.verbs.retention import free_bytes
from qtasks.errors import StoreFull

log = logging.getLogger("qtasks.broker")

BALLAST_BYTES: Final = 24 * 1024 * 1024
"""A checkpoint may have to add the whole log to the database: 4,000 pages are 16 MiB. The rest is for writes."""
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_PIECE: Final = hashlib.shake_256(b"ballast").digest(1024 * 1024)
"""Content that a file system can neither compress nor share."""


class Ballast:
    """The file at `path`, which occupies `size` bytes while it exists. Only its owner may read it."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.exists = False

    def make(self) -> bool:
        """Make the file; return whether it exists now. Raises OSError for any reason other than a lack of room."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
            try:
                self._fill(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            with contextlib.suppress(OSError):
                self.path.unlink()
            return False
        self.exists = True
        return True

    def remove(self) -> bool:
        """Remove the file; return whether that gave room."""
        self.exists = False
        try:
            self.path.unlink()
        except OSError:
            return False
        return True

    def _fill(self, descriptor: int) -> None:
        """Give the file its size in blocks that are really occupied. What an earlier process has made stays."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, self.size)
            return
        for start in range(os.fstat(descriptor).st_size, self.size, len(_PIECE)):  # pragma: no cover
            os.pwrite(descriptor, _PIECE[: self.size - start], start)


def ballast_path(path: str) -> Path:
    """The file that is the ballast of the database at `path`: on its disk, even if `path` is a symbolic link."""
    return Path(f"{os.path.realpath(path)}.ballast")


class DiskRoom:
    """Says whether there is room for new messages. Belongs to the event loop that it is made in."""

    def __init__(self, db: apsw.Connection, path: str) -> None:
        self._db = db
        self._path = path
        self._ballast = Ballast(ballast_path(path), BALLAST_BYTES)
        self._can_make = True
        self._loop = asyncio.get_running_loop()
        self.shortage: str | None = None
        """A sentence while no new message is accepted; None while there is room."""
        self.lacking = asyncio.Event()
        """Set while the ballast does not exist: `look` again and again."""
        if not self._make_ballast():
            self._note_shortage()

    @property
    def spare_bytes(self) -> int:
        """How much should be free inside the database while the ballast does not exist."""
        return self._ballast.size // 2

    def check(self) -> None:
        """Raises StoreFull if no new message may be stored. Call it inside the transaction that would store one."""
        if self._ballast.exists:
            return
        if self.shortage is None and self._can_make and free_bytes(self._db) < self._ballast.size:
            self._note_shortage()
        if self.shortage is not None:
            raise StoreFull(self.shortage)

    def make_room(self) -> bool:
        """The disk is full: give up the ballast; return whether that gave room. Runs on any thread."""
        self._note_shortage()
        return self._ballast.remove()

    def log_takes_room(self) -> bool:
        """True if the disk would have room once the write-ahead log were truncated."""
        wal = Path(f"{os.path.realpath(self._path)}-wal")
        size = wal.stat().st_size if wal.exists() else 0
        return self._disk_free() < 2 * self._ballast.size <= self._disk_free() + size

    def look(self, free_inside: int) -> None:
        """Look for room: on the disk, or `free_inside` the database, in bytes. Accept messages again if there is."""
        if self._disk_free() >= 2 * self._ballast.size and self._make_ballast():
            self._loop.call_soon_threadsafe(self.lacking.clear)
        elif free_inside < 2 * self._ballast.size:
            return
        if self.shortage is not None:
            self.shortage = None
            log.warning("there is room again for %s: messages are accepted", self._path)

    def close(self) -> None:
        """Remove the ballast: after an orderly end there is nothing to finish."""
        self._ballast.remove()

    def _disk_free(self) -> int:
        return shutil.disk_usage(self._ballast.path.absolute().parent).free

    def _make_ballast(self) -> bool:
        """As `Ballast.make`. Without the right to make a file there, the broker works without a ballast."""
        try:
            return self._ballast.make()
        except OSError as error:
            log.warning("there is no ballast for a day on which the disk is full: %s", error)
            self._can_make = False
            return True

    def _note_shortage(self) -> None:
        if self.shortage is None:
            self.shortage = (
                "no space is left on the disk of the database: no message is accepted until"
                f" {2 * self._ballast.size // (1024 * 1024)} MiB are free there; what was accepted is still delivered"
            )
            log.error("%s: %s", self._path, self.shortage)
        self._loop.call_soon_threadsafe(self.lacking.set)
