"""`qtasks broker backup`: a copy of the database, also while a broker uses it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import apsw
import click

from qtasks.broker.store.connection import connect_read_only
from qtasks.broker.store.integrity import backup_note, page_check
from qtasks.broker.store.integrity.backup_note import BackupNote
from qtasks.broker.store.integrity.repair import sync_to_disk
from qtasks.cli.broker.database_file import db_option, existing_database, now_ms, refuse_lost_commits
from qtasks.cli.changes import as_json_option
from qtasks.cli.printing import echo_json, talk
from qtasks.errors import ConfigurationError, StoreError

_STEP: Final = 2_000
"""Pages that are copied between two reports of the progress."""


@click.command("backup")
@click.argument("target", type=click.Path(dir_okay=False))
@as_json_option
@db_option
def backup(target: str, as_json: bool, db: str) -> None:
    """Copy the database to the new file TARGET. A broker may use it and goes on.

    The copy is as the database was at one moment, it is checked, and only you can read it. To restore it, stop the
    broker and run `qtasks broker restore TARGET`: what was delivered since the backup is then delivered again.
    """
    path = existing_database(db)
    refuse_lost_commits(path)
    database = os.path.realpath(path)
    if Path(target).exists():
        raise ConfigurationError(f"{target} exists already; a backup replaces nothing", fix="name a new file")
    if os.path.realpath(target) == str(backup_note.note_path(path)):
        raise ConfigurationError(f"{target} is the file in which the last backup is noted", fix="name another file")
    partial = Path(f"{target}.partial")
    try:
        os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise ConfigurationError(
            f"cannot create {partial}: {error.strerror}", fix="remove it, or name another file"
        ) from error
    try:
        size = _copy(path, str(partial))
        sync_to_disk(partial)
        _name(partial, Path(target))
        sync_to_disk(Path(target).absolute().parent)
    except (apsw.Error, OSError) as error:
        raise StoreError(f"{path} cannot be copied to {target}: {error}") from error
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(f"{partial}{suffix}").unlink(missing_ok=True)
    _note(database, BackupNote(now_ms(), size, os.path.realpath(target)))
    if as_json:
        echo_json({"path": database, "backup": os.path.realpath(target), "bytes": size})
    else:
        click.echo(f"{target}: {size / 1_000_000:.1f} MB, checked")


def _note(database: str, note: BackupNote) -> None:
    """Note the backup for the console. In a folder that cannot be written to the backup succeeds all the same."""
    try:
        backup_note.write(database, note)
    except OSError as error:
        talk(f"the console will not show this backup: {backup_note.note_path(database)}: {error.strerror}")


def _name(partial: Path, target: Path) -> None:
    """Give the copy its name. Raises FileExistsError for a file that was made meanwhile."""
    try:
        os.link(partial, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without links, as on many USB sticks and network shares
        os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))  # refuses it, too
        partial.replace(target)


def _copy(path: str, partial: str) -> int:
    """Copy the database as it is now; the bytes of the copy. Raises StoreError if the copy is damaged."""
    source = connect_read_only(path)
    copy = apsw.Connection(partial)
    try:
        # One read transaction for all steps: otherwise each write of the broker would begin the copy anew.
        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        copy.execute("PRAGMA synchronous = OFF")
        with copy.backup("main", source, "main") as steps:
            while not steps.done:
                steps.step(_STEP)
                _report(steps.page_count - steps.remaining, steps.page_count)
            size = int(steps.page_count) * int(copy.pragma("page_size"))
        source.execute("COMMIT")
        if findings := page_check.page_findings(copy):
            raise StoreError(
                f"{path} is damaged, so its copy is of no use: {'; '.join(findings[:3])}",
                fix=f"see `qtasks broker check --db {path}`",
            )
        copy.execute("PRAGMA journal_mode = DELETE")  # one file, with nothing beside it
    finally:
        copy.close()
        source.close()
    return size


def _report(done: int, count: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{100 * done // max(1, count)} %", err=True, nl=done == count)
