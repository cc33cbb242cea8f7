"""Connections to a SQLite database with the durability that the broker promises and the current schema."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Concatenate, Final, ParamSpec, TypeVar

import apsw

from qtasks.broker.store import storage_errors
from qtasks.errors import SchemaTooNew, StoreError

P = ParamSpec("P")
T = TypeVar("T")

MEMORY: Final = ":memory:"
APPLICATION_ID: Final = 0x71746B73
"""``qtks``, in the header of each database of ours: no other program is to be written over, see `foreign_database`."""
CHECKPOINT_PAGES: Final = 4_000
"""Length of the write-ahead log, in pages, from which on it is moved into the database file."""
STATEMENTS: Final = 512
"""Compiled statements that the connection for writes keeps, the most that apsw allows.

It drops a statement after so many others have run since, however few different ones these were. A group of writes runs
some hundred, and to compile one takes 20 times as long as to run it.
"""
_BUSY_TIMEOUT_MS: Final = 5_000
_COMMENT: Final = re.compile(r"--[^\n]*")


def connect(path: str, vfs: str | None = None) -> apsw.Connection:
    """A connection for writes. Creates the file if it is new, and brings its schema up to date.

    Raises SchemaTooNew, or StoreError if the file cannot be opened or is not a qtasks database.
    """
    try:
        if path != MEMORY:
            create_file(os.path.realpath(path))
        db = apsw.Connection(path, vfs=vfs, statementcachesize=STATEMENTS)
        db.set_busy_timeout(_BUSY_TIMEOUT_MS)
        # One plan for each statement, for all values: otherwise SQLite compiles a query for a range again each time
        # that a value is bound, which takes longer than to run it.
        db.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA fullfsync = ON")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        db.execute("PRAGMA journal_size_limit = 67108864")
        db.execute("PRAGMA cache_size = -16384")
        if path == MEMORY:
            _copy_blank(db)
        else:
            migrate(db)
    except (apsw.NotADBError, apsw.CorruptError, apsw.SQLError) as error:
        raise StoreError(
            f"{path} is not a qtasks database, or it is damaged: {error}",
            fix=f"name another file with --db; or {storage_errors.advice(path)}; or restore a backup",
        ) from error
    except (apsw.CantOpenError, apsw.ReadOnlyError, OSError) as error:
        raise storage_errors.of_file(error, path) from error
    return db


def create_file(path: str) -> None:
    """Create the file if it does not exist. Only this user may read it; SQLite gives its other files the same mode.

    An existing file is not opened: closing it would end the locks that SQLite holds on it in this process.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def connect_read_only(path: str) -> apsw.Connection:
    """A second, read-only connection. Only for a file, because a database in memory belongs to one connection."""
    db = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    db.set_busy_timeout(_BUSY_TIMEOUT_MS)
    db.execute("PRAGMA query_only = ON")
    return db


def run_in_transaction(
    db: apsw.Connection, verb: Callable[Concatenate[apsw.Connection, P], T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run `verb` at once, in a transaction of its own."""
    db.execute("BEGIN IMMEDIATE")
    try:
        result = verb(db, *args, **kwargs)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return result


def migrate(db: apsw.Connection, until: int | None = None) -> None:
    """Bring the schema up to date, or to version `until`, one transaction for each version.

    Raises SchemaTooNew for a newer schema.
    """
    steps = _steps()[:until]
    version = db.pragma("user_version")
    if version > schema_version():
        raise SchemaTooNew(
            f"the database has schema version {version}; this program knows versions up to {schema_version()}",
            fix="start the newer program that wrote it, or name another file with --db",
        )
    for number, step in enumerate(steps[version:], version + 1):
        run_in_transaction(db, _apply, step.read_text(encoding="utf-8"), number)
    if db.pragma("application_id") != APPLICATION_ID:  # of an earlier release, which set none
        run_in_transaction(db, _mark)


def schema_version() -> int:
    """The version of the current schema."""
    return len(_steps())


@functools.cache
def _steps() -> list[Traversable]:
    """The files of the schema, one for each version."""
    folder = resources.files("qtasks.broker.store.schema")
    return sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda entry: entry.name)


def _apply(db: apsw.Connection, sql: str, version: int) -> None:
    db.execute(sql)
    db.execute(f"PRAGMA user_version = {version}")
    _mark(db)


def _mark(db: apsw.Connection) -> None:
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def _copy_blank(db: apsw.Connection) -> None:
    """Copy the current schema into a new database; faster than `migrate` for the thousands of stores of a test run."""
    blank = apsw.Connection(MEMORY)
    blank.deserialize("main", _blank_image())
    with db.backup("main", blank, "main") as copy:
        copy.step()
    blank.close()


def definitions(db: apsw.Connection) -> dict[str, str]:
    """The definition of each table, index and trigger, by its kind and name; without comments, blanks made one."""
    rows = db.execute(  # as bytes: damaged text cannot be decoded
        "SELECT CAST(type || ' ' || name AS BLOB), CAST(sql AS BLOB) FROM sqlite_schema WHERE sql IS NOT NULL"
    )
    texts = ((name.decode(errors="replace"), sql.decode(errors="replace")) for name, sql in rows)
    return {name: " ".join(_COMMENT.sub("", sql).split()) for name, sql in texts}


@functools.cache
def definitions_of(version: int) -> dict[str, str]:
    """The `definitions` of the schema with this version, from 1 to `schema_version`."""
    db = apsw.Connection(MEMORY)
    migrate(db, version)
    of_version = definitions(db)
    db.close()
    return of_version


@functools.cache
def _blank_image() -> bytes:
    """An empty database with the current schema."""
    db = apsw.Connection(MEMORY)
    migrate(db)
    image = db.serialize("main")
    db.close()
    return image
