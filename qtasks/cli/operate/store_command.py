"""`qtasks store`: the database file of a broker."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import apsw
import click

from qtasks.broker.store.connection import connect, schema_version
from qtasks.cli.broker.backup import backup
from qtasks.cli.broker.check import check, contents_of, read_only
from qtasks.cli.broker.database_file import (
    DEFAULT_DB,
    db_option,
    existing_database,
    refuse_lost_commits,
    unused_database,
)
from qtasks.cli.broker.repair import repair
from qtasks.cli.broker.restore import restore
from qtasks.cli.changes import as_json_option, confirmed, dry_run_option, yes_option
from qtasks.cli.operate.groups import OperatorGroup
from qtasks.cli.printing import echo_facts, echo_json
from qtasks.errors import StoreError, StoreLocked


class StoreGroup(OperatorGroup):
    """Without a command it runs ``status``."""

    default = "status"


@click.group("store", cls=StoreGroup)
@click.option("--db", envvar="QTASKS_DB", default=DEFAULT_DB, show_default=True, help="Database file. [QTASKS_DB]")
@click.pass_context
def command(context: click.Context, db: str) -> None:
    """Look at the database of a broker, check, back up, restore, upgrade and shrink it.

    `qtasks dev` has its own: --db .qtasks/dev.db
    """
    context.obj = db


@command.command("status")
@db_option
@as_json_option
def status(db: str, as_json: bool) -> None:
    """Show what is in the database, how large it is, and which process uses it. A broker may use it."""
    path = os.path.realpath(existing_database(db))
    facts = _facts(path)
    if as_json:
        echo_json(facts)
        return
    is_current = facts["schema"] == facts["currentSchema"]
    click.echo(path)
    echo_facts(
        [
            ("in use by", facts["usedBy"] or "no process"),
            ("size", f"{_megabytes(facts['bytes'])}, and {_megabytes(facts['logBytes'])} in its log"),
            ("free on disk", _megabytes(facts["freeBytes"])),
            ("unused in it", _megabytes(facts["unusedBytes"])),
            ("schema", f"{facts['schema']}, " + ("current" if is_current else f"current is {facts['currentSchema']}")),
            ("messages", f"{facts['messages']:,}, {facts['unfinished']:,} of them not finished"),
            ("dead letters", f"{facts['deadLetters']:,}"),
        ]
    )


@command.command("upgrade")
@yes_option
@dry_run_option
@as_json_option
@db_option
def upgrade(yes: bool, dry_run: bool, as_json: bool, db: str) -> None:
    """Bring the schema up to date. No broker may use the database. The start of a broker does the same."""
    path = os.path.realpath(existing_database(db))
    refuse_lost_commits(path)
    with unused_database(path):
        before = _facts(path)["schema"]
        is_old = before < schema_version()
        action = f"upgrade {path} from schema {before} to {schema_version()}, which earlier versions cannot open"
        done = is_old and confirmed(action, [], yes=yes, dry_run=dry_run)
        if done or not is_old:
            connect(path).close()  # raises SchemaTooNew for a newer one
    if as_json:
        echo_json({"path": path, "before": before, "schema": schema_version() if done else before, "upgraded": done})
    elif done or not is_old:
        click.echo(f"{path}: schema {schema_version()}" if done else f"{path} is up to date: schema {before}")


@command.command("vacuum")
@dry_run_option
@as_json_option
@db_option
def vacuum(dry_run: bool, as_json: bool, db: str) -> None:
    """Write the database anew without its unused room. No broker may use it; it needs its size twice on the disk."""
    path = os.path.realpath(existing_database(db))
    refuse_lost_commits(path)
    with unused_database(path):
        before = _facts(path)
        if before["freeBytes"] < 2 * before["bytes"]:
            raise StoreError(
                f"{path} cannot be written anew: it takes {_megabytes(2 * before['bytes'])} for a moment, and "
                f"{_megabytes(before['freeBytes'])} are free",
                fix="make room on its disk; a broker also uses the room inside the file again",
            )
        action = f"free about {_megabytes(before['unusedBytes'])} of {path}"
        if done := confirmed(action, [], yes=True, dry_run=dry_run):
            _write_anew(path)
        size = Path(path).stat().st_size
    if as_json:
        echo_json({"path": path, "bytesBefore": before["bytes"], "bytes": size, "vacuumed": done})
    elif done:
        click.echo(f"{path}: {_megabytes(before['bytes'])} before, {_megabytes(size)} now")


def _write_anew(path: str) -> None:
    connection = connect(path)
    try:
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except apsw.Error as error:
        raise StoreError(f"{path} cannot be written anew: {error}") from error
    finally:
        connection.close()


def _facts(path: str) -> dict[str, Any]:
    try:
        with read_only(path) as connection:
            contents = contents_of(connection)
            letters = connection.execute("SELECT count(*) FROM dead_letters").get
            unused = connection.pragma("freelist_count") * connection.pragma("page_size")
            schema = connection.pragma("user_version")
    except apsw.Error as error:
        raise StoreError(f"{path} cannot be read: {error}", fix=f"see `qtasks store check --db {path}`") from error
    log = Path(f"{path}-wal")
    return {
        "path": path,
        "usedBy": _user_of(path),
        "bytes": Path(path).stat().st_size,
        "logBytes": log.stat().st_size if log.exists() else 0,
        "freeBytes": shutil.disk_usage(Path(path).parent).free,
        "unusedBytes": unused,
        "schema": schema,
        "currentSchema": schema_version(),
        "messages": contents.messages,
        "unfinished": contents.unfinished,
        "deadLetters": letters,
    }


def _user_of(path: str) -> str | None:
    """The process that uses the database, in words; None if no process does, or this one."""
    try:
        with unused_database(path):
            return None
    except StoreLocked as error:
        return error.message.partition(" is in use by ")[2]


def _megabytes(size: int) -> str:
    return f"{size / 1_000_000:,.1f} MB"


for _command in (check, backup, restore, repair):
    command.add_command(_command)
