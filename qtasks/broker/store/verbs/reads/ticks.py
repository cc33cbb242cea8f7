"""The latest ticks of schedules: which ran, which were missed, and what they published."""

from __future__ import annotations

from typing import Final, NamedTuple, cast

import apsw
import orjson

from qtasks.broker.store.verbs.rows import fetch

_RECENT: Final = (
    "SELECT tick_ms, outcome, messages, stored_ms FROM ticks WHERE account = ? AND schedule = ?"
    " ORDER BY tick_ms DESC LIMIT ?"
)
_MISSED: Final = "SELECT count(*) FROM ticks WHERE account = ? AND schedule = ? AND outcome = 'MISSED'"
"""A week of ticks at most: ten thousand for a schedule that runs every minute."""


class TickRow(NamedTuple):
    """A tick, in the schedule's time; `stored_ms` is the broker's time at which that was noted."""

    tick_ms: int
    outcome: str
    message_ids: tuple[str, ...]
    stored_ms: int


def recent_ticks(db: apsw.Connection, account: int, schedule_id: str, limit: int) -> list[TickRow]:
    """The latest ticks of a schedule, newest first; they are kept for a week."""
    return [
        TickRow(tick_ms, outcome, _ids(messages), stored_ms)
        for tick_ms, outcome, messages, stored_ms in fetch(db, _RECENT, (account, schedule_id, limit))
    ]


def missed_ticks(db: apsw.Connection, account: int, schedule_id: str) -> int:
    """How many ticks of a schedule were missed within the last week."""
    return cast("int", db.execute(_MISSED, (account, schedule_id)).get)


def _ids(text: str) -> tuple[str, ...]:
    try:
        ids = orjson.loads(text)
    except ValueError:
        return ()
    return tuple(str(message_id) for message_id in ids) if isinstance(ids, list) else ()
