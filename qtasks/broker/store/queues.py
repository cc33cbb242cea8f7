"""Queues: made, changed, paused, deleted, looked at (docs/protocol.md 2.6, 5.6)."""

from __future__ import annotations

from typing import Any, Final

import apsw

from qtasks.broker.core.values import QueueState
from qtasks.broker.store import admission
from qtasks.broker.store.cancel import cancel_one
from qtasks.broker.store.log_entries import fetch

_LAG: Final = (
    "(SELECT count(*) FROM messages m WHERE m.account = q.account AND m.queue = q.name AND m.stage = 4 AND m.slot = 0)"
    " + (SELECT count(*) FROM messages m"
    " WHERE m.account = q.account AND m.queue = q.name AND m.slot = 1 AND m.finished_ms IS NULL)"
)
_SELECT: Final = f"SELECT q.name, q.parallelism, q.paused, q.created_ms, q.updated_ms, {_LAG} FROM queues q"


def upsert_queue(
    db: apsw.Connection, account: int, name: str, *, parallelism: int | None, paused: bool | None, now_ms: int
) -> None:
    """Make or change a queue; None keeps what is there (1 and running for a new one)."""
    admission.ensure_queue(db, account, name, now_ms)
    if parallelism is not None:
        db.execute(
            "UPDATE queues SET parallelism = ?, updated_ms = ? WHERE account = ? AND name = ? AND parallelism != ?",
            (parallelism, now_ms, account, name, parallelism),
        )
        admission.withdraw(db, account, name)
        admission.admit(db, account, name)
    if paused is not None:
        pause_queue(db, account, name, paused=paused, now_ms=now_ms)


def pause_queue(db: apsw.Connection, account: int, name: str, *, paused: bool, now_ms: int) -> bool:
    """Let nothing of the queue start, or let it go on with the oldest; False when there is no such queue."""
    found = db.execute("SELECT paused FROM queues WHERE account = ? AND name = ?", (account, name)).get
    if found is None:
        return False
    if bool(found) is not paused:
        db.execute(
            "UPDATE queues SET paused = ?, updated_ms = ? WHERE account = ? AND name = ?",
            (int(paused), now_ms, account, name),
        )
        if paused:
            admission.hold_queue(db, account, name)
        else:
            admission.resume_queue(db, account, name)
    return True


def drop_queue(db: apsw.Connection, account: int, name: str, *, limit: int, now_ms: int) -> bool:
    """Delete a queue and cancel what waits in it, at most `limit` messages a call; whether there is more to do.

    Nothing starts meanwhile. What runs may finish, and is not repeated (docs/compatibility.md A20).
    """
    pause_queue(db, account, name, paused=True, now_ms=now_ms)
    found = fetch(
        db,
        "SELECT seq FROM messages WHERE account = ? AND queue = ? AND slot = 1 AND finished_ms IS NULL"
        " AND cancel_requested = 0 LIMIT ?",
        (account, name, limit),
    )
    found += fetch(
        db,
        "SELECT seq FROM messages WHERE account = ? AND queue = ? AND stage = 4 AND slot = 0 LIMIT ?",
        (account, name, limit - len(found)),
    )
    for (seq,) in found:
        cancel_one(db, account, seq, now_ms=now_ms)
    if len(found) == limit:
        return True
    # What still runs belongs to no queue's order any more: one of the same name starts afresh.
    db.execute("UPDATE messages SET slot = 0 WHERE account = ? AND queue = ? AND slot = 1", (account, name))
    db.execute("DELETE FROM queues WHERE account = ? AND name = ?", (account, name))
    return False


def queue(db: apsw.Connection, account: int, name: str) -> QueueState | None:
    """A queue with its lag: messages that are not finished, the running one included."""
    row = db.execute(f"{_SELECT} WHERE q.account = ? AND q.name = ?", (account, name)).get
    return None if row is None else _queue(row)


def queues(db: apsw.Connection, account: int) -> list[QueueState]:
    """All queues by name."""
    return [_queue(row) for row in fetch(db, f"{_SELECT} WHERE q.account = ? ORDER BY q.name", (account,))]


def _queue(row: tuple[Any, ...]) -> QueueState:
    name, parallelism, paused, created_ms, updated_ms, lag = row
    return QueueState(name, parallelism, bool(paused), created_ms, updated_ms, lag)
