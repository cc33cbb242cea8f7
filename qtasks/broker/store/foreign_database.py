"""Recognises a database of another program, which a broker must not touch.

A database of ours has an application id in its header (https://sqlite.org/fileformat2.html, 1.3.14). Those of earlier
releases have none; they are recognised by their tables, and get the id when they are opened (`connection.migrate`).
Nothing is written here, neither to the file nor beside it as long as it has no write-ahead log.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import quote

import apsw

from qtasks.broker.store import storage_errors
from qtasks.broker.store.connection import APPLICATION_ID, definitions, definitions_of, schema_version
from qtasks.error_codes import ErrorCode
from qtasks.errors import StoreError

_FLAGS: Final = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
_BUSY_TIMEOUT_MS: Final = 5_000


def refuse(path: str, *, for_repair: bool = False) -> None:
    """Raise StoreError if the file at `path` is a sound SQLite database of another program.

    Also if the system cannot read it, because it may be one. A missing or empty file is accepted. A folder, and what is
    damaged or no database at all, is left to the caller, who opens it. A repair may also work on what the system cannot
    read, and on a database with the id of another program and the tables of a broker: the id itself may be damaged.
    """
    try:
        if Path(path).is_dir() or Path(path).stat().st_size == 0:
            return
        application_id, tables = _id_and_tables(path)
    except (FileNotFoundError, apsw.NotADBError, apsw.CorruptError, apsw.SQLError, UnicodeDecodeError):
        return
    except (apsw.CantOpenError, OSError) as error:
        raise storage_errors.of_file(error, path) from error
    except apsw.Error as error:
        if for_repair:
            return
        raise storage_errors.of_start(error, path) from error
    if application_id == APPLICATION_ID or (for_repair and _is_ours(tables)):
        return
    if application_id != 0:
        raise _refusal(path, f"its application id is {application_id:#x}, not {APPLICATION_ID:#x}")
    if unknown := sorted(tables.keys() - _our_tables().keys()):
        raise _refusal(path, f"it has the table {unknown[0][:64]}")
    if tables and not _is_ours(tables):
        raise _refusal(path, f"its table {min(tables)} is not that of a broker")


def _id_and_tables(path: str) -> tuple[int, dict[str, str]]:
    """The application id, and the definition of each table unless the id is ours."""
    # With `immutable` SQLite makes no other files beside the database. But it ignores the log then, so the
    # tables are read again if there is one. The id was written with the first of them.
    uri = f"file:{quote(path)}?immutable=1"
    db = apsw.Connection(uri, flags=_FLAGS)
    try:
        application_id = int(db.pragma("application_id"))
        has_log = Path(f"{path}-wal").exists() and Path(f"{path}-wal").stat().st_size > 0
        if application_id == APPLICATION_ID or not has_log:
            return application_id, {} if application_id == APPLICATION_ID else _tables(db)
    finally:
        db.close()
    db = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    try:
        db.set_busy_timeout(_BUSY_TIMEOUT_MS)
        db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        return int(db.pragma("application_id")), _tables(db)
    finally:
        db.close()


def _tables(db: apsw.Connection) -> dict[str, str]:
    """The definition of each table and view by its name, without those of SQLite itself."""
    return {
        name: sql
        for kind, _, name, sql in ((*key.partition(" "), sql) for key, sql in definitions(db).items())
        if kind in ("table", "view") and not name.startswith("sqlite_")
    }


def _is_ours(tables: dict[str, str]) -> bool:
    """True if all tables have our names and at least one our definition: damage may have changed the others."""
    ours = _our_tables()
    return tables.keys() <= ours.keys() and any(sql in ours[name] for name, sql in tables.items())


def _our_tables() -> dict[str, set[str]]:
    """The definitions that each table of ours has had."""
    ours: dict[str, set[str]] = {}
    for version in range(1, schema_version() + 1):
        for key, sql in definitions_of(version).items():
            kind, _, name = key.partition(" ")
            if kind == "table":
                ours.setdefault(name, set()).add(sql)
    return ours


def _refusal(path: str, why: str) -> StoreError:
    return StoreError(
        f"{path} is a database of another program: {why}; nothing was changed",
        fix="name a file of the broker's own, which is created if it does not exist",
        code=ErrorCode.DATABASE_FOREIGN,
    )
