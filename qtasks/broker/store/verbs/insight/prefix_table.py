"""The URL prefixes of applications: which refuse, what waits for them, how they answered, and how quick they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

import apsw

from qtasks.broker.core import lots
from qtasks.broker.core.rules import Stage
from qtasks.broker.store.verbs.insight import totals
from qtasks.broker.store.verbs.insight.figures import COLUMNS, HOUR_MS, Figures
from qtasks.broker.store.verbs.reads import dispatchers
from qtasks.broker.store.verbs.rows import fetch
from qtasks.protocol import wire

MOST: Final = 200
"""Prefixes that are listed: those that refuse, then those that were used last."""
_COLUMNS: Final = "lot, dispatcher, down_since_ms, probe_ms"
_DOWN: Final = f"SELECT {_COLUMNS} FROM prefixes WHERE down_since_ms IS NOT NULL ORDER BY probe_ms LIMIT ?"
"""Uses the index ``prefixes_down``."""
_USED: Final = f"SELECT {_COLUMNS} FROM prefixes ORDER BY used_ms DESC LIMIT ?"
"""Uses the index ``prefixes_unused``."""
_PARKED: Final = f"SELECT count(*) FROM messages WHERE stage = {Stage.PARKED} AND lot = ?"
"""Uses the index ``messages_parked``."""
_RUNNING: Final = f"SELECT lot, count(*) FROM messages WHERE stage = {Stage.ACTIVE} GROUP BY lot"


_TASKS: Final = (
    "SELECT d.id, d.url, d.task, a.time_ms, a.status, a.error FROM insight_destinations d"
    " LEFT JOIN insight_answers a ON a.destination = d.id"
    " WHERE d.account = ? AND d.is_task = 1 AND d.counted_as = d.id"
)
_HOURS: Final = (
    f"SELECT s.destination, {', '.join(f's.{name}' for name in COLUMNS.split(', '))} FROM insight_destinations d"
    f" JOIN insight_spans s ON s.account = d.account AND s.step_ms = {HOUR_MS} AND s.destination = d.id"
    " AND s.start_ms >= ?2 WHERE d.account = ?1 AND d.is_task = 1 AND d.counted_as = d.id"
)
"""The latest hours."""


class LastAnswer(NamedTuple):
    """How the last attempt ended that has ended."""

    time_ms: int
    status: int | None
    """Of an answer that reports a failure."""
    error: str | None
    """None for a success."""


@dataclass(slots=True)
class _Observed:
    """What was observed of the tasks of a prefix."""

    last: LastAnswer | None = None
    figures: Figures = field(default_factory=Figures)
    delivered_lately: int = 0


class PrefixLine(NamedTuple):
    """A URL prefix, ``host:port/path/``. Times are the broker's."""

    prefix: str
    url: str
    """As messages have it."""
    is_dispatcher: bool
    down_since_ms: int | None
    probe_ms: int | None
    waiting: int
    running: int
    last: LastAnswer | None
    figures: Figures
    """Of this hour and the one before, without the reports that the framework sends itself."""
    delivered_lately: int
    """In the span that counts for a rate."""


class PrefixTable(NamedTuple):
    """The prefixes, and the span that counts for a rate."""

    lines: list[PrefixLine]
    rate_ms: int


def prefix_table(db: apsw.Connection, account: int, *, now_ms: int) -> PrefixTable:
    """The prefixes that messages of the account go to, at most `MOST`, those that refuse first.

    How many messages wait and run counts those of all accounts: they wait for the same application. All else is of
    this account alone.
    """
    own = {_lot_of(url): url for url in dispatchers.prefixes(db, account)}
    observed, rate_ms = _observed(db, account, now_ms)
    running: dict[str, int] = {}
    for lot, count in fetch(db, _RUNNING):
        if (prefix := lots.parse(lot).prefix) is not None:
            running[prefix] = running.get(prefix, 0) + count
    rows = {row[0]: row for row in (*fetch(db, _DOWN, (MOST,)), *fetch(db, _USED, (MOST,))) if row[0] in own}
    lines = []
    for prefix, dispatcher, down_since_ms, probe_ms in list(rows.values())[:MOST]:
        seen = observed.get(prefix, _Observed())
        lines.append(
            PrefixLine(
                prefix,
                own[prefix],
                bool(dispatcher),
                down_since_ms,
                probe_ms,
                _parked(db, prefix),
                running.get(prefix, 0),
                seen.last,
                seen.figures,
                seen.delivered_lately,
            )
        )
    return PrefixTable(lines, rate_ms)


def _observed(db: apsw.Connection, account: int, now_ms: int) -> tuple[dict[str, _Observed], int]:
    """What was observed of each prefix, and the span that counts for a rate."""
    observed: dict[str, _Observed] = {}
    prefixes: dict[int, str] = {}
    for number, url, task, *answer in fetch(db, _TASKS, (account,)):
        prefix = _lot_of(f"{url.rpartition('/')[0]}/")
        seen = observed.setdefault(prefix, _Observed())
        if answer[0] is not None and (seen.last is None or answer[0] >= seen.last.time_ms):
            seen.last = LastAnswer(*answer)
        if not (task or "").startswith("_"):
            prefixes[number] = prefix
    for number, *columns in fetch(db, _HOURS, (account, (now_ms // HOUR_MS - 1) * HOUR_MS)):
        if number in prefixes:
            observed[prefixes[number]].figures.add(Figures.of((*columns,)))
    lately, rate_ms = totals.delivered_lately(db, account, now_ms=now_ms)
    for number, prefix in prefixes.items():
        observed[prefix].delivered_lately += lately.get(number, 0)
    return observed, rate_ms


def _lot_of(url: str) -> str:
    """The lot of a URL prefix."""
    return f"{wire.host_of(url)}/{url.split('/', 3)[3]}"


def _parked(db: apsw.Connection, prefix: str) -> int:
    return sum(db.execute(_PARKED, (lot,)).get for lot in (prefix, lots.alone_lot(prefix)))
