"""The status of a message: what has happened to it, and what it waits for."""

from __future__ import annotations

from typing import Final

import apsw

from qtasks.broker.core import lots
from qtasks.broker.core.rules import Stage
from qtasks.broker.core.values import MessageStatus
from qtasks.broker.store.verbs import rows, stored
from qtasks.broker.store.verbs.parking import prefixes
from qtasks.broker.store.verbs.reads import queries
from qtasks.broker.store.verbs.rows import fetch
from qtasks.broker.store.verbs.stored import StoredMessage
from qtasks.protocol.messages import Message, State

_LAST_STATE: Final = "SELECT state FROM log WHERE seq = ? ORDER BY n DESC LIMIT 1"
_LAST_ERROR: Final = (
    f"SELECT error FROM log WHERE seq = ? AND state IN ('{State.ERROR}', '{State.FAILED}') ORDER BY n DESC LIMIT 1"
)
_DEAD_LETTER: Final = "SELECT failed_ms || '-' || n FROM dead_letters WHERE seq = ?"


def message_status(db: apsw.Connection, account: int, message_or_call_id: str, *, now_ms: int) -> MessageStatus | None:
    """The status of the message that `queries.seq_of` finds, or None."""
    seq = queries.seq_of(db, account, message_or_call_id)
    if seq is None:
        return None
    kept = stored.one(db, seq)
    assert kept is not None, "the message exists"
    message, is_damaged = kept.unpacked(), kept.fault() is not None
    waits_for, next_ms = None, None
    if not is_damaged:
        waits_for = _obstacle(db, message, kept)
        if kept.stage == Stage.DUE and kept.due_ms > now_ms:
            waits_for, next_ms = "retry" if kept.claim_token else "delay", kept.due_ms
    last_error = rows.first(db, _LAST_ERROR, (seq,)) or (None,)
    return MessageStatus(
        message=message,
        state=rows.read_state(fetch(db, _LAST_STATE, (seq,))[0][0]),
        last_error=last_error[0] or (rows.DAMAGED if is_damaged else None),
        next_delivery_ms=next_ms,
        waits_for=waits_for,
        dead_letter_id=db.execute(_DEAD_LETTER, (seq,)).get,
    )


def _obstacle(db: apsw.Connection, message: Message, kept: StoredMessage) -> str | None:
    """What keeps a message from starting whose time has come."""
    flow = message.options.flow_control
    if kept.stage == Stage.QUEUED:
        paused = "SELECT paused FROM queues WHERE account = ? AND name = ?"
        return f"queue {message.queue}" + _if_paused(db, paused, message.account, message.queue)
    if kept.stage == Stage.HELD and flow is not None:
        paused = "SELECT paused FROM flow_keys WHERE account = ? AND key = ?"
        return f"flow-control key {flow.key}" + _if_paused(db, paused, message.account, flow.key)
    return _obstacle_of_lot(db, kept.lot) if kept.stage == Stage.PARKED else None


def _if_paused(db: apsw.Connection, query: str, account: int, name: str | None) -> str:
    return ", which is paused" if db.execute(query, (account, name)).get else ""


def _obstacle_of_lot(db: apsw.Connection, lot: str) -> str:
    _, prefix, is_alone, is_crashed = lots.parse(lot)
    if prefix is not None and prefixes.read(db, prefix).down_since_ms is not None:
        return "its host, which does not answer"
    return "its turn to run alone" if is_alone or is_crashed else "its host"
