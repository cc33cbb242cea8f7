"""How large the database was, noted once an hour and kept for a month."""

from __future__ import annotations

from typing import Final, NamedTuple

import apsw

from qtasks.broker.store.verbs.retention import free_bytes, used_bytes
from qtasks.broker.store.verbs.rows import fetch

HOUR_MS: Final = 3_600_000
KEPT_HOURS: Final = 30 * 24

_NOTE: Final = "INSERT OR REPLACE INTO store_sizes (hour, used_bytes, file_bytes) VALUES (?, ?, ?)"
_OLD: Final = "DELETE FROM store_sizes WHERE hour <= ? OR hour > ?"


class StoreSize(NamedTuple):
    """The size of the database in an hour, in bytes."""

    hour: int
    used: int
    file: int


def note(db: apsw.Connection, *, now_ms: int) -> None:
    """Note how large the database is in this hour. Rows that are too old, or of a later time, are removed."""
    hour = now_ms // HOUR_MS
    db.execute(_OLD, (hour - KEPT_HOURS, hour))
    db.execute(_NOTE, (hour, *current(db)))


def current(db: apsw.Connection) -> tuple[int, int]:
    """Bytes in use now, and bytes of the file."""
    used = used_bytes(db)
    return used, used + free_bytes(db)


def series(db: apsw.Connection) -> list[StoreSize]:
    """What was noted, the oldest first."""
    rows = fetch(db, "SELECT hour, used_bytes, file_bytes FROM store_sizes ORDER BY hour")
    return [StoreSize._make(row) for row in rows]
