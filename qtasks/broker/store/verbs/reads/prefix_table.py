"""The URL prefixes of applications: which of them refuse, and what waits for them."""

from __future__ import annotations

from typing import Final, NamedTuple

import apsw

from qtasks.broker.core import lots
from qtasks.broker.core.rules import Stage
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


class PrefixLine(NamedTuple):
    """A URL prefix, ``host:port/path/``. Times are the broker's."""

    prefix: str
    is_dispatcher: bool
    down_since_ms: int | None
    probe_ms: int | None
    waiting: int
    running: int


def prefix_lines(db: apsw.Connection, account: int) -> list[PrefixLine]:
    """The prefixes that messages of the account go to, at most `MOST`, those that refuse first.

    How many messages wait and run counts those of all accounts: they wait for the same application.
    """
    own = {f"{wire.host_of(url)}/{url.split('/', 3)[3]}" for url in dispatchers.prefixes(db, account)}
    running: dict[str, int] = {}
    for lot, count in fetch(db, _RUNNING):
        if (prefix := lots.parse(lot).prefix) is not None:
            running[prefix] = running.get(prefix, 0) + count
    rows = {row[0]: row for row in (*fetch(db, _DOWN, (MOST,)), *fetch(db, _USED, (MOST,))) if row[0] in own}
    return [
        PrefixLine(prefix, bool(dispatcher), down_since_ms, probe_ms, _parked(db, prefix), running.get(prefix, 0))
        for prefix, dispatcher, down_since_ms, probe_ms in list(rows.values())[:MOST]
    ]


def _parked(db: apsw.Connection, prefix: str) -> int:
    return sum(db.execute(_PARKED, (lot,)).get for lot in (prefix, lots.alone_lot(prefix)))
