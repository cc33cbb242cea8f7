"""When the store was last checked, and when damage was last found. A damaged page ends the broker instead."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

import apsw

from qtasks.broker.store.verbs.rows import fetch

_NOTE: Final = (
    "INSERT INTO store_checks (what, time_ms, damaged_ms, damaged) VALUES (?1, ?2, iif(?3, ?2, NULL), ?3)"
    " ON CONFLICT (what) DO UPDATE SET time_ms = ?2, damaged_ms = iif(?3, ?2, damaged_ms),"
    " damaged = iif(?3, ?3, damaged)"
)


class Checked(StrEnum):
    """What a check reads."""

    PAGES = "pages"
    MESSAGES = "messages"


class StoreCheck(NamedTuple):
    """The last check of one kind. Times are the broker's, in Unix milliseconds."""

    time_ms: int
    damaged_ms: int | None
    """When damage was last found; None: never."""
    damaged: int
    """How many messages were damaged then."""


def note(db: apsw.Connection, what: Checked, damaged: int, *, now_ms: int) -> None:
    """Note that a check has ended which found so many messages damaged."""
    db.execute(_NOTE, (what.value, now_ms, damaged))


def last(db: apsw.Connection) -> dict[str, StoreCheck]:
    """The last check of each kind."""
    rows = fetch(db, "SELECT what, time_ms, damaged_ms, damaged FROM store_checks")
    return {what: StoreCheck._make(row) for what, *row in rows}
