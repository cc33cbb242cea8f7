"""Queues: create, change, pause, delete, show (docs/protocol.md 2.6, 5.6)."""

from __future__ import annotations

from typing import Any, Final

import apsw

from qtasks.broker.core.operator_changes import OperatorChange
from qtasks.broker.core.rules import Stage
from qtasks.broker.core.values import Cancelled, QueueState
from qtasks.broker.store.verbs import admission, pauses
from qtasks.broker.store.verbs.cancel import cancel_one
from qtasks.broker.store.verbs.rows import change, fetch
from qtasks.protocol.messages import Message

_LAG: Final = (
    "(SELECT count(*) FROM messages m"
    f" WHERE m.account = q.account AND m.queue = q.name AND m.stage = {Stage.QUEUED} AND m.slot = 0)"
    " + (SELECT count(*) FROM messages m"
    " WHERE m.account = q.account AND m.queue = q.name AND m.slot = 1 AND m.finished_ms IS NULL)"
)
_SELECT: Final = f"SELECT q.name, q.parallelism, q.paused, q.created_ms, q.updated_ms, {_LAG} FROM queues q"


def upsert_queue(
    db: apsw.Connection,
    account: int,
    name: str,
    *,
    parallelism: int | None,
    paused: bool | None,
    now_ms: int,
    cause: OperatorChange | None = None,
) -> None:
    """Create or change a queue. None keeps the present value; a new queue has parallelism 1 and is not paused."""
    admission.ensure_queue(db, account, name, now_ms)
    db.execute("UPDATE queues SET by_enqueue = 0 WHERE account = ? AND name = ? AND by_enqueue = 1", (account, name))
    if parallelism is not None:
        db.execute(
            "UPDATE queues SET parallelism = ?, updated_ms = ? WHERE account = ? AND name = ? AND parallelism != ?",
            (parallelism, now_ms, account, name, parallelism),
        )
        admission.withdraw_slots(db, account, name)
        admission.fill_slots(db, account, name)
    if paused is not None:
        pause_queue(db, account, name, paused=paused, now_ms=now_ms, cause=cause)


def pause_queue(
    db: apsw.Connection, account: int, name: str, *, paused: bool, now_ms: int, cause: OperatorChange | None = None
) -> bool:
    """Pause or resume a queue because of `cause`; False if it does not exist. Idempotent."""
    was_paused = db.execute("SELECT paused FROM queues WHERE account = ? AND name = ?", (account, name)).get
    if was_paused is None:
        return False
    if bool(was_paused) is not paused:
        db.execute(
            "UPDATE queues SET paused = ?, by_enqueue = 0, updated_ms = ? WHERE account = ? AND name = ?",
            (int(paused), now_ms, account, name),
        )
        if paused:
            admission.suspend_queue(db, account, name)
        else:
            admission.resume_queue(db, account, name)
    pauses.note(db, account, "queue", name, paused=paused, cause=cause)
    return True


def drop_queue(db: apsw.Connection, account: int, name: str, *, limit: int, now_ms: int) -> Cancelled:
    """One slice of deleting a queue: cancel up to `limit` of its messages. It is deleted once no message is left.

    No message starts meanwhile. Attempts in flight may finish, and are not repeated (docs/compatibility.md A20).
    """
    pause_queue(db, account, name, paused=True, now_ms=now_ms)
    messages = fetch(
        db,
        "SELECT seq FROM messages WHERE account = ? AND queue = ? AND slot = 1 AND finished_ms IS NULL"
        " AND cancel_requested = 0 LIMIT ?",
        (account, name, limit),
    )
    messages += fetch(
        db,
        f"SELECT seq FROM messages WHERE account = ? AND queue = ? AND stage = {Stage.QUEUED} AND slot = 0 LIMIT ?",
        (account, name, limit - len(messages)),
    )
    created: list[Message] = []
    for (seq,) in messages:
        created += cancel_one(db, account, seq, now_ms=now_ms)
    if len(messages) == limit:
        return Cancelled(limit, tuple(created), messages[-1][0])
    # Attempts in flight keep no slot: a new queue of the same name starts empty.
    holders = "SELECT seq FROM messages WHERE account = ? AND queue = ? AND slot = 1"
    for (seq,) in fetch(db, holders, (account, name)):
        change(db, "UPDATE messages SET slot = 0 WHERE seq = ?", seq)
    db.execute("DELETE FROM queues WHERE account = ? AND name = ?", (account, name))
    pauses.forget(db, account, "queue", name)
    return Cancelled(len(messages), tuple(created))


def queue(db: apsw.Connection, account: int, name: str) -> QueueState | None:
    """A queue, or None. Its lag counts messages that are not finished, including those in flight."""
    row = db.execute(f"{_SELECT} WHERE q.account = ? AND q.name = ?", (account, name)).get
    return None if row is None else _queue(db, account, row)


def queues(db: apsw.Connection, account: int) -> list[QueueState]:
    """All queues by name."""
    return [_queue(db, account, row) for row in fetch(db, f"{_SELECT} WHERE q.account = ? ORDER BY q.name", (account,))]


def _queue(db: apsw.Connection, account: int, row: tuple[Any, ...]) -> QueueState:
    name, parallelism, paused, created_ms, updated_ms, lag = row
    pause = pauses.pause_of(db, account, "queue", name) if paused else None
    return QueueState(name, parallelism, bool(paused), created_ms, updated_ms, lag, pause)
