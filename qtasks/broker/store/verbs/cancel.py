"""Cancels messages: by id, or all that match some criteria."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import apsw

from qtasks.broker.core.rules import FINAL, TRANSITIONS, Stage, Trigger
from qtasks.broker.core.values import Cancelled, MessageCriteria
from qtasks.broker.store.verbs import admission, filters
from qtasks.broker.store.verbs.log_entries import append_log
from qtasks.broker.store.verbs.rows import fetch

SLICE: Final = 2_000
"""Messages that one slice of a bulk cancel reads at most: some milliseconds."""


def cancel(db: apsw.Connection, account: int, message_ids: Iterable[str], *, now_ms: int) -> int:
    """Cancel messages by id; return how many were cancelled.

    A waiting message is cancelled at once. During an attempt the message is only marked: no retry follows the attempt.
    """
    cancelled = 0
    for message_id in dict.fromkeys(message_ids):
        seq = db.execute(
            "SELECT seq FROM messages WHERE account = ? AND id = ? AND finished_ms IS NULL AND cancel_requested = 0",
            (account, message_id),
        ).get
        if seq is not None:
            cancel_one(db, account, seq, now_ms=now_ms)
            cancelled += 1
    return cancelled


def cancel_where(
    db: apsw.Connection, account: int, criteria: MessageCriteria, *, after: int, limit: int, now_ms: int
) -> Cancelled:
    """Cancel up to `limit` messages that match, in order of acceptance and with a `seq` greater than `after`.

    This is one slice of a bulk cancel and reads a bounded number of messages, so that other writes need not wait long.
    """
    until = db.execute(
        "SELECT seq FROM messages WHERE account = ? AND finished_ms IS NULL AND seq > ? ORDER BY seq LIMIT 1 OFFSET ?",
        (account, after, SLICE),
    ).get
    where = filters.messages("m.account = ? AND m.finished_ms IS NULL AND m.cancel_requested = 0", account, criteria)
    where.between("m.seq", after + 1, until)
    matches = fetch(db, f"SELECT m.seq FROM messages m{where} ORDER BY m.seq LIMIT ?", (*where.values, limit))
    for (seq,) in matches:
        cancel_one(db, account, seq, now_ms=now_ms)
    return Cancelled(len(matches), matches[-1][0] if len(matches) == limit else until)


def cancel_one(db: apsw.Connection, account: int, seq: int, *, now_ms: int) -> None:
    """Cancel a message that is neither finished nor marked as cancelled, and admit those that waited for it."""
    # Its stage must be read here: cancelling another message may have just admitted this one.
    stage = Stage(db.execute("SELECT stage FROM messages WHERE seq = ?", (seq,)).get)
    transition = TRANSITIONS[stage, Trigger.CANCEL]
    final = transition.to in FINAL
    parent = db.execute(
        "UPDATE messages SET stage = ?, cancel_requested = 1, finished_ms = ? WHERE seq = ? RETURNING parent",
        (transition.to.value, now_ms if final else None, seq),
    ).get
    for state in transition.log:
        append_log(db, seq, account, now_ms, state)
    if final:
        admission.release_slot(db, seq)
        if parent is not None:
            admission.callback_ended(db, parent)
