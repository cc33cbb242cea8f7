"""Whether the write-ahead log of a database is damaged in the middle.

SQLite reads the log up to the first frame that does not fit, and drops all commits from there on in silence.

How it works. After a power cut the last transaction of the log may be on the disk in parts, in any order; it had not
been answered, so to drop it is right. A transaction is written only after the one before it was synced. So if two
transactions end behind the first frame that does not fit, the first of the two had been synced and answered: the log
is damaged. Each frame has a checksum that begins with the one of the frame before, so a frame behind the damage proves
itself with the stored checksum of its neighbour. Frames of an earlier round of the log have other salts. A start
empties the log (`empty_log`), so that no frame of an interrupted transaction of an earlier start is left in it.

Not noticed: damage of the last transaction, which looks like a power cut, and a missing end of the file. A sector that
is lost with the end of the last transaction but one looks like a power cut, too.
The format is that of https://sqlite.org/fileformat2.html, section 4.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import apsw

from qtasks.broker.store.integrity.page_reader import PAGE_SIZE

_HEADER: Final = struct.Struct(">8I")
_FRAME: Final = struct.Struct(">6I")
_MAGIC: Final = 0x377F0682
"""Of a log whose checksums are little-endian; one more: big-endian."""
_MASK: Final = 0xFFFFFFFF
_SECTOR: Final = 512
"""Bytes that a disk writes whole or not at all, at least."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of the log: a page as a transaction wrote it."""

    number: int
    """From 1."""
    page: int
    ends_commit: bool
    """The last frame of a transaction."""
    is_sound: bool
    """It fits the frame before it."""
    image: bytes


@dataclass(frozen=True, slots=True)
class LogDamage:
    """Damage in the middle of a log."""

    frame: int
    """The first frame that does not fit; 0: the header of the log."""
    commits: int
    """The commits from there on, which SQLite would drop."""


def log_path(path: str) -> Path:
    """The write-ahead log of the database at `path`."""
    return Path(f"{path}-wal")


def find_damage(path: str) -> LogDamage | None:
    """The damage in the log of the database at `path`; None if it is sound, or ends as after a power cut.

    About 0.1 ms for each frame. Call it while no process has the database open, and before SQLite opens it.
    """
    first = 0 if _header_is_damaged(path) else None
    ends = 0
    for frame in read_frames(path):
        if first is None and not frame.is_sound:
            first = frame.number
        ends += first is not None and frame.ends_commit
    # Frames are written after the header of their round was synced: one commit proves that the header was sound once.
    return LogDamage(first, ends) if first is not None and ends > (first > 0) else None


def _header_is_damaged(path: str) -> bool:
    """True if the log has content, but its header is not one."""
    file = log_path(path)
    if not file.exists() or file.stat().st_size <= _HEADER.size + _FRAME.size:
        return False
    with file.open("rb") as log:
        return _read_header(log).salts is None


def read_frames(path: str) -> Iterator[Frame]:
    """The frames of the log of the database at `path` that belong to its present round; nothing if there is no log.

    Behind the first one that does not fit, each frame of which at least a salt is that of the round.
    """
    file = log_path(path)
    if not file.exists():
        return
    with file.open("rb") as log:
        header = _read_header(log)
        salts, sums = header.salts, header.sums
        number = 0
        while len(content := log.read(_FRAME.size + PAGE_SIZE)) == _FRAME.size + PAGE_SIZE:
            number += 1
            page, size, *rest = _FRAME.unpack_from(content)
            frame_salts, stored = tuple(rest[:2]), (rest[2], rest[3])
            fits = page > 0 and stored == _checksum(content[:8] + content[_FRAME.size :], sums, header.order)
            if salts is None and fits:
                salts = frame_salts  # the header is damaged: the first frame that fits its neighbour says which round
            is_sound = fits and frame_salts == salts and not (number == 1 and header.salts is None)
            sums = stored
            in_round = salts is not None and (frame_salts[0] == salts[0] or frame_salts[1] == salts[1])
            # A header in one sector is new as a whole or old as a whole. One in two sectors may be mixed.
            is_whole = (_HEADER.size + (number - 1) * len(content)) % _SECTOR <= _SECTOR - _FRAME.size
            if is_sound or in_round:
                ends_commit = size > 0 and (is_sound or is_whole)
                yield Frame(number, page, ends_commit, is_sound, content[_FRAME.size :])


def empty_log(db: apsw.Connection) -> None:
    """Move the log into the database and empty it. If a reader prevents that, it is left as it is.

    Call it at a start, before the first write.
    """
    with contextlib.suppress(apsw.BusyError):
        db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)


@dataclass(frozen=True, slots=True)
class _Header:
    salts: tuple[int, ...] | None
    """None: the header is damaged."""
    sums: tuple[int, int]
    order: str
    """Byte order of the checksums, for `struct`."""


def _read_header(log: BinaryIO) -> _Header:
    content = log.read(_HEADER.size)
    if len(content) < _HEADER.size:
        return _Header(None, (0, 0), "<")
    magic, _, page_size, _, *salts, sum_1, sum_2 = _HEADER.unpack(content)
    order = ">" if magic == _MAGIC + 1 else "<"
    is_sound = magic in (_MAGIC, _MAGIC + 1) and page_size == PAGE_SIZE
    is_sound = is_sound and (sum_1, sum_2) == _checksum(content[:24], (0, 0), order)
    return _Header(tuple(salts) if is_sound else None, (sum_1, sum_2), order)


def _checksum(content: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    """The two sums over `content`, a multiple of 8 bytes, that follow `sums`."""
    words = struct.unpack(f"{order}{len(content) // 4}I", content)
    first, second = sums
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = first + even + second & _MASK
        second = second + odd + first & _MASK
    return first, second
