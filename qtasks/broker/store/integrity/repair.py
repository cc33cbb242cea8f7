"""Repairs a damaged database: a new file with what can be read takes the place of the old one, which is kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import apsw

from qtasks.broker.store.integrity.salvage import Salvage, salvage
from qtasks.broker.store.integrity.wal_check import Frame, find_damage, read_frames
from qtasks.broker.store.verbs import stored
from qtasks.errors import StoreError

_FILES: Final = ("", "-wal", "-shm")


@dataclass(frozen=True)
class DatabaseRepair:
    """A repair that has ended."""

    salvage: Salvage
    damaged: list[str]
    """The ids of messages that are not as they were accepted, or have no body: they become dead letters."""
    kept: Path
    """The damaged database, which is not needed any more."""


def repair(path: str, suffix: str, *, now_ms: int) -> DatabaseRepair:
    """Save what can be read of the database at `path` into a new one in its place; keep the old one with `suffix`.

    The caller has the lock of the database, and nothing has it open in SQLite. Needs as much space on the disk as the
    database, three times that for a moment if the log is damaged. `now_ms` is wall time, in Unix milliseconds. Raises
    StoreError if nothing can be saved or the disk is full; then nothing was changed.
    """
    drafts: list[tuple[Path, Salvage]] = []
    targets = [Path(f"{path}.repaired-{number}") for number in range(3)]
    try:
        for target, newer in zip(targets, _versions(path), strict=False):
            _remove(target)
            drafts.append((target, salvage(Path(path), target, newer, now_ms=now_ms)))
        damaged = {target: _damaged(target) for target, _ in drafts}
        best, salvaged = max(drafts, key=lambda draft: draft[1].saved["messages"] - len(damaged[draft[0]]))
        if not any(salvaged.saved.values()):
            raise StoreError(
                f"nothing in {path} could be recognised; nothing was changed",
                fix="name the database of a broker with --db, or restore a backup",
            )
        kept = Path(f"{path}{suffix}")
        exchange(path, best, kept)
    except (apsw.Error, OSError) as error:
        raise StoreError(
            f"{path} cannot be repaired: {error}; nothing was changed",
            fix="make room on its disk, as much as it takes itself, or copy it to another disk and repair the copy",
        ) from error
    finally:
        for target in targets:
            _remove(target)
    return DatabaseRepair(salvaged, damaged[best], kept)


def _versions(path: str) -> Iterator[Mapping[int, bytes]]:
    """What the log may add to the database, the newest first.

    A damaged log can be read in three ways: with all pages, without those that do not fit, and up to the damage. Which
    one is best is known only when the rows were read, for they have checksums of their own.
    """
    frames = list(read_frames(path))
    sound_until = next((frame.number for frame in frames if not frame.is_sound), len(frames) + 1)
    if find_damage(path) is not None:
        yield _committed(frames, lambda _: True)
        yield _committed(frames, lambda frame: frame.is_sound)
    yield _committed(frames, lambda frame: frame.number < sound_until)


def _committed(frames: list[Frame], is_taken: Callable[[Frame], bool]) -> dict[int, bytes]:
    """The newest image of each page in the frames that are taken, up to the last end of a commit."""
    newer: dict[int, bytes] = {}
    pending: dict[int, bytes] = {}
    for frame in filter(is_taken, frames):
        pending[frame.page] = frame.image
        if frame.ends_commit:
            newer.update(pending)
            pending.clear()
    return newer


def _damaged(target: Path) -> list[str]:
    """The ids of the messages that are not as they were accepted."""
    db = apsw.Connection(str(target), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return [str(message.message.id) for message in stored.every(db) if message.fault() is not None]
    finally:
        db.close()


def exchange(path: str, target: Path, kept: Path) -> None:
    """Put `target` in the place of the database; keep the old one, with its log, as `kept`."""
    sync_to_disk(target)
    try:
        os.link(path, kept)
    except OSError:  # a file system without links
        shutil.copy2(path, kept)
    for suffix in _FILES[1:]:  # before the new file is there: an old log would damage it
        if Path(f"{path}{suffix}").exists():
            Path(f"{path}{suffix}").rename(f"{kept}{suffix}")
    target.replace(path)
    sync_to_disk(Path(path).absolute().parent)


def _remove(target: Path) -> None:
    for suffix in _FILES:
        Path(f"{target}{suffix}").unlink(missing_ok=True)


def sync_to_disk(path: Path) -> None:
    """Make a file or a folder survive a power cut."""
    if os.name == "nt" and path.is_dir():  # pragma: no cover - Windows syncs no folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
