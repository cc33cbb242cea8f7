"""Removes what the console does not show any more: old figures and failures, destinations without messages."""

from __future__ import annotations

from typing import Final, cast

import apsw

from qtasks.broker.core.values import DAY_MS
from qtasks.broker.store.verbs.insight.figures import ALL, EVER_MS, HOUR_MS, MINUTE_MS
from qtasks.broker.store.verbs.rows import fetch

BATCH: Final = 200
"""Rows of each kind that one call removes or looks at."""
MINUTES_MS: Final = 4 * HOUR_MS
"""How long the minutes of each destination are kept."""
ALL_MINUTES_MS: Final = 26 * HOUR_MS
"""How long the minutes of all destinations together are kept."""
HOURS_MS: Final = 8 * DAY_MS
"""How long hours, and the figures of failures, are kept."""

_KEY: Final = "account, step_ms, destination, start_ms"
_OLD_SPANS: Final = (
    f"DELETE FROM insight_spans WHERE ({_KEY}) IN (SELECT {_KEY} FROM insight_spans"
    " WHERE step_ms = ?1 AND start_ms < ?2 AND (destination <> ?3 OR start_ms < ?4) ORDER BY start_ms LIMIT ?5)"
    " RETURNING 1"
)
_OLD_SLOTS: Final = (
    "DELETE FROM insight_failure_spans WHERE (failure, start_ms) IN (SELECT failure, start_ms"
    " FROM insight_failure_spans WHERE start_ms < ? ORDER BY start_ms LIMIT ?) RETURNING 1"
)
_OLD_FAILURES: Final = (
    "DELETE FROM insight_failures WHERE id IN (SELECT id FROM insight_failures f WHERE account = ? AND last_ms < ?"
    " AND NOT EXISTS (SELECT 1 FROM insight_failure_messages m WHERE m.failure = f.id)"
    " ORDER BY last_ms LIMIT ?) RETURNING 1"
)
_SOME_DESTINATIONS: Final = "SELECT id, account FROM insight_destinations WHERE id > ? ORDER BY id LIMIT ?"
_IS_USED: Final = (
    "SELECT EXISTS (SELECT 1 FROM insight_messages WHERE account = ?1 AND destination = ?2)"
    " OR EXISTS (SELECT 1 FROM insight_spans WHERE account = ?1 AND step_ms = ?3 AND destination = ?2)"
    " OR EXISTS (SELECT 1 FROM insight_spans WHERE account = ?1 AND step_ms = ?4 AND destination = ?2)"
    " OR EXISTS (SELECT 1 FROM insight_failures WHERE account = ?1 AND destination = ?2)"
    " OR EXISTS (SELECT 1 FROM insight_destinations WHERE id = ?2 AND url = '')"
)
_FORGET_EVER: Final = "DELETE FROM insight_spans WHERE account = ? AND step_ms = ? AND destination = ?"


def forget_old(db: apsw.Connection, *, now_ms: int) -> int:
    """Remove a batch of what is old; return how many rows, 0 if nothing is left to remove."""
    removed = _count(db, _OLD_SPANS, MINUTE_MS, now_ms - MINUTES_MS, ALL, now_ms - ALL_MINUTES_MS, BATCH)
    removed += _count(db, _OLD_SPANS, HOUR_MS, now_ms - HOURS_MS, -1, 0, BATCH)
    removed += _count(db, _OLD_SLOTS, now_ms - HOURS_MS, BATCH)
    for (account,) in fetch(db, "SELECT id FROM accounts"):
        removed += _count(db, _OLD_FAILURES, account, now_ms - HOURS_MS, BATCH)
    return removed


def forget_destinations(db: apsw.Connection, *, after: int) -> int | None:
    """Remove the unused ones of the next destinations, by number; return the last one, None if no more follow."""
    some = fetch(db, _SOME_DESTINATIONS, (after, BATCH))
    for number, account in some:
        if not db.execute(_IS_USED, (account, number, MINUTE_MS, HOUR_MS)).get:
            db.execute("DELETE FROM insight_counts WHERE account = ? AND destination = ?", (account, number))
            db.execute(_FORGET_EVER, (account, EVER_MS, number))
            db.execute("DELETE FROM insight_searchable WHERE destination = ?", (number,))
            db.execute("DELETE FROM insight_answers WHERE destination = ?", (number,))
            db.execute("DELETE FROM insight_destinations WHERE id = ?", (number,))
    return some[-1][0] if len(some) == BATCH else None


def _count(db: apsw.Connection, sql: str, *values: object) -> int:
    return len(cast("list[object]", db.execute(sql, values).fetchall()))
