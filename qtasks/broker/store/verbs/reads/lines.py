"""Queues and flow-control keys with what waits in them, and how quickly they get on."""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

import apsw

from qtasks.broker.core.rules import Stage
from qtasks.broker.store.verbs.rows import fetch

MOST: Final = 500
"""Queues or keys that are listed."""
_RATE_MS: Final = 5 * 60_000
_SAMPLE: Final = 20_000
"""Deliveries that are read for the rates. If there were more in five minutes, the latest of them give the rate."""

_OF_QUEUE: Final = "FROM messages m WHERE m.account = q.account AND m.queue = q.name AND"
_IN_LINE: Final = f"m.stage = {Stage.QUEUED} AND m.slot = 0"
_QUEUES: Final = (
    f"SELECT q.name, q.parallelism, q.paused, (SELECT count(*) {_OF_QUEUE} {_IN_LINE})"
    f" + (SELECT count(*) {_OF_QUEUE} m.slot = 1 AND m.finished_ms IS NULL AND m.stage <> {Stage.ACTIVE}),"
    f" (SELECT count(*) {_OF_QUEUE} m.slot = 1 AND m.stage = {Stage.ACTIVE}),"
    f" (SELECT m.created_ms {_OF_QUEUE} {_IN_LINE} ORDER BY m.place, m.seq LIMIT 1)"
    " FROM queues q WHERE q.account = ? ORDER BY q.name LIMIT ?"
)
"""Uses the indices ``messages_queued`` and ``messages_slots``."""
_OF_KEY: Final = "FROM messages m WHERE m.account = f.account AND m.flow_key = f.key AND m.stage ="
_KEYS: Final = (
    "SELECT f.key, f.parallelism, f.rate, f.period_s, f.pinned_parallelism OR f.pinned_rate, f.paused,"
    f" (SELECT count(*) {_OF_KEY} {Stage.HELD}), (SELECT count(*) {_OF_KEY} {Stage.ACTIVE}),"
    f" (SELECT m.created_ms {_OF_KEY} {Stage.HELD} ORDER BY m.place, m.seq LIMIT 1)"
    " FROM flow_keys f WHERE f.account = ? ORDER BY f.key LIMIT ?"
)
"""Uses the indices ``messages_held`` and ``messages_running``."""
_DELIVERED: Final = (
    f"SELECT account, queue, flow_key, finished_ms FROM messages WHERE stage = {Stage.DELIVERED} AND finished_ms > ?"
    " ORDER BY finished_ms DESC LIMIT ?"
)
"""Uses the index ``messages_finished``."""


class Rates(NamedTuple):
    """Deliveries a minute by queue and by flow-control key."""

    queues: dict[str, float]
    keys: dict[str, float]


class QueueLine(NamedTuple):
    """A queue. `waiting` and `running` count messages; `oldest_ms` is when the first of the line was published."""

    name: str
    parallelism: int
    paused: int
    waiting: int
    running: int
    oldest_ms: int | None


class KeyLine(NamedTuple):
    """A flow-control key, as `QueueLine`."""

    key: str
    parallelism: int | None
    rate: int | None
    period_s: int
    pinned: int
    paused: int
    waiting: int
    running: int
    oldest_ms: int | None


def queue_lines(db: apsw.Connection, account: int, *, now_ms: int) -> tuple[list[QueueLine], Rates]:
    """The queues by name, at most `MOST`, and the rates."""
    lines = [QueueLine._make(row) for row in fetch(db, _QUEUES, (account, MOST))]
    return lines, _rates(db, account, now_ms)


def key_lines(db: apsw.Connection, account: int, *, now_ms: int) -> tuple[list[KeyLine], Rates]:
    """The flow-control keys by name, at most `MOST`, and the rates."""
    lines = [KeyLine._make(row) for row in fetch(db, _KEYS, (account, MOST))]
    return lines, _rates(db, account, now_ms)


def _rates(db: apsw.Connection, account: int, now_ms: int) -> Rates:
    delivered = fetch(db, _DELIVERED, (now_ms - _RATE_MS, _SAMPLE))
    span_ms = _RATE_MS if len(delivered) < _SAMPLE else max(1, now_ms - delivered[-1][3])
    own = [(queue, key) for owner, queue, key, _ in delivered if owner == account]
    return Rates(
        _per_minute(Counter(queue for queue, _ in own if queue is not None), span_ms),
        _per_minute(Counter(key for _, key in own if key is not None), span_ms),
    )


def _per_minute(counts: Counter[str], span_ms: int) -> dict[str, float]:
    return {name: round(count * 60_000 / span_ms, 1) for name, count in counts.items()}
