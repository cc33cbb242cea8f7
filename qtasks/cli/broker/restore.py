"""`qtasks broker restore`: a backup takes the place of the database, which is kept."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import click

from qtasks.broker.store import foreign_database, orphaned_log
from qtasks.broker.store.integrity.repair import exchange, sync_to_disk
from qtasks.cli.broker.check import DatabaseContents, contents_of, page_findings, read_only, row_findings
from qtasks.cli.broker.database_file import database_path, db_option, unused_database
from qtasks.cli.changes import as_json_option, confirmed, dry_run_option, yes_option
from qtasks.cli.printing import echo_json
from qtasks.errors import ConfigurationError, StoreError


@click.command("restore")
@click.argument("backup", type=click.Path(dir_okay=False))
@yes_option
@dry_run_option
@as_json_option
@db_option
def restore(backup: str, yes: bool, dry_run: bool, as_json: bool, db: str) -> None:
    """Put the file BACKUP in the place of the database. No broker may use it.

    The backup is checked first and stays as it is. The database of before is kept as FILE.before-<time>; what it
    accepted since the backup is only there, and what was delivered since then is delivered again.
    """
    path = os.path.realpath(database_path(db))  # the log is beside the file, not beside a link to it
    contents = _checked(backup, path)
    kept: Path | None = None
    if not Path(path).exists():
        orphaned_log.refuse_without_database(path)
        if done := confirmed(f"create {path} from {backup}: {contents}", [], yes=True, dry_run=dry_run):
            _copy(backup, path).replace(path)
            sync_to_disk(Path(path).parent)
    else:
        with unused_database(path, for_repair=True):
            if done := confirmed(f"replace {path} by {backup}: {contents}", [], yes=yes, dry_run=dry_run):
                kept = _replace(path, backup)
    if as_json:
        facts = {"path": path, "backup": os.path.realpath(backup), "restored": done, "contents": contents._asdict()}
        echo_json({**facts, "kept": None if kept is None else str(kept)})
    elif done:
        click.echo(f"{path}: {contents}" + ("" if kept is None else f"; the database of before is {kept}"))


def _replace(path: str, backup: str) -> Path:
    """Put a copy of the backup in the place of the database; where that of before is kept."""
    kept = Path(path + time.strftime(".before-%Y%m%d-%H%M%S"))
    copy = _copy(backup, path)
    try:
        exchange(path, copy, kept)
    except OSError as error:
        raise StoreError(f"{path} cannot be replaced: {error}") from error
    finally:
        copy.unlink(missing_ok=True)
    return kept


def _checked(backup: str, path: str) -> DatabaseContents:
    """What is in the backup. Raises ConfigurationError or StoreError if it cannot be restored."""
    if not Path(backup).is_file():
        raise ConfigurationError(f"there is no backup at {backup}", fix="make one with `qtasks broker backup FILE`")
    if Path(path).exists() and Path(backup).samefile(path):
        raise ConfigurationError(f"{backup} is the database itself", fix="name a backup of it")
    log = Path(f"{backup}-wal")
    if log.exists() and log.stat().st_size > 0:
        raise StoreError(
            f"{backup} has a write-ahead log beside it, so it is not a backup: its newest data are there",
            fix=f"make a backup of it with `qtasks broker backup FILE --db {backup}`, and restore that",
        )
    foreign_database.refuse(os.path.realpath(backup))
    findings = page_findings(backup)
    if not findings:
        with read_only(backup) as connection:
            findings = row_findings(connection)
            contents = contents_of(connection)
    if findings:
        raise StoreError(
            f"{backup} is damaged, and nothing was changed: {'; '.join(findings[:3])}",
            fix=f"restore another backup, or save what can be read: qtasks broker repair --db {backup}",
        )
    return contents


def _copy(backup: str, path: str) -> Path:
    """A copy of the backup beside the database, on the disk. Raises StoreError."""
    copy = Path(f"{path}.restored")
    try:
        copy.unlink(missing_ok=True)
        os.close(os.open(copy, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        shutil.copyfile(backup, copy)
        sync_to_disk(copy)
    except OSError as error:
        copy.unlink(missing_ok=True)
        raise StoreError(
            f"{backup} cannot be copied to {copy}: {error.strerror}; nothing was changed",
            fix="make room on its disk, as much as the backup takes",
        ) from error
    return copy
