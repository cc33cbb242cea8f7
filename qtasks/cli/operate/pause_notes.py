"""The note of a pause: the option that gives it, and the line that shows since when, by whom and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar
from urllib.parse import quote

import click

from qtasks.cli.operate.service import now_ms
from qtasks.cli.printing import age
from qtasks.protocol.headers import NOTE_HEADER
from qtasks.qstash.conversation.operation import Operation

T = TypeVar("T")

_LONGEST: Final = 200


def _checked(_context: click.Context, _parameter: click.Parameter, note: str | None) -> str | None:
    if note is not None and len(note) > _LONGEST:
        raise click.BadParameter(f"a note has at most {_LONGEST} characters, not {len(note)}")
    return note


note_option = click.option(
    "--note", metavar="TEXT", callback=_checked, help="Why it is paused; shown until it is resumed."
)


def with_note(operation: Operation[T], note: str | None) -> Operation[T]:
    """The operation with a note for the audit and for those who see the pause (docs/protocol.md 5.19)."""
    return operation if note is None else replace(operation, headers=(*operation.headers, (NOTE_HEADER, quote(note))))


def pause_line(shown: Mapping[str, Any]) -> str:
    """The line below what is paused; empty if nothing is known of a pause."""
    if "pausedAt" not in shown:
        return ""
    note = f": {shown['pauseNote']}" if shown.get("pauseNote") else ""
    return f"paused {age(shown['pausedAt'], now_ms())} ago by {shown['pausedBy']}{note}"
