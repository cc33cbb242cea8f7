"""`python -m tests.house`: print the state of the house. The exit code is 1 if a bar is missed."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence

from tests.house.report import Row, reported, rows

_SHOWN = 400
"""Places shown of a row at most."""


def lines(table: Sequence[Row]) -> Iterator[str]:
    """The table as text, the places that miss a bar below their row."""
    width = max(len(row.name) for row in table)
    yield f"{'':{width}}  value   bar"
    for row in table:
        bar = "" if row.bar is None else f"{row.bar:6}  {'ok' if row.holds else 'MISSED'}"
        yield f"{row.name:{width}} {row.value:6}{bar}".rstrip()
        for note in row.notes:
            yield from textwrap.wrap(note, 118, initial_indent="    ", subsequent_indent="    ")
        if not row.holds:
            yield from (f"    {place}" for place in row.misses[:_SHOWN])
            if len(row.misses) > _SHOWN:
                yield f"    ... and {len(row.misses) - _SHOWN} more"


def main() -> int:
    """Print the table; 1 if a bar is missed."""
    barred = rows()
    sys.stdout.writelines(f"{line}\n" for line in lines([*barred, *reported()]))
    return 0 if all(row.holds for row in barred) else 1


if __name__ == "__main__":
    raise SystemExit(main())
