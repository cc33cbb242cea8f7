"""Stores end callbacks, in the transaction that ends their message (docs/protocol.md 4.4).

An end callback has no parent: a queue does not wait for it.
"""

from __future__ import annotations

import apsw

from qtasks.broker.core.message_builder import end_callback_of
from qtasks.broker.core.values import Publication
from qtasks.broker.ports import Failure
from qtasks.broker.store.verbs import broker_time, rows
from qtasks.broker.store.verbs.accept import insert
from qtasks.broker.store.verbs.rows import MessageRow
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

    Its row may be damaged, because it was not compared with its checksum.
    """
    row = db.execute(
        f"SELECT {rows.MESSAGE_COLUMNS} FROM messages m WHERE m.seq = ? AND m.end_callback IS NOT NULL", (seq,)
    ).get
    if row is None:
        return ()
    message = _readable(MessageRow._make(row))
    try:
        return report_end(db, message, state, None, error=error, dead_letter_id=dead_letter_id, now_ms=now_ms)
    except wire.WireError:  # the URL of the callback is damaged
        return ()


def _readable(row: MessageRow) -> Message:
    """The message in a row, without its body; if they are damaged, also without its headers and options."""
    try:
        return rows.unpack_message(row, b"")
    except (ValueError, TypeError):
        return rows.unpack_message(row._replace(headers="[]", options=None), b"")
