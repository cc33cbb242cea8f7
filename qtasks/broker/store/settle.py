"""The end of an attempt: what it does to its message, and the callbacks that tell of it."""

from __future__ import annotations

from typing import Final

import apsw

from qtasks.broker.core.message_builder import callbacks_of_attempt
from qtasks.broker.core.rules import FINAL, TRANSITIONS, Stage, Trigger
from qtasks.broker.core.values import Publication, Recovery, Settled, Settlement
from qtasks.broker.store import admission
from qtasks.broker.store.accept import insert
from qtasks.broker.store.log_entries import bury, fetch, move, note
from qtasks.protocol import wire
from qtasks.protocol.messages import Message, Response, State

INTERRUPTED: Final = "the broker stopped during this attempt; it is made again"


def settle(db: apsw.Connection, settlement: Settlement, *, now_ms: int) -> Settled | None:
    """Record an attempt's end, guarded by the claim's token; None, and nothing written, when it is stale.

    Log entries, retry or dead letter, callbacks, and the places that became free are one transaction.
    """
    claim, evaluation, message = settlement.claim, settlement.evaluation, settlement.claim.message
    trigger = evaluation.trigger
    if trigger is Trigger.RETRY and _cancel_requested(db, claim.seq):
        trigger = Trigger.STOP
    end = TRANSITIONS[Stage.ACTIVE, trigger]
    retrying = trigger is Trigger.RETRY
    changed = db.execute(
        "UPDATE messages SET stage = ?, due_ms = coalesce(?, due_ms), retried = retried + ?, finished_ms = ?,"
        " place = CASE WHEN ? THEN NULL ELSE place END"
        " WHERE seq = ? AND stage = 3 AND claim_token = ? RETURNING slot, parent",
        (
            end.to.value,
            evaluation.due_ms if retrying else None,
            int(retrying),
            None if retrying else now_ms,
            retrying,
            claim.seq,
            claim.token,
        ),
    ).get
    if changed is None:
        return None
    _write_log(db, settlement, end.log, now_ms)
    dead_letter_id = None
    if end.to is Stage.FAILED:
        dead_letter_id = bury(db, claim.seq, message.account, now_ms, evaluation.error or "", settlement.outcome)
    created = () if trigger is Trigger.STOP else _call_back(db, settlement, dead_letter_id, now_ms)
    slot, parent = changed
    _make_room(db, claim.seq, message, end.to, bool(slot), parent, now_ms)
    return Settled(end.log[-1], created)


def _cancel_requested(db: apsw.Connection, seq: int) -> bool:
    return bool(db.execute("SELECT cancel_requested FROM messages WHERE seq = ?", (seq,)).get)


def _write_log(db: apsw.Connection, settlement: Settlement, states: tuple[State, ...], now_ms: int) -> None:
    claim, evaluation = settlement.claim, settlement.evaluation
    response = settlement.outcome if isinstance(settlement.outcome, Response) else None
    for state in states:
        note(
            db,
            claim.seq,
            claim.message.account,
            now_ms,
            state,
            error=evaluation.error if state in (State.ERROR, State.FAILED) else None,
            next_ms=evaluation.due_ms if state is State.RETRY else None,
            response=response if state is State.ERROR else None,
        )


def _call_back(
    db: apsw.Connection, settlement: Settlement, dead_letter_id: str | None, now_ms: int
) -> tuple[Message, ...]:
    """Store the callback of this attempt and, after the last one failed, the failure callback."""
    if settlement.callback_ids is None:
        return ()
    created = callbacks_of_attempt(
        settlement.claim.message,
        settlement.outcome,
        ids=settlement.callback_ids,
        dead_letter_id=dead_letter_id,
        now_ms=now_ms,
    )
    insert(
        db,
        [Publication(message, wire.host_of(message.url)) for message in created],
        now_ms=now_ms,
        parent=settlement.claim.seq,
    )
    if settlement.claim.message.queue is not None:
        db.execute(
            "UPDATE messages SET open_callbacks = open_callbacks + ? WHERE seq = ? AND slot = 1",
            (len(created), settlement.claim.seq),
        )
    return created


def _make_room(
    db: apsw.Connection, seq: int, message: Message, stage: Stage, slot: bool, parent: int | None, now_ms: int
) -> None:
    """Give on what the attempt held: its run of the flow-control key, its slot, its parent's patience."""
    if message.options.flow_control is not None:
        admission.refresh(db, message.account, message.options.flow_control.key, now_ms)
    if stage in FINAL:
        if slot:
            admission.release(db, seq)
        if parent is not None:
            admission.callback_ended(db, parent)
    elif slot and message.queue is not None and admission.is_paused(db, message.account, message.queue):
        move(db, seq, stage, Trigger.QUEUE)


def recover(db: apsw.Connection, *, now_ms: int) -> Recovery:
    """Return what an earlier process left unfinished: its attempts are due at once, with the same number.

    Each takes its place again before anybody else: its slot is still its own, and in the line of its flow-control
    key it stands at the front. Only a process that has proof of the earlier one's death (the lock) may call this.
    """
    interrupted = fetch(
        db, "SELECT seq, account, cancel_requested, parent, flow_key, queue FROM messages WHERE stage = 3"
    )
    unparked = TRANSITIONS[Stage.PARKED, Trigger.UNPARK].to.value
    db.execute("UPDATE messages SET stage = ? WHERE stage = 2", (unparked,))
    for seq, account, cancel_requested, parent, key, queue in interrupted:
        end = TRANSITIONS[Stage.ACTIVE, Trigger.STOP if cancel_requested else Trigger.INTERRUPT]
        final = end.to in FINAL
        db.execute(
            "UPDATE messages SET stage = ?, claim_token = claim_token + 1, finished_ms = ? WHERE seq = ?",
            (end.to.value, now_ms if final else None, seq),
        )
        for state in end.log:
            error = INTERRUPTED if state is State.ERROR else None
            note(db, seq, account, now_ms, state, error=error, next_ms=now_ms if state is State.RETRY else None)
        if final:
            admission.release(db, seq)
            if parent is not None:
                admission.callback_ended(db, parent)
        elif queue is not None and admission.is_paused(db, account, queue):
            move(db, seq, end.to, Trigger.QUEUE)
        elif key is not None:
            admission.join(db, seq, end.to, Trigger.HOLD, admission.FRONT)
    for account, key in dict.fromkeys((account, key) for _, account, _, _, key, _ in interrupted if key is not None):
        admission.refresh(db, account, key, now_ms)
    waiting = db.execute("SELECT count(*) FROM (SELECT 1 FROM messages WHERE finished_ms IS NULL LIMIT 100001)").get
    return Recovery(len(interrupted), waiting)
