"""Whether the storage takes writes."""

from __future__ import annotations

import apsw


def probe(db: apsw.Connection, *, now_ms: int) -> None:
    """Write the time: a storage that takes this takes a message."""
    db.execute("INSERT OR REPLACE INTO probes (only_row, time_ms) VALUES (1, ?)", (now_ms,))
