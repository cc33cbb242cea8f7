"""Cancels messages: by id, or all that match some criteria."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import apsw

from qtasks.broker.core.rules import FINAL, TRANSITIONS, Stage, Trigger
from qtasks.broker.core.values import Cancelled, MessageCriteria
from qtasks.broker.store.verbs import admission, stored, sums
from qtasks.broker.store.verbs.damage import quarantine
from qtasks.broker.store.verbs.end_callbacks import report_end_of
from qtasks.broker.store.verbs.log_entries import append_log
from qtasks.broker.store.verbs.reads import filters
from qtasks.broker.store.verbs.reads.queries import seq_of
from qtasks.broker.store.verbs.rows import fetch
from qtasks.protocol.messages import Message, State

CANCELLED: Final = "the message was cancelled"

SLICE: Final = 2_000
"""Messages that one slice of a bulk cancel reads at most: some milliseconds."""

_STATE: Final = f"SELECT stage, {sums.STATE_IS_SOUND}, parent IS NOT NULL FROM messages m WHERE seq = ?"
_NOTICE: Final = f"UPDATE messages SET {sums.changes(quiet='0')} WHERE seq = ? AND quiet = 1 RETURNING 1"
"""After it, the log has an entry for the attempt in flight."""
_CANCEL: Final = "UPDATE messages SET stage = ?, cancel_requested = 1, finished_ms = ? WHERE seq = ? RETURNING parent"


def cancel(db: apsw.Connection, account: int, ids: Iterable[str], *, now_ms: int) -> Cancelled:
    """Cancel messages by message id or call id.

    A waiting message is cancelled at once. During an attempt the message is only marked: no retry follows the attempt.
    """
    count = 0
    created: list[Message] = []
    for message_or_call_id in dict.fromkeys(ids):
        seq = db.execute(
            "SELECT seq FROM messages WHERE seq = ? AND finished_ms IS NULL AND cancel_requested = 0",
            (seq_of(db, account, message_or_call_id),),
        ).get
        if seq is not None:
            created += cancel_one(db, account, seq, now_ms=now_ms)
            count += 1
    return Cancelled(count, tuple(created))


def cancel_where(
    db: apsw.Connection,
    account: int,
    criteria: MessageCriteria,
    *,
    after: int,
    newest: int,
    limit: int,
    now_ms: int,
) -> Cancelled:
    """Cancel up to `limit` messages that match, in order of acceptance: `seq` greater than `after`, up to `newest`.

    This is one slice of a bulk cancel and reads a bounded number of messages, so that other writes need not wait long.
    """
    until = db.execute(
        "SELECT seq FROM messages WHERE account = ? AND finished_ms IS NULL AND seq > ? AND seq <= ?"
        " ORDER BY seq LIMIT 1 OFFSET ?",
        (account, after, newest, SLICE),
    ).get
    where = filters.messages("m.account = ? AND m.finished_ms IS NULL AND m.cancel_requested = 0", account, criteria)
    where.between("m.seq", after + 1, newest if until is None else until)
    matches = fetch(db, f"SELECT m.seq FROM messages m{where} ORDER BY m.seq LIMIT ?", (*where.values, limit))
    created: list[Message] = []
    for (seq,) in matches:
        created += cancel_one(db, account, seq, now_ms=now_ms)
    return Cancelled(len(matches), tuple(created), matches[-1][0] if len(matches) == limit else until)


def cancel_one(db: apsw.Connection, account: int, seq: int, *, now_ms: int) -> tuple[Message, ...]:
    """Cancel a message that is neither finished nor marked as cancelled, and admit those that waited for it.

    Returns its end callback, if it has one and has ended. A message becomes a dead letter instead if its state is
    damaged, or if it is not certain whose callback it is.
    """
    # Its stage must be read here: cancelling another message may have just admitted this one.
    stage, has_sound_state, is_callback = db.execute(_STATE, (seq,)).get
    if not has_sound_state or (is_callback and stored.identity(db, seq) is None):
        quarantine.quarantine(db, (seq,), now_ms=now_ms)
        return ()
    transition = TRANSITIONS[stage, Trigger.CANCEL]
    final = transition.to in FINAL
    try:
        parent = db.execute(_CANCEL, (transition.to.value, now_ms if final else None, seq)).get
    except apsw.ConstraintError:  # a value that no constraint allows: it is damaged
        if not quarantine.quarantine(db, (seq,), now_ms=now_ms):
            raise
        return ()
    was_quiet = stage == Stage.ACTIVE and db.execute(_NOTICE, (seq,)).get
    for state in (State.ACTIVE, *transition.log) if was_quiet else transition.log:
        append_log(db, seq, account, now_ms, state)
    if not final:
        return ()
    created = report_end_of(db, seq, State.CANCELED, error=CANCELLED, now_ms=now_ms)
    admission.release_slot(db, seq)
    if parent is not None:
        admission.callback_ended(db, parent)
    return created
