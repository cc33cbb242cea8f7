"""`qtasks broker check`: is the database damaged?"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import apsw
import click

from qtasks.broker.store import storage_errors
from qtasks.broker.store.connection import connect_read_only
from qtasks.broker.store.integrity import lost_commits, page_check
from qtasks.broker.store.verbs.damage import scrub
from qtasks.cli.broker.database_file import db_option, existing_database, unused_database
from qtasks.errors import StoreLocked

_SHOWN: Final = 100
"""Findings of each kind that are printed at most."""


@click.command("check")
@db_option
def check(db: str) -> None:
    """Look for damage in the database. It may be in use.

    Prints what is damaged and ends with status 1, or one line that the database is sound.
    """
    path = os.path.realpath(existing_database(db))  # the log is beside the file, not beside a link to it
    findings, checked_log = _log_findings(path)
    if not findings:
        findings, summary = database_findings(path)
    if not findings:
        click.echo(f"sound: {summary}" + ("" if checked_log else "; a broker uses it, so its log was not checked"))
        return
    for finding in findings:
        click.echo(f"damaged: {finding}")
    click.echo(f"{path} is damaged. {storage_errors.advice(path)}", err=True)
    sys.exit(1)


def _log_findings(path: str) -> tuple[list[str], bool]:
    """The damage of the write-ahead log, and whether it could be looked for: a broker that runs changes it."""
    try:
        with unused_database(path):
            lost = lost_commits.sentence(path)
    except StoreLocked:
        return [], False
    return ([] if lost is None else [lost]), True


def database_findings(path: str) -> tuple[list[str], str]:
    """The damages of pages and rows, and a summary of the database if there are none."""
    size = Path(path).stat().st_size
    if size > page_check.SMALL_BYTES:
        click.echo(f"checking {_megabytes(size)}; this takes about {size // 400_000_000 + 1} s from memory", err=True)
    try:
        db = connect_read_only(path)
        # The end of the last connection would move the log into the database: a check changes nothing.
        db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        try:
            if findings := page_check.page_findings(db, _SHOWN) or _row_findings(db):
                return findings, ""
            count, waiting = db.execute("SELECT count(*), count(*) - count(finished_ms) FROM messages").get
            return [], f"{count} messages, {waiting} of them not finished, {_megabytes(size)}"
        finally:
            db.close()
    except apsw.Error as error:
        return [str(error)], ""


def _row_findings(db: apsw.Connection) -> list[str]:
    """The damaged messages. Those that were set aside are dead letters, and count no more."""
    findings: list[str] = []
    after: int | None = 0
    while after is not None and len(findings) < _SHOWN:
        piece = scrub.look_at(db, after=after, all_bodies=True)
        findings += [f"message {finding.message_id}: {finding.fault.value}" for finding in piece.findings]
        after = piece.last
    return findings


def _megabytes(size: int) -> str:
    return f"{size / 1_000_000:.1f} MB"
