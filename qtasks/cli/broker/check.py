"""`qtasks broker check`: is the database damaged?"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import apsw
import click

from qtasks.broker.store import foreign_database, orphaned_log, storage_errors
from qtasks.broker.store.connection import APPLICATION_ID, connect_read_only, schema_version
from qtasks.broker.store.integrity import lost_commits, page_check
from qtasks.broker.store.verbs.damage import scrub
from qtasks.cli.broker.database_file import db_option, existing_database, unused_database
from qtasks.cli.changes import as_json_option
from qtasks.cli.printing import echo_json
from qtasks.errors import StoreError

_SHOWN: Final = 100
"""Findings of each kind that are printed at most."""


class DatabaseContents(NamedTuple):
    """How many messages a database has, and its size."""

    messages: int
    unfinished: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.messages} messages, {self.unfinished} of them not finished, {_megabytes(self.bytes)}"


@click.command("check")
@as_json_option
@db_option
def check(as_json: bool, db: str) -> None:
    """Look for damage in the database. It may be in use.

    Prints what is damaged and ends with status 1, or one line that the database is sound.
    """
    path = os.path.realpath(existing_database(db))  # the log is beside the file, not beside a link to it
    orphaned_log.refuse_without_database(path)  # SQLite would delete the log
    foreign_database.refuse(path, for_repair=True)
    findings, unchecked = _log_findings(path)
    contents: DatabaseContents | None = None
    advice = (
        f"{path} is damaged: {storage_errors.advice_to_repair(path)};"
        f" `qtasks broker restore BACKUP --db {path}` puts a backup in its place"
    )
    if not (findings := findings or page_findings(path)):
        advice = "A running broker sets these messages aside, as dead letters; all others go on."
        with read_only(path) as connection:
            findings = row_findings(connection)
            contents = contents_of(connection)
    if as_json:
        stored = None if contents is None else contents._asdict()
        facts = {"path": path, "sound": not findings, "findings": findings, "unchecked": unchecked}
        echo_json({**facts, "contents": stored})
    elif not findings:
        click.echo(f"sound: {contents}" + (f"; its log was not checked: {unchecked}" if unchecked else ""))
    for finding in () if as_json else findings:
        click.echo(f"damaged: {finding}")
    if findings:
        click.echo(advice, err=True)
        sys.exit(1)


def _log_findings(path: str) -> tuple[list[str], str | None]:
    """The damage of the write-ahead log, and why it could not be looked for: a broker that runs changes it."""
    try:
        with unused_database(path, for_repair=True):
            lost = lost_commits.sentence(path)
    except StoreError as error:  # in use, or not to be written
        return [], error.message
    return ([] if lost is None else [lost]), None


@contextlib.contextmanager
def read_only(path: str) -> Iterator[apsw.Connection]:
    """A connection that changes nothing: its end does not even move the log into the database."""
    connection = connect_read_only(path)
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    try:
        yield connection
    finally:
        connection.close()


def page_findings(path: str) -> list[str]:
    """The damages of pages. StoreError if it is a sound database of another program, or of a newer version."""
    size = Path(path).stat().st_size
    if size > page_check.SMALL_BYTES:
        click.echo(f"checking {_megabytes(size)}; this takes about {size // 400_000_000 + 1} s from memory", err=True)
    try:
        with read_only(path) as connection:
            if findings := page_check.page_findings(connection, _SHOWN):
                return findings
            version = connection.pragma("user_version")
            application_id = connection.pragma("application_id")
    except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError, apsw.IOError) as error:
        return [str(error)]
    except apsw.Error as error:
        raise StoreError(f"{path} cannot be checked: {error}", fix="copy it to a folder that may be written") from error
    if not 0 < version <= schema_version():
        raise StoreError(
            f"{path} is not a database of this version of qtasks: its schema has version {version}",
            fix="name another file with --db, or use the program that wrote it",
        )
    if application_id not in (0, APPLICATION_ID):
        return [f"the application id in the header is {application_id:#x}, not {APPLICATION_ID:#x}"]
    return []


def contents_of(connection: apsw.Connection) -> DatabaseContents:
    """What a database has."""
    count, unfinished = connection.execute("SELECT count(*), count(*) - count(finished_ms) FROM messages").get
    return DatabaseContents(count, unfinished, connection.pragma("page_count") * connection.pragma("page_size"))


def row_findings(db: apsw.Connection) -> list[str]:
    """The damaged messages that have not ended. Those that were set aside are dead letters, which say it.

    None in a database of an earlier release, which the next start of a broker upgrades.
    """
    findings: list[str] = []
    if db.pragma("user_version") != schema_version():
        return findings
    after: int | None = 0
    while after is not None and len(findings) < _SHOWN:
        piece = scrub.look_at(db, after=after, all_bodies=True)
        findings += [
            f"message {finding.message_id}: {finding.fault.value}"
            for finding in piece.findings
            if not finding.has_ended
        ]
        after = piece.last
    return findings


def _megabytes(size: int) -> str:
    return f"{size / 1_000_000:.1f} MB"
