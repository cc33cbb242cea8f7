"""`qtasks broker repair`: save what can be read of a damaged database."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Final

import click

from qtasks.broker.store.integrity import lost_commits
from qtasks.broker.store.integrity.repair import DatabaseRepair
from qtasks.broker.store.integrity.repair import repair as repair_database
from qtasks.cli.broker.check import page_findings
from qtasks.cli.broker.database_file import db_option, existing_database, now_ms, unused_database
from qtasks.cli.changes import as_json_option
from qtasks.cli.printing import echo_json

_SECRETS: Final = {"signing_keys": "the signing keys", "tokens": "API tokens"}
_NAMED: Final = 20
"""Lost messages that are printed; all of them are in the report."""


@click.command("repair")
@as_json_option
@db_option
def repair(as_json: bool, db: str) -> None:
    """Save what can be read of a damaged database into a new file in its place. No broker may use it.

    The damaged files are kept as FILE.damaged-<time>. Prints what was saved and what is lost. A sound database is
    left as it is.
    """
    path = os.path.realpath(existing_database(db))  # the log is beside the file, not beside a link to it
    with unused_database(path, for_repair=True):
        lost = lost_commits.sentence(path)
        if lost is None and not page_findings(path):
            if as_json:
                echo_json({"path": path, "repaired": False})
            else:
                click.echo(f"{path} is sound: nothing was changed")
            return
        suffix = time.strftime(".damaged-%Y%m%d-%H%M%S")
        done = repair_database(path, suffix, now_ms=now_ms())
    report = _write_report(done)
    if as_json:
        echo_json(_facts(path, lost, done, report))
    else:
        _print(path, lost, done, report)


def _write_report(done: DatabaseRepair) -> Path:
    """Write the names of all messages that are lost or damaged beside the damaged database."""
    report = Path(f"{done.kept}.report")
    report.write_text(
        "".join(f"lost message {name}: {state}\n" for name, state in done.salvage.lost_messages.items())
        + "".join(f"damaged message {name}\n" for name in done.damaged)
    )
    return report


def _facts(path: str, lost: str | None, done: DatabaseRepair, report: Path) -> dict[str, Any]:
    return {
        "path": path,
        "repaired": True,
        "kept": str(done.kept),
        "report": str(report),
        "log": lost,
        "saved": dict(done.salvage.saved),
        "damaged": list(done.damaged),
        "lost": dict(done.salvage.lost_messages),
        "unreadable": dict(done.salvage.unreadable),
    }


def _print(path: str, lost: str | None, done: DatabaseRepair, report: Path) -> None:
    salvage = done.salvage
    if lost is not None:
        click.echo(f"the log was damaged: {lost.removesuffix('; nothing was changed')} by a broker")
    count = salvage.saved["messages"]
    click.echo(f"saved: {count} messages, {count - len(done.damaged)} of them as they were accepted")
    if done.damaged:
        click.echo(f"damaged, so they become dead letters: {_some(done.damaged)}")
    if salvage.lost_messages:
        names = [f"{name} ({state})" for name, state in salvage.lost_messages.items()]
        click.echo(f"lost, with the last entry of their log: {_some(names)}")
    for name, count in sorted(salvage.unreadable.items()):
        click.echo(f"damaged: {count} pages or rows of {name}")
    for table, what in _SECRETS.items():
        if table in salvage.unreadable:
            click.echo(f"check {what}: a page of theirs was damaged")
    click.echo(f"{path} is new; the damaged database is {done.kept}, all names are in {report}")


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest
