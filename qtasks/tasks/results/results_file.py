"""Recognises an SQLite file of another program, in which results are not kept.

A results file has an application id in its header. Those of earlier releases have none; they are recognised by their
tables, and get the id when they are opened. Nothing is written here.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Final
from urllib.parse import quote

from qtasks.error_codes import ErrorCode
from qtasks.errors import ResultError

APPLICATION_ID: Final = 0x71746B72
"""``qtkr``, in the header of each results file."""
_TABLES: Final = {"results": "call_id", "results_before": "call_id", "holds": "until_ms"}
"""Every table of a results file, with one of its columns."""


def refuse_foreign(path: Path) -> None:
    """Raise ResultError if the file at `path` is a sound SQLite database of another program.

    A missing or empty file is accepted, and a file that cannot be read is left to the caller, who opens it.
    """
    try:
        if path.stat().st_size == 0:
            return
        # Results have no write-ahead log. With the log of another program SQLite makes an index for it; without one,
        # `immutable` lets it make no file.
        has_log = Path(f"{path}-wal").exists() and Path(f"{path}-wal").stat().st_size > 0
        mode = "mode=ro" if has_log else "immutable=1"
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True)) as connection:
            why = _foreign(connection)
    except (sqlite3.Error, OSError, UnicodeDecodeError):
        return
    if why is not None:
        raise ResultError(
            f"{path} is a database of another program: {why}; nothing was changed",
            fix="name a file for the results alone in QTASKS_RESULTS, which is created if it does not exist",
            code=ErrorCode.DATABASE_FOREIGN,
        )


def _foreign(connection: sqlite3.Connection) -> str | None:
    """What of a database is not of a results file."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    if application_id == APPLICATION_ID:
        return None
    if application_id != 0:
        return f"its application id is {application_id:#x}, not {APPLICATION_ID:#x}"
    query = "SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'view') AND substr(name, 1, 7) <> 'sqlite_'"
    for name, sql in connection.execute(f"{query} ORDER BY name"):
        if _TABLES.get(name, "\0") not in str(sql):
            return f"it has the table {str(name)[:64]}"
    return None
