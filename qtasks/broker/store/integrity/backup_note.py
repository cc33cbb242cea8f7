"""The note of the last backup, in a file beside the database: the database itself is not changed by its copy."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final, NamedTuple

import orjson

_MOST_BYTES: Final = 10_000
_LATEST_MS: Final = 2**43
"""The year 2248: a time that is later is damaged."""


class BackupNote(NamedTuple):
    """The last backup that `qtasks broker backup` made."""

    time_ms: int
    """Wall time, Unix milliseconds."""
    bytes: int
    target: str


def note_path(path: str) -> Path:
    """Where the note of the database at `path` is: beside the file, not beside a link to it."""
    return Path(f"{os.path.realpath(path)}.last-backup")


def write(path: str, note: BackupNote) -> None:
    """Write the note of a backup that has its name already. Raises OSError.

    It belongs to the owner of the database, who runs the broker: a backup may be made by root.
    """
    partial = Path(f"{note_path(path)}.partial")
    partial.unlink(missing_ok=True)
    with open(partial, "x", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(orjson.dumps(note._replace(target=_encodable(note.target))._asdict()).decode())
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            database = Path(path).stat()
            os.fchown(file.fileno(), database.st_uid, database.st_gid)
    partial.replace(note_path(path))


def _encodable(text: str) -> str:
    """A path whose bytes are not UTF-8 has replacement characters."""
    return text.encode(errors="replace").decode()


def read(path: str) -> BackupNote | None:
    """The note of the last backup; None without one, or if it cannot be read."""
    with contextlib.suppress(OSError, ValueError), note_path(path).open("rb") as file:
        match orjson.loads(file.read(_MOST_BYTES)):
            case {"time_ms": int(time_ms), "bytes": int(size), "target": str(target)} if (
                0 <= time_ms < _LATEST_MS and size >= 0
            ):
                return BackupNote(time_ms, size, target)
    return None
