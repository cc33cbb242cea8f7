"""Removes old finished messages in batches that take a few milliseconds. Also the write that tests the storage."""

from __future__ import annotations

from typing import Final, cast

import apsw

from qtasks.broker.core.rules import Stage
from qtasks.broker.core.values import Retention

BATCH: Final = 100
"""Rows that one transaction removes of each kind at most."""
_FOREVER_MS: Final = 2**62
_REMOVAL_ORDER: Final = (Stage.DELIVERED, Stage.CANCELED, Stage.FAILED)


def prune(db: apsw.Connection, retention: Retention, *, now_ms: int) -> int:
    """Remove one batch of messages and deduplication keys; return how many. 0: nothing is left to remove."""
    return prune_messages(db, retention, now_ms=now_ms) + prune_deduplication_keys(db, now_ms=now_ms)


def prune_messages(db: apsw.Connection, retention: Retention, *, now_ms: int, limit: int = BATCH) -> int:
    """Remove up to `limit` finished messages, too old or (if the database is too large) the oldest; return how many."""
    seqs: list[int] = []
    for stage in _REMOVAL_ORDER:
        age_ms = retention.failed_ms if stage is Stage.FAILED else retention.delivered_ms
        seqs += _oldest(db, stage, limit - len(seqs), before_ms=now_ms - age_ms)
    if not seqs and retention.max_bytes is not None and used_bytes(db) > retention.max_bytes:
        seqs = next(filter(None, (_oldest(db, stage, limit) for stage in _REMOVAL_ORDER)), [])
    for seq in seqs:
        for table in ("log", "bodies", "labels", "dead_letters", "messages"):
            db.execute(f"DELETE FROM {table} WHERE seq = ?", (seq,))
    return len(seqs)


def prune_deduplication_keys(db: apsw.Connection, *, now_ms: int, limit: int = BATCH) -> int:
    """Remove up to `limit` deduplication keys whose window has ended; return how many."""
    removed = db.execute(
        "DELETE FROM deduplication WHERE (account, key) IN"
        " (SELECT account, key FROM deduplication WHERE expires_ms <= ? ORDER BY expires_ms LIMIT ?) RETURNING 1",
        (now_ms, limit),
    )
    return len(removed.fetchall())


def used_bytes(db: apsw.Connection) -> int:
    """Bytes in use. The file may be larger: SQLite uses freed pages again before the file grows."""
    pages = db.pragma("page_count") - db.pragma("freelist_count")
    return cast("int", pages * db.pragma("page_size"))


def probe(db: apsw.Connection, *, now_ms: int) -> None:
    """Write the time: storage that accepts this accepts a message."""
    db.execute("INSERT OR REPLACE INTO probes (only_row, time_ms) VALUES (1, ?)", (now_ms,))


def _oldest(db: apsw.Connection, stage: Stage, limit: int, *, before_ms: int = _FOREVER_MS) -> list[int]:
    rows = db.execute(
        # A message that keeps a slot of its queue waits for its callbacks.
        "SELECT seq FROM messages WHERE stage = ? AND finished_ms IS NOT NULL AND finished_ms < ? AND slot = 0"
        " ORDER BY finished_ms LIMIT ?",
        (stage.value, before_ms, limit),
    )
    return [seq for (seq,) in rows]
