"""What the commands print: tables that fit the terminal, JSON, times. Text of others cannot control the terminal."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import click

_LEAST: Final = 8
"""Characters that a column is cut to at least, without a number of its own."""
_UNITS: Final = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"))


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column of a table. Only one that is flexible is cut, where the table would be too wide."""

    title: str
    is_flexible: bool = False
    is_number: bool = False
    least: int = _LEAST
    """Characters that it is cut to at least, if it is flexible."""


def width() -> int:
    """The width of the terminal, in characters; 80 where there is no terminal."""
    return shutil.get_terminal_size((80, 24)).columns


def echo_table(columns: Sequence[TableColumn], rows: Sequence[Sequence[str]], below: Sequence[str] = ()) -> None:
    """Print a table with its titles, and under each row its line of `below` if that is not empty."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(column.title), *(len(row[at]) for row in cells)) for at, column in enumerate(columns)]
    excess = sum(widths) + 2 * (len(widths) - 1) - width()
    for at, column in enumerate(columns):
        if column.is_flexible and excess > 0:
            narrower = max(min(column.least, widths[at]), widths[at] - excess)
            excess -= widths[at] - narrower
            widths[at] = narrower
    click.echo(_line(columns, [column.title for column in columns], widths))
    for number, row in enumerate(cells):
        click.echo(_line(columns, row, widths))
        if number < len(below) and below[number]:
            click.echo("    " + shortened(printable(below[number]), width() - 4))


def _line(columns: Sequence[TableColumn], cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = [
        shortened(cell, size).rjust(size) if column.is_number else shortened(cell, size).ljust(size)
        for column, cell, size in zip(columns, cells, widths, strict=True)
    ]
    return "  ".join(aligned).rstrip()


def echo_facts(facts: Sequence[tuple[str, str | None]]) -> None:
    """Print labelled values under each other; those without a value are left out."""
    for label, value in facts:
        if value is not None:
            click.echo(f"  {label:<12}  {printable(value)}")


def echo_json(document: Any) -> None:
    """Print one JSON document."""
    encoding = (sys.stdout.encoding or "utf-8").lower().replace("-", "")
    click.echo(json.dumps(document, indent=2, ensure_ascii=encoding != "utf8"))


def talk(text: str) -> None:
    """Print a remark, to standard error."""
    click.echo(printable(text), err=True)


def printable(text: str) -> str:
    """`text` in one line, with ``?`` for control characters."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.splitlines()))


def shortened(text: str, size: int) -> str:
    """`text`, cut to at most `size` characters."""
    return text if len(text) <= size else text[: max(0, size - 3)] + "..."


def counted(number: int, word: str) -> str:
    """A number with its word: ``1 queue``, ``2 queues``."""
    plural = word[:-1] + "ies" if word.endswith("ry") else word + "s"
    return f"{number:,} {word if number == 1 else plural}"


def span(ms: float) -> str:
    """A duration by its largest unit: ``3d``, ``12s``, ``0s``."""
    return next((f"{int(ms // size)}{unit}" for size, unit in _UNITS if ms >= size), "0s")


def age(then_ms: int | None, now_ms: int) -> str:
    """How long ago: ``3m``; in the future: ``in 3m``; empty for None."""
    if then_ms is None:
        return ""
    return span(now_ms - then_ms) if then_ms <= now_ms else f"in {span(then_ms - now_ms)}"


def moment(ms: int) -> str:
    """A time in the zone of this machine, to the millisecond."""
    return datetime.fromtimestamp(ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
