"""Taking messages back: one, many, by filter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import apsw

from qtasks.broker.core.rules import FINAL, TRANSITIONS, Stage, Trigger
from qtasks.broker.core.values import Cancelled, MessageCriteria
from qtasks.broker.store import admission, filters
from qtasks.broker.store.log_entries import fetch, note

SLICE: Final = 2_000
"""Messages that one slice of a bulk cancel looks at: some milliseconds."""


def cancel(db: apsw.Connection, account: int, message_ids: Iterable[str], *, now_ms: int) -> int:
    """Cancel messages by id: at once where they wait, at the end of the attempt where one is under way."""
    cancelled = 0
    for message_id in dict.fromkeys(message_ids):
        found = db.execute(
            "SELECT seq FROM messages WHERE account = ? AND id = ? AND finished_ms IS NULL AND cancel_requested = 0",
            (account, message_id),
        ).get
        if found is not None:
            cancel_one(db, account, found, now_ms=now_ms)
            cancelled += 1
    return cancelled


def cancel_where(
    db: apsw.Connection, account: int, which: MessageCriteria, *, after: int, limit: int, now_ms: int
) -> Cancelled:
    """Cancel up to `limit` messages that match, in order of acceptance from `after` on.

    One slice of a bulk cancel, which looks at a bounded number of messages: a long one must not keep the writer busy.
    """
    until = db.execute(
        "SELECT seq FROM messages WHERE account = ? AND finished_ms IS NULL AND seq > ? ORDER BY seq LIMIT 1 OFFSET ?",
        (account, after, SLICE),
    ).get
    where = filters.messages("m.account = ? AND m.finished_ms IS NULL AND m.cancel_requested = 0", account, which)
    where.between("m.seq", after + 1, until)
    found = fetch(db, f"SELECT m.seq FROM messages m{where} ORDER BY m.seq LIMIT ?", (*where.values, limit))
    for (seq,) in found:
        cancel_one(db, account, seq, now_ms=now_ms)
    return Cancelled(len(found), found[-1][0] if len(found) == limit else until)


def cancel_one(db: apsw.Connection, account: int, seq: int, *, now_ms: int) -> None:
    """Cancel a message that is neither finished nor asked to stop; whoever waited for it goes on."""
    # Its stage now: cancelling the one before it may have admitted it to its queue.
    stage = Stage(db.execute("SELECT stage FROM messages WHERE seq = ?", (seq,)).get)
    end = TRANSITIONS[stage, Trigger.CANCEL]
    final = end.to in FINAL
    parent = db.execute(
        "UPDATE messages SET stage = ?, cancel_requested = 1, finished_ms = ? WHERE seq = ? RETURNING parent",
        (end.to.value, now_ms if final else None, seq),
    ).get
    for state in end.log:
        note(db, seq, account, now_ms, state)
    if final:
        admission.release(db, seq)
        if parent is not None:
            admission.callback_ended(db, parent)
