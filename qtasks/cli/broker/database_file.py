"""The database file of a broker, as the commands of `qtasks broker` name it and change it."""

from __future__ import annotations

import contextlib
import getpass
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

import apsw
import click

from qtasks.broker.core.operator_changes import COMMAND_LINE, Actor, OperatorChange
from qtasks.broker.store import storage_errors
from qtasks.broker.store.connection import connect, run_in_transaction
from qtasks.broker.store.file_lock import FileLock
from qtasks.broker.store.integrity import lost_commits
from qtasks.broker.store.verbs import audit
from qtasks.errors import ConfigurationError, StoreError, StoreLocked

T = TypeVar("T")

DEFAULT_DB: Final = "qtasks.db"

db_option = click.option(
    "--db",
    default=None,
    callback=lambda context, _, path: path or context.obj,  # the option of the group
    help="Database file. The option may also stand before the command.",
)


def database_path(db: str) -> str:
    """The path of the SQLite file that `db`, a path or a URL, names. ConfigurationError for another database."""
    if db.startswith(("postgres://", "postgresql://")):
        raise ConfigurationError(
            "QTASKS_DB names PostgreSQL, in which this version cannot store messages",
            fix="name a SQLite file: --db qtasks.db",
        )
    return db.removeprefix("sqlite:///")


def existing_database(db: str) -> str:
    """As `database_path`; ConfigurationError if there is no such file."""
    path = database_path(db)
    if not Path(path).is_file():
        raise ConfigurationError(
            f"there is no database at {path}", fix=f"create one with `qtasks broker init --db {path}`"
        )
    return path


@contextlib.contextmanager
def unused_database(path: str, *, for_repair: bool = False) -> Iterator[None]:
    """Keeps brokers away from the database at `path` meanwhile.

    Raises StoreLocked if one uses it already, and StoreError for the database of another program; a database whose
    application id is damaged is accepted `for_repair`.
    """
    lock = FileLock.acquire(os.path.realpath(path), for_repair=for_repair)
    try:
        yield
    finally:
        lock.release()


def refuse_lost_commits(path: str) -> None:
    """StoreError if the log of the database at `path` is damaged: SQLite would drop a part of it in silence.

    Looks only if no broker uses the database. A broker that runs has looked at its start.
    """
    with contextlib.suppress(StoreLocked), unused_database(path):
        if (lost := lost_commits.sentence(os.path.realpath(path))) is not None:
            raise storage_errors.damaged(path, lost)


def change_database(path: str, change: Callable[[apsw.Connection], T]) -> T:
    """Run one transaction, possibly while a broker uses the file; only the broker checkpoints the log."""
    refuse_lost_commits(path)
    connection = connect(path)
    connection.pragma("wal_autocheckpoint", 0)
    try:
        return run_in_transaction(connection, change)
    except apsw.Error as error:
        raise StoreError(f"{path} cannot be changed: {error}") from error
    finally:
        connection.close()


def note_change(connection: apsw.Connection, account: int, what: str, subject: str) -> None:
    """Write a row of the audit in the transaction of a change."""
    who = Actor(_user(), COMMAND_LINE)
    change = OperatorChange(account=account, actor=who, what=what, subject=subject, now_ms=now_ms())
    audit.record(connection, change, 1)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in a container
        return "unknown"


def now_ms() -> int:
    """Wall time, Unix milliseconds."""
    return time.time_ns() // 1_000_000
