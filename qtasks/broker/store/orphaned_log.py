"""A write-ahead log whose database is not at its path any more.

A log belongs to one database. SQLite deletes it if it finds an empty database beside it, and applies it to any other:
to an older backup, for example, which becomes a mixture of both. So a store that ends while another file, or none, is
in the place of its database sets the log aside, under a name that tells the database: by its size and its time of
modification, which are those of a file that is moved back, and of an exact copy. A start with that file takes it back.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from qtasks.errors import StoreError

log = logging.getLogger("qtasks.broker")

_JOURNAL: Final = slice(18, 20)
"""Where the header of a database says which kind of journal it has (https://sqlite.org/fileformat2.html, 1.3)."""
_WITHOUT_LOG: Final = b"\x01\x01"


def refuse_without_database(path: str) -> None:
    """Raise StoreError if there is no database at `path`, but a log of one."""
    if _size(Path(path)) > 0:
        return
    for file in (Path(f"{path}-wal"), *_set_aside(path)):
        if (size := _size(file)) > 0:
            raise StoreError(
                f"{path} is missing or empty, but its write-ahead log {file} is there, with {size} bytes of data",
                fix=f"put the database back at this path; or, to begin with a new one, move {file} away",
            )


def refuse_replaced_database(path: str, before: str, now: str) -> None:
    """Raise StoreError if the log belongs to a database that was replaced after its process died.

    `before` and `now` are the identities of the database and of the lock file. In a copy of the whole folder, both have
    changed; if only that of the database has, this file was replaced.
    """
    log_file = Path(f"{path}-wal")
    has_changed = [old != new for old, new in zip(before.split(), now.split(), strict=False)]
    if has_changed == [True, False] and _size(log_file) > 0:
        raise StoreError(
            f"{path} is another file than the last process used, but the write-ahead log of that one is still here",
            fix=f"if it is a backup, move {log_file} away, which would damage it;"
            f" if it is an exact copy, remove {path}.lock",
        )


def refuse_backup(path: str, header: bytes) -> None:
    """Raise StoreError if the database is a backup that was copied into the place of another, whose log is still here.

    `header` is the first bytes of the file. A backup has no log, and says so there.
    """
    log_file = Path(f"{path}-wal")
    if header[_JOURNAL] == _WITHOUT_LOG and _size(log_file) > 0:
        raise StoreError(
            f"{path} is a backup, but the write-ahead log of the database that was here is still beside it",
            fix=f"move {log_file} away, which would damage the backup",
        )


def set_aside(path: str, database: os.stat_result) -> None:
    """Keep the log at `path` away from the file that is there now. `database` is the status of the log's database."""
    file = Path(f"{path}-wal")
    if _size(file) == 0:
        return
    aside = _aside(path, database)
    try:
        file.rename(aside)
    except OSError as error:
        log.warning("%s belongs to another database than %s: %s", file, path, error)
    else:
        log.warning("the write-ahead log of the database that was at %s is now %s", path, aside)


def take_back(path: str, database: os.stat_result) -> None:
    """Take the log back that was set aside for this database. Reports those of other databases."""
    file, aside = Path(f"{path}-wal"), _aside(path, database)
    if _size(file) == 0 and aside.exists():
        aside.replace(file)
        log.warning("%s is in use again: the database that it belongs to is back", file)
    for other in _set_aside(path):
        log.warning(
            "%s belongs to a database that is not at %s any more; what it accepted last may be in it", other, path
        )


def _aside(path: str, database: os.stat_result) -> Path:
    return Path(f"{path}-wal.of-{database.st_size}-{database.st_mtime_ns}")


def _set_aside(path: str) -> list[Path]:
    database = Path(path)
    return sorted(file for file in database.parent.iterdir() if file.name.startswith(f"{database.name}-wal.of-"))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
