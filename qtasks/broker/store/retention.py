"""Removing what is finished and old, in batches small enough not to be noticed."""

from __future__ import annotations

from typing import Final, cast

import apsw

from qtasks.broker.core.rules import Stage
from qtasks.broker.core.values import Retention

BATCH: Final = 100
"""Messages removed in one transaction at most: a few milliseconds."""
_FOREVER_MS: Final = 2**62
_IN_TURN: Final = (Stage.DELIVERED, Stage.CANCELED, Stage.FAILED)


def prune(db: apsw.Connection, retention: Retention, *, now_ms: int, limit: int = BATCH) -> int:
    """Remove up to `limit` finished messages that are too old or too many; how many there were."""
    doomed: list[int] = []
    for stage in _IN_TURN:
        age_ms = retention.failed_ms if stage is Stage.FAILED else retention.delivered_ms
        doomed += _oldest(db, stage, limit - len(doomed), before_ms=now_ms - age_ms)
    if not doomed and retention.max_bytes is not None and used_bytes(db) > retention.max_bytes:
        doomed = next(filter(None, (_oldest(db, stage, limit) for stage in _IN_TURN)), [])
    for seq in doomed:
        for table in ("log", "bodies", "labels", "dead_letters", "messages"):
            db.execute(f"DELETE FROM {table} WHERE seq = ?", (seq,))
    return len(doomed)


def forget(db: apsw.Connection, *, now_ms: int, limit: int = BATCH) -> int:
    """Remove up to `limit` deduplication keys whose window has ended; how many there were."""
    found = db.execute(
        "DELETE FROM deduplication WHERE (account, key) IN"
        " (SELECT account, key FROM deduplication WHERE expires_ms <= ? ORDER BY expires_ms LIMIT ?) RETURNING 1",
        (now_ms, limit),
    )
    return len(found.fetchall())


def used_bytes(db: apsw.Connection) -> int:
    """Bytes of the database that hold something; what was freed is used again before the file grows."""
    pages = db.pragma("page_count") - db.pragma("freelist_count")
    return cast("int", pages * db.pragma("page_size"))


def _oldest(db: apsw.Connection, stage: Stage, limit: int, *, before_ms: int | None = None) -> list[int]:
    found = db.execute(
        # One that holds a slot of its queue waits for its callbacks.
        "SELECT seq FROM messages WHERE stage = ? AND finished_ms IS NOT NULL AND finished_ms < ? AND slot = 0"
        " ORDER BY finished_ms LIMIT ?",
        (stage.value, _FOREVER_MS if before_ms is None else before_ms, limit),
    )
    return [row[0] for row in found]
