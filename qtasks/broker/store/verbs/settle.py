"""The end of an attempt: what it changes in its message, the callbacks that report it, and recovery after a crash."""

from __future__ import annotations

from typing import Final

import apsw

from qtasks.broker.core.message_builder import callbacks_of_attempt
from qtasks.broker.core.rules import FINAL, TRANSITIONS, Stage, Trigger
from qtasks.broker.core.values import Publication, Recovery, Settled, Settlement
from qtasks.broker.store.verbs import admission
from qtasks.broker.store.verbs.accept import insert
from qtasks.broker.store.verbs.end_callbacks import report_end, report_end_of
from qtasks.broker.store.verbs.log_entries import add_dead_letter, append_log, change_stage
from qtasks.broker.store.verbs.rows import fetch
from qtasks.protocol import wire
from qtasks.protocol.messages import Message, Response, State

INTERRUPTED: Final = "the broker stopped during this attempt; it is made again"

_END_ATTEMPT: Final = (
    "UPDATE messages SET stage = ?, due_ms = coalesce(?, due_ms), retried = retried + ?, finished_ms = ?,"
    " place = CASE WHEN ? THEN NULL ELSE place END"
    f" WHERE seq = ? AND stage = {Stage.ACTIVE} AND claim_token = ? RETURNING slot, parent"
)


def settle(db: apsw.Connection, settlement: Settlement, *, now_ms: int) -> Settled | None:
    """Record the end of an attempt: log entries, retry or dead letter, callbacks, and the places that become free.

    None, and nothing written, if the claim's token is not the message's newest one.
    """
    claim, evaluation, message = settlement.claim, settlement.evaluation, settlement.claim.message
    trigger = evaluation.trigger
    if trigger is Trigger.RETRY and _cancel_requested(db, claim.seq):
        trigger = Trigger.STOP
    transition = TRANSITIONS[Stage.ACTIVE, trigger]
    retries = trigger is Trigger.RETRY
    row = db.execute(
        _END_ATTEMPT,
        (
            transition.to.value,
            evaluation.due_ms if retries else None,
            int(retries),
            None if retries else now_ms,
            retries,
            claim.seq,
            claim.token,
        ),
    ).get
    if row is None:
        return None
    slot, parent = row
    _append_log(db, settlement, transition.log, now_ms)
    dead_letter_id = None
    if transition.to is Stage.FAILED:
        error = evaluation.error or ""
        dead_letter_id = add_dead_letter(db, claim.seq, message.account, now_ms, error, settlement.outcome)
    callbacks = () if trigger is Trigger.STOP else _insert_callbacks(db, settlement, dead_letter_id, now_ms)
    if transition.to in (Stage.FAILED, Stage.CANCELED):
        callbacks += report_end(
            db, message, transition.log[-1], settlement.outcome, dead_letter_id=dead_letter_id, now_ms=now_ms
        )
    _release_places(db, claim.seq, message, transition.to, bool(slot), parent, now_ms)
    return Settled(transition.log[-1], callbacks)


def _cancel_requested(db: apsw.Connection, seq: int) -> bool:
    return bool(db.execute("SELECT cancel_requested FROM messages WHERE seq = ?", (seq,)).get)


def _append_log(db: apsw.Connection, settlement: Settlement, states: tuple[State, ...], now_ms: int) -> None:
    claim, evaluation = settlement.claim, settlement.evaluation
    response = settlement.outcome if isinstance(settlement.outcome, Response) else None
    for state in states:
        append_log(
            db,
            claim.seq,
            claim.message.account,
            now_ms,
            state,
            error=evaluation.error if state in (State.ERROR, State.FAILED) else None,
            next_ms=evaluation.due_ms if state is State.RETRY else None,
            response=response if state is State.ERROR else None,
        )


def _insert_callbacks(
    db: apsw.Connection, settlement: Settlement, dead_letter_id: str | None, now_ms: int
) -> tuple[Message, ...]:
    """Store the callback of this attempt and, after the last one failed, the failure callback."""
    if settlement.callback_ids is None:
        return ()
    claim = settlement.claim
    callbacks = callbacks_of_attempt(
        claim.message,
        settlement.outcome,
        ids=settlement.callback_ids,
        dead_letter_id=dead_letter_id,
        now_ms=now_ms,
    )
    publications = [Publication(message, wire.host_of(message.url)) for message in callbacks]
    insert(db, publications, now_ms=now_ms, parent=claim.seq)
    if claim.message.queue is not None:
        db.execute(
            "UPDATE messages SET open_callbacks = open_callbacks + ? WHERE seq = ? AND slot = 1",
            (len(callbacks), claim.seq),
        )
    return callbacks


def _release_places(
    db: apsw.Connection, seq: int, message: Message, stage: Stage, slot: bool, parent: int | None, now_ms: int
) -> None:
    """Release what the attempt occupied: its run of the flow-control key, its slot, its parent's slot."""
    if message.options.flow_control is not None:
        admission.refresh_key(db, message.account, message.options.flow_control.key, now_ms)
    if stage in FINAL:
        if slot:
            admission.release_slot(db, seq)
        if parent is not None:
            admission.callback_ended(db, parent)
    elif slot and message.queue is not None and admission.queue_is_paused(db, message.account, message.queue):
        change_stage(db, seq, stage, Trigger.QUEUE)


def recover(db: apsw.Connection, *, now_ms: int) -> Recovery:
    """Make the attempts due again that an earlier process left unfinished, with the same attempt number.

    Each takes its place again before all others: it still has its slot, and it goes to the front of the line of its
    flow-control key. Call this only if the earlier process is known to be dead, which the file lock proves.
    """
    interrupted = fetch(
        db,
        f"SELECT seq, account, cancel_requested, parent, flow_key, queue FROM messages WHERE stage = {Stage.ACTIVE}",
    )
    unparked = TRANSITIONS[Stage.PARKED, Trigger.UNPARK].to
    db.execute(f"UPDATE messages SET stage = {unparked} WHERE stage = {Stage.PARKED}")
    for seq, account, cancel_requested, parent, key, queue in interrupted:
        transition = TRANSITIONS[Stage.ACTIVE, Trigger.STOP if cancel_requested else Trigger.INTERRUPT]
        final = transition.to in FINAL
        db.execute(
            "UPDATE messages SET stage = ?, claim_token = claim_token + 1, finished_ms = ? WHERE seq = ?",
            (transition.to.value, now_ms if final else None, seq),
        )
        for state in transition.log:
            error = INTERRUPTED if state is State.ERROR else None
            append_log(db, seq, account, now_ms, state, error=error, next_ms=now_ms if state is State.RETRY else None)
        if final:
            report_end_of(db, seq, State.CANCELED, error=INTERRUPTED, now_ms=now_ms)
            admission.release_slot(db, seq)
            if parent is not None:
                admission.callback_ended(db, parent)
        elif queue is not None and admission.queue_is_paused(db, account, queue):
            change_stage(db, seq, transition.to, Trigger.QUEUE)
        elif key is not None:
            admission.join_line(db, seq, transition.to, Trigger.HOLD, admission.FRONT)
    for account, key in dict.fromkeys((account, key) for _, account, _, _, key, _ in interrupted if key is not None):
        admission.refresh_key(db, account, key, now_ms)
    waiting = db.execute("SELECT count(*) FROM (SELECT 1 FROM messages WHERE finished_ms IS NULL LIMIT 100001)").get
    return Recovery(len(interrupted), waiting)
