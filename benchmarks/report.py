"""The table as text, and the same data as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks.figure import Aim, Row, number

_NAME: Final = 52
_VALUE: Final = 16
_AIM: Final = 12


def heading(facts: Mapping[str, str]) -> str:
    """What the figures depend on."""
    return "\n".join(f"{name:<10} {fact}" for name, fact in facts.items())


def line(row: Row) -> str:
    """A row of the table, with its method below."""
    value = "-" if row.value is None else f"{number(row.value)} {row.unit}"
    result = {True: "met", False: "MISSED", None: ""}[row.met]
    first = f"{row.name:<{_NAME}} {value:>{_VALUE}}  {_aim(row.aim):<{_AIM}} {result:<7} {row.note}".rstrip()
    return f"{first}\n    {row.method}"


def _aim(aim: Aim | None) -> str:
    return "" if aim is None else f"aim {'≤' if aim.most else '≥'} {aim.limit:,g}"


def as_json(path: Path, facts: Mapping[str, str], rows: Sequence[Row], compared: Sequence[Mapping[str, Any]]) -> None:
    """Write all results to `path`."""
    document = {
        "machine": dict(facts),
        "figures": [{**asdict(row), "met": row.met} for row in rows],
        "comparison": list(compared),
    }
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
