"""Options of commands that change something, the question before it, and its progress."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import click

from qtasks.cli.exit_codes import FAILED
from qtasks.cli.printing import talk

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
yes_option = click.option("--yes", is_flag=True, help="Do it without asking.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Print what would be touched, and change nothing.")
_SHOWN: Final = 10
_LONG: Final = 1_000
"""Steps from which on progress is printed where there is no terminal."""


def confirmed(action: str, names: Sequence[str], *, yes: bool, dry_run: bool) -> bool:
    """Ask before `action`, such as "delete 3 dead letters at http://...", which touches `names`. False for a dry run.

    Ends the command if the answer is no. Where there is no terminal, UsageError without `yes`.
    """
    if dry_run or not yes:
        for name in names[:_SHOWN]:
            talk(f"  {name}")
        if len(names) > _SHOWN:
            talk(f"  ... and {len(names) - _SHOWN:,} more")
    if dry_run:
        talk(f"would {action}; nothing was changed")
        return False
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"this would {action}: confirm it with --yes, or look with --dry-run")
        if not click.confirm(f"{action[0].upper()}{action[1:]}?", err=True):
            talk("nothing was changed")
            sys.exit(FAILED)
    return True


@contextlib.contextmanager
def progress(label: str, length: int) -> Iterator[Callable[[int], Any]]:
    """A bar on a terminal, elsewhere a line for each tenth of long work. Yields what takes the number done so far."""
    if not sys.stderr.isatty():
        tenth = max(1, length // 10)
        shown = 0

        def report(done: int) -> None:
            nonlocal shown
            if length >= _LONG and done // tenth > shown:
                shown = done // tenth
                talk(f"{label}: {done:,} of {length:,}")

        yield report
        return
    with click.progressbar(length=length, label=label, file=sys.stderr) as bar:
        yield lambda done: bar.update(done - bar.pos)
