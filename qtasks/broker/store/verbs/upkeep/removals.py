"""What retention removes in the next days, by the hour: it counts what has ended and comes of age then."""

from __future__ import annotations

from typing import Final, NamedTuple, cast

import apsw

from qtasks.broker.core.rules import Stage
from qtasks.broker.core.values import Retention
from qtasks.broker.store.verbs.broker_time import retention_cutoff_ms
from qtasks.broker.store.verbs.rows import fetch
from qtasks.broker.store.verbs.upkeep.store_sizes import HOUR_MS

HOURS: Final = 7 * 24
"""How far the forecast goes."""
_COUNT: Final = (
    "SELECT count(*) FROM messages WHERE stage = ? AND finished_ms IS NOT NULL AND finished_ms >= ? AND finished_ms < ?"
)
_SAMPLE: Final = 100
_OVERHEAD: Final = 300
"""Bytes that a message takes in addition to its texts: numbers, ids, and its entries in the indices."""
_LOG_OVERHEAD: Final = 30
"""The same of an entry of its log."""
_LENGTHS: Final = (
    f"SELECT {_OVERHEAD} + length(m.url) + length(m.headers) + coalesce(length(m.options), 0)"
    " + coalesce((SELECT length(b.body) FROM stored_bodies b WHERE b.seq = m.seq), 0)"
    f" + (SELECT sum({_LOG_OVERHEAD} + coalesce(length(l.error), 0) + coalesce(length(l.response_head), 0)"
    " + coalesce(length(l.response_body), 0)) FROM log l WHERE l.seq = m.seq)"
    " FROM messages m WHERE m.stage = ? AND m.finished_ms IS NOT NULL ORDER BY m.finished_ms LIMIT ?"
)


class Removal(NamedTuple):
    """How many messages an hour removes."""

    finished: int
    """Delivered and cancelled ones."""
    failed: int
    """Those that failed, with their dead letters."""


def forecast(db: apsw.Connection, retention: Retention, *, now_ms: int) -> list[Removal]:
    """What each of the next `HOURS` hours removes by age. The first one also has what is due already.

    What ends from now on comes later, unless it is kept for less than that.
    """
    finished = _by_hour(db, (Stage.DELIVERED, Stage.CANCELED), retention.delivered_ms, now_ms)
    failed = _by_hour(db, (Stage.FAILED,), retention.failed_ms, now_ms)
    return [Removal._make(counts) for counts in zip(finished, failed, strict=True)]


def _by_hour(db: apsw.Connection, stages: tuple[Stage, ...], age_ms: int, now_ms: int) -> list[int]:
    counts: list[int] = []
    since_ms = 0
    for hour in range(1, HOURS + 1):
        until_ms = retention_cutoff_ms(db, now_ms=now_ms + hour * HOUR_MS, age_ms=age_ms)
        until_ms = max(since_ms, until_ms)
        counts.append(sum(_count(db, stage, since_ms, until_ms) for stage in stages))
        since_ms = until_ms
    return counts


def _count(db: apsw.Connection, stage: Stage, since_ms: int, until_ms: int) -> int:
    return cast("int", db.execute(_COUNT, (stage.value, since_ms, until_ms)).get)


def bytes_each(db: apsw.Connection) -> int:
    """About how many bytes a message takes with its history, by those that go next; 0 without such messages."""
    stages = (Stage.DELIVERED, Stage.CANCELED, Stage.FAILED)
    lengths = [length or 0 for stage in stages for (length,) in fetch(db, _LENGTHS, (stage.value, _SAMPLE))]
    return sum(lengths) // len(lengths) if lengths else 0
