"""Since when queues, flow-control keys and schedules are paused, by whom, and why."""

from __future__ import annotations

from typing import Literal

import apsw

from qtasks.broker.core.operator_changes import OperatorChange
from qtasks.broker.store.verbs.rows import fetch, first
from qtasks.protocol.messages import PauseFacts

Kind = Literal["queue", "flow key", "schedule"]


def note(
    db: apsw.Connection, account: int, kind: Kind, name: str, *, paused: bool, cause: OperatorChange | None
) -> None:
    """Note that something was paused or resumed by `cause`; a pause of what is paused already changes the note."""
    if not paused:
        forget(db, account, kind, name)
    elif cause is not None:
        db.execute(
            "INSERT INTO pauses (account, kind, name, paused_ms, who, note) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET note = coalesce(excluded.note, note)",
            (account, kind, name, cause.now_ms, cause.actor.name, cause.note),
        )


def forget(db: apsw.Connection, account: int, kind: Kind, name: str) -> None:
    """Forget a pause: it has ended, or what was paused is deleted. Idempotent."""
    db.execute("DELETE FROM pauses WHERE account = ? AND kind = ? AND name = ?", (account, kind, name))


def pause_of(db: apsw.Connection, account: int, kind: Kind, name: str) -> PauseFacts | None:
    """What is known of a pause; None if nothing is, as for one of an earlier version."""
    row = first(
        db,
        "SELECT paused_ms, who, note FROM pauses WHERE account = ? AND kind = ? AND name = ?",
        (account, kind, name),
    )
    return None if row is None else PauseFacts._make(row)


def pauses_of(db: apsw.Connection, account: int, kind: Kind) -> dict[str, PauseFacts]:
    """What is known of the pauses of one kind, by the name of what is paused."""
    rows = fetch(db, "SELECT name, paused_ms, who, note FROM pauses WHERE account = ? AND kind = ?", (account, kind))
    return {name: PauseFacts(*facts) for name, *facts in rows}
