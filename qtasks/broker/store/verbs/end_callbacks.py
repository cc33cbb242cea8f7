"""Stores end callbacks, in the transaction that ends their message (docs/protocol.md 4.4).

An end callback has no parent: a queue does not wait for it.
"""

from __future__ import annotations

import apsw

from qtasks.broker.core import message_rows
from qtasks.broker.core.message_builder import end_callback_of
from qtasks.broker.core.values import Publication
from qtasks.broker.ports import Failure
from qtasks.broker.store.verbs import broker_time, stored
from qtasks.broker.store.verbs.accept import insert
from qtasks.protocol import wire
from qtasks.protocol.messages import Message, Response, State


def report_end(
    db: apsw.Connection,
    message: Message,
    state: State,
    outcome: Response | Failure | None,
    *,
    error: str | None = None,
    dead_letter_id: str | None = None,
    now_ms: int,
) -> tuple[Message, ...]:
    """Store the end callback of `message`, and return it; an empty tuple if the message asks for none."""
    callback = end_callback_of(
        message,
        state,
        outcome,
        error=error,
        dead_letter_id=dead_letter_id,
        now_ms=now_ms,
        offset_ms=broker_time.stored_offset_ms(db),
    )
    if callback is None:
        return ()
    insert(db, [Publication(callback, wire.host_of(callback.url))], now_ms=now_ms)
    return (callback,)


def report_end_of(
    db: apsw.Connection, seq: int, state: State, *, error: str, dead_letter_id: str | None = None, now_ms: int
) -> tuple[Message, ...]:
    """As `report_end`, for the message `seq`, which ends outside an attempt; `error` says why.

    Its row may be damaged, because it was not compared with its checksum. Nothing is reported if it is not certain who
    the message belongs to, and whom its end is reported to.
    """
    if not db.execute("SELECT end_callback IS NOT NULL FROM messages WHERE seq = ?", (seq,)).get:
        return ()
    message = stored.identity(db, seq)
    if message is None:
        return ()
    ended = message_rows.shown_message(message.message, b"")
    return report_end(db, ended, state, None, error=error, dead_letter_id=dead_letter_id, now_ms=now_ms)
