"""The table for people, and the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.figure import Aim, Row, number
from benchmarks.peers.contest import Standing

_NAME, _VALUE, _AIM = 52, 16, 12


def heading(facts: Mapping[str, str]) -> str:
    """What the figures depend on."""
    return "\n".join(f"{name:<10} {fact}" for name, fact in facts.items())


def line(row: Row) -> str:
    """A row of the table, with its method below."""
    value = "-" if row.value is None else f"{number(row.value)} {row.unit}"
    verdict = {True: "met", False: "MISSED", None: ""}[row.met]
    first = f"{row.name:<{_NAME}} {value:>{_VALUE}}  {_aim(row.aim):<{_AIM}} {verdict:<7} {row.note}".rstrip()
    return f"{first}\n    {row.method}"


def _aim(aim: Aim | None) -> str:
    return "" if aim is None else f"aim {'≤' if aim.most else '≥'} {aim.limit:,g}"


def as_json(path: Path, facts: Mapping[str, str], rows: Sequence[Row], standings: Sequence[Standing]) -> None:
    """Write everything that was measured to `path`."""
    document = {
        "machine": dict(facts),
        "figures": [{**asdict(row), "met": row.met} for row in rows],
        "peers": [{**asdict(standing), "median": standing.median} for standing in standings],
    }
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
