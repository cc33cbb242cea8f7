"""What is stored of the broker's own time: where it stood, its offset, and its leaps (`steady_clock` explains it)."""

from __future__ import annotations

from typing import Final, cast

import apsw

from qtasks.broker.core.retention_age import Leap, cutoff_ms
from qtasks.broker.core.rules import Stage
from qtasks.broker.core.values import DAY_MS
from qtasks.broker.steady_clock import ClockMark, SteadyClock
from qtasks.broker.store.verbs.rows import change, fetch
from qtasks.clock import Clock

BATCH: Final = 500
"""Messages that one transaction moves after the wall clock was set."""
_LEAPS_KEPT: Final = 50
_LATEST_MS: Final = 2**43
"""The year 2248: a stored time that is later is damaged."""

_MOVED: Final = (
    "SELECT seq FROM messages"
    f" WHERE not_before_s IS NOT NULL AND stage = {Stage.DUE} AND claim_token = 0"
    " AND due_ms <> not_before_s * 1000 - ?2 AND max(due_ms, not_before_s * 1000 - ?2) > ?1 LIMIT ?3"
)
"""Uses the index ``messages_at_wall_time``."""
_MOVE: Final = "UPDATE messages SET due_ms = max(?, not_before_s * 1000 - ?) WHERE seq = ?"


def resume(db: apsw.Connection, machine: Clock) -> SteadyClock:
    """The broker's clock, which goes on where the store's last process stood. Called once, before all else."""
    mark = _mark(db)
    clock = SteadyClock(machine, mark)
    now_ms, offset_ms = clock.now_ms(), clock.offset_ms()
    if mark is not None and now_ms - mark.high_ms > DAY_MS:
        db.execute("INSERT OR REPLACE INTO clock_leaps (from_ms, to_ms) VALUES (?, ?)", (mark.high_ms, now_ms))
        db.execute(
            "DELETE FROM clock_leaps WHERE from_ms NOT IN"
            " (SELECT from_ms FROM clock_leaps ORDER BY from_ms DESC LIMIT ?)",
            (_LEAPS_KEPT,),
        )
    note(db, now_ms=now_ms, offset_ms=offset_ms)
    return clock


def note(db: apsw.Connection, *, now_ms: int, offset_ms: int) -> None:
    """Store the broker's time. Messages that wait for a wall time are due by the new offset."""
    if offset_ms != stored_offset_ms(db):
        while move_to_wall_time(db, now_ms=now_ms, offset_ms=offset_ms):
            pass
    db.execute("INSERT OR REPLACE INTO clock (only_row, time_ms, offset_ms) VALUES (1, ?, ?)", (now_ms, offset_ms))


def move_to_wall_time(db: apsw.Connection, *, now_ms: int, offset_ms: int, limit: int = BATCH) -> int:
    """Compute again when up to `limit` messages that wait for a wall time are due; return how many changed."""
    moved = fetch(db, _MOVED, (now_ms, offset_ms, limit))
    return sum(change(db, _MOVE, now_ms, offset_ms, seq) for (seq,) in moved)


def stored_offset_ms(db: apsw.Connection) -> int:
    """What to add to a time of the store for the wall time, in milliseconds."""
    return cast("int | None", db.execute("SELECT offset_ms FROM clock").get) or 0


def retention_cutoff_ms(db: apsw.Connection, *, now_ms: int, age_ms: int) -> int:
    """The time before which something ended that has been kept for `age_ms`. A leap of the clock counts as one day."""
    leaps = fetch(db, "SELECT from_ms, to_ms FROM clock_leaps WHERE from_ms < ? ORDER BY from_ms DESC", (now_ms,))
    return cutoff_ms(now_ms, age_ms, [Leap(*leap) for leap in leaps])


def _mark(db: apsw.Connection) -> ClockMark | None:
    """Where the time stood: as stored about once a minute, or as the newest log entry shows. None for a new store.

    A log entry far behind the stored time is damaged, and so is a time behind `_LATEST_MS`.
    """
    newest_ms = cast("int | None", db.execute("SELECT time_ms FROM log ORDER BY n DESC LIMIT 1").get)
    row = db.execute("SELECT time_ms, offset_ms FROM clock WHERE time_ms < ?", (_LATEST_MS,)).fetchone()
    if row is not None:
        return ClockMark(max(row[0], min(newest_ms or 0, row[0] + DAY_MS)), row[1])
    return None if newest_ms is None or newest_ms >= _LATEST_MS else ClockMark(newest_ms)
