"""The end of an attempt: what it changes in its message, the callbacks that report it, and recovery after a crash."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Final

import apsw
import orjson

from qtasks.broker.core import lots
from qtasks.broker.core.interruptions import CRASHED_FROM_CLAIMS, STOPPED, Sign, has_dispatcher
from qtasks.broker.core.message_builder import callbacks_of_attempt
from qtasks.broker.core.rules import FINAL, TRANSITIONS, Stage, Trigger
from qtasks.broker.core.values import Publication, Recovery, Settled, Settlement
from qtasks.broker.ports import Failure
from qtasks.broker.store.verbs import admission, broker_time, sums
from qtasks.broker.store.verbs.accept import insert
from qtasks.broker.store.verbs.damage import quarantine
from qtasks.broker.store.verbs.end_callbacks import report_end, report_end_of
from qtasks.broker.store.verbs.log_entries import (
    add_dead_letter,
    append_delivered,
    append_end,
    append_log,
    change_stage,
    shortened,
)
from qtasks.broker.store.verbs.parking import parked, prefixes
from qtasks.broker.store.verbs.rows import change, fetch, write_each
from qtasks.protocol import wire
from qtasks.protocol.messages import Message, Response, State

_CHANGES: Final = sums.changes(
    stage="?1",
    due_ms="coalesce(?2, due_ms)",
    retried="retried + ?3",
    finished_ms="?4",
    place="iif(?3, NULL, place)",
    open_claims="0",
)
_END_ATTEMPT: Final = (
    f"UPDATE messages SET {_CHANGES} WHERE seq = ?5 AND stage = {Stage.ACTIVE} AND claim_token = ?6"
    " RETURNING slot, parent, quiet"
)
# Without RETURNING, which would take longer than the rest of the statement.
_DELIVER: Final = (
    f"UPDATE messages SET {sums.changes(stage=str(Stage.DELIVERED.value), finished_ms='?1', open_claims='0')}"
    f" WHERE seq = ?2 AND stage = {Stage.ACTIVE} AND claim_token = ?3"
)
_NOT_LOGGED: Final = (
    "SELECT seq, claim_token FROM messages m WHERE seq IN (SELECT value FROM json_each(?))"
    f" AND stage = {Stage.DELIVERED}"
    f" AND NOT EXISTS (SELECT 1 FROM log l WHERE l.seq = m.seq AND l.state = '{State.DELIVERED}')"
)
"""Those of the messages, as a JSON list, that `_DELIVER` has ended in this transaction."""
_DELIVERED: Final = Settled(State.DELIVERED)
_ENDS: Final = (State.DELIVERED, State.ERROR)
"""The entries that tell how an attempt ended."""
_HAND_BACK: Final = f"UPDATE messages SET {sums.changes(open_claims='open_claims - 1')} WHERE seq = ?"
_NOTE_INTERRUPTION: Final = (
    "UPDATE messages SET lot = ?, interrupted_since_ms = ?, cuts = ?, noted_ms = iif(?, noted_ms, ?) WHERE seq = ?"
)


def settle(
    db: apsw.Connection, settlement: Settlement, *, now_ms: int, lacks_room: Callable[[], bool] = lambda: False
) -> Settled | None:
    """Record the end of an attempt: log entries, retry or dead letter, callbacks, and the places that become free.

    None, and nothing written, if the claim's token is not the message's newest one. Also None if the message has been
    damaged meanwhile: then it is set aside. While the disk `lacks_room`, a long answer is cut, so that the room is
    enough for all messages to end; callbacks carry all of it.
    """
    if is_plain(settlement) and _deliver(db, (settlement,), now_ms):
        return _DELIVERED
    return _end(db, settlement, now_ms, lacks_room)


def _end(db: apsw.Connection, settlement: Settlement, now_ms: int, lacks_room: Callable[[], bool]) -> Settled | None:
    claim, evaluation, message = settlement.claim, settlement.evaluation, settlement.claim.message
    trigger = evaluation.trigger
    follows = trigger in (Trigger.RETRY, Trigger.INTERRUPT)
    if follows and _cancel_requested(db, claim.seq):
        trigger, follows = Trigger.STOP, False
    transition = TRANSITIONS[Stage.ACTIVE, trigger]
    retries = trigger is Trigger.RETRY
    changes = (transition.to.value, evaluation.due_ms if follows else None, int(retries), None if follows else now_ms)
    row = _end_attempt(db, (*changes, claim.seq, claim.token))
    if row is None:
        quarantine.quarantine(db, (claim.seq,), now_ms=now_ms)
        return None
    slot, parent, was_quiet = row
    is_quiet = bool(was_quiet) and trigger is Trigger.INTERRUPT
    probe_ms = _note_sign(db, settlement, now_ms)
    next_ms = (evaluation.due_ms or probe_ms or now_ms) if follows else None
    if follows:
        _note_interruption(db, settlement, is_quiet=is_quiet, now_ms=now_ms)
    answer = settlement.outcome
    if isinstance(answer, Response) and lacks_room():
        answer = shortened(answer)
    if not is_quiet:
        states = (State.ACTIVE, *transition.log) if was_quiet else transition.log
        _append_log(db, settlement, answer, states, next_ms, now_ms)
    dead_letter_id = None
    if transition.to is Stage.FAILED:
        error = evaluation.error or ""
        dead_letter_id = add_dead_letter(db, claim.seq, message.account, now_ms, error, answer)
    callbacks: tuple[Message, ...] = ()
    if trigger not in (Trigger.STOP, Trigger.INTERRUPT):
        callbacks = _insert_callbacks(db, settlement, dead_letter_id, now_ms)
    if transition.to in (Stage.FAILED, Stage.CANCELED):
        callbacks += report_end(
            db, message, transition.log[-1], settlement.outcome, dead_letter_id=dead_letter_id, now_ms=now_ms
        )
    stage = transition.to
    if trigger is Trigger.INTERRUPT:
        stage = _wait_again(db, settlement, stage, now_ms)
    _release_places(db, claim.seq, message, stage, bool(slot), parent, now_ms)
    return Settled(transition.log[-1], callbacks, next_ms, is_quiet)


def settle_all(
    db: apsw.Connection,
    settlements: Sequence[Settlement],
    *,
    now_ms: int,
    lacks_room: Callable[[], bool] = lambda: False,
) -> list[Settled | None]:
    """Record the ends of several attempts in one transaction, in their order; see `settle`.

    Neighbours that went well, and whose end changes nothing else, are written together.
    """
    results: list[Settled | None] = []
    for are_plain, run in itertools.groupby(settlements, key=is_plain):
        ended = [*run]
        delivered = _deliver(db, ended, now_ms) if are_plain else set()
        for settlement in ended:
            key = settlement.claim.seq, settlement.claim.token
            if key in delivered:
                delivered.remove(key)  # a second end of the same attempt has come too late
                results.append(_DELIVERED)
            else:
                results.append(_end(db, settlement, now_ms, lacks_room))
    return results


def is_plain(settlement: Settlement) -> bool:
    """True if an attempt went well, and nothing but its message and its log entry changes with that.

    So its end lets no other message start, apart from one that waits for its slot.
    """
    claim, evaluation = settlement.claim, settlement.evaluation
    return (
        evaluation.trigger is Trigger.SUCCEED
        and settlement.callback_ids is None
        and claim.row.queue is None
        and claim.flow_key is None
        and claim.parent is None
        and not claim.quiet
        and not _has_sign(settlement)
    )


def _deliver(db: apsw.Connection, settlements: Sequence[Settlement], now_ms: int) -> set[tuple[int, int]]:
    """End the messages of plain settlements; return `seq` and token of those whose token is the newest one.

    It stops before a message that is damaged: `_end` looks at that one, and at those that follow.
    """
    ends = {
        (settlement.claim.seq, settlement.claim.token): (settlement.claim.row.account, settlement.timing)
        for settlement in settlements
    }
    changes_before = db.total_changes()
    with contextlib.suppress(apsw.ConstraintError):  # a value that no constraint allows
        write_each(db, _DELIVER, [(now_ms, seq, token) for seq, token in ends])
    if db.total_changes() - changes_before < len(ends):
        seqs = orjson.dumps([seq for seq, _ in ends]).decode()
        delivered = {(row[0], row[1]) for row in fetch(db, _NOT_LOGGED, (seqs,))}
        ends = {key: end for key, end in ends.items() if key in delivered}
    append_delivered(db, ((seq, *end) for (seq, _), end in ends.items()), now_ms)
    return {*ends}


def _end_attempt(db: apsw.Connection, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Run `_END_ATTEMPT`; None if the claim is not the newest one, or if its message is damaged."""
    try:
        return db.execute(_END_ATTEMPT, values).fetchone()
    except apsw.ConstraintError:  # a value that no constraint allows
        return None


def _cancel_requested(db: apsw.Connection, seq: int) -> bool:
    return bool(db.execute("SELECT cancel_requested FROM messages WHERE seq = ?", (seq,)).get)


def _note_sign(db: apsw.Connection, settlement: Settlement, now_ms: int) -> int | None:
    """Store what the outcome says about the URL prefix. Return when its next probe may start; None if it is not down.

    An answer to an attempt that began before the prefix went down does not end that: it may be the last of a process
    that takes no more.
    """
    claim, evaluation, situation = settlement.claim, settlement.evaluation, settlement.claim.situation
    if (prefix := claim.prefix) is None or not _has_sign(settlement):
        return None
    if evaluation.sign is Sign.REFUSES:
        is_probe = situation.is_probe and not evaluation.is_expired
        return prefixes.note_refusal(db, prefix, is_probe=is_probe, now_ms=now_ms)
    if not situation.has_dispatcher and has_dispatcher(settlement.outcome):
        prefixes.note_dispatcher(db, prefix, now_ms=now_ms)
    if situation.is_probe:
        prefixes.note_answer(db, prefix)
    return None


def _has_sign(settlement: Settlement) -> bool:
    """True if the outcome says something new about the URL prefix."""
    claim, sign, situation = settlement.claim, settlement.evaluation.sign, settlement.claim.situation
    if claim.prefix is None or sign is Sign.NONE:
        return False
    return (
        sign is Sign.REFUSES
        or situation.is_probe
        or (not situation.has_dispatcher and has_dispatcher(settlement.outcome))
    )


def _note_interruption(db: apsw.Connection, settlement: Settlement, *, is_quiet: bool, now_ms: int) -> None:
    """Store how often and since when the message has been interrupted, and the lot that follows from it."""
    claim, evaluation = settlement.claim, settlement.evaluation
    noted_ms = now_ms if evaluation.trigger is Trigger.INTERRUPT else None
    db.execute(
        _NOTE_INTERRUPTION, (_next_lot(settlement), evaluation.since_ms, evaluation.cuts, is_quiet, noted_ms, claim.seq)
    )


def _next_lot(settlement: Settlement) -> str:
    claim, evaluation = settlement.claim, settlement.evaluation
    return lots.lot_of(claim.message, claim.host, cuts=evaluation.cuts, is_allowed=not evaluation.is_expired)


def _wait_again(db: apsw.Connection, settlement: Settlement, stage: Stage, now_ms: int) -> Stage:
    """Put a message whose attempt did not count where it waits for the next one; return its stage.

    If its prefix refuses, it is parked at once: so the first message of the lot is the next probe.
    """
    seq, evaluation, message = settlement.claim.seq, settlement.evaluation, settlement.claim.message
    flow = message.options.flow_control
    flow_key = None if flow is None else flow.key
    if flow_key is not None and (evaluation.due_ms or 0) > now_ms:
        db.execute("UPDATE messages SET place = ? WHERE seq = ?", (admission.FRONT, seq))
        flow_key = None  # it joins the line when it is due
    waits = admission.resume_place(db, seq, stage, account=message.account, queue=message.queue, flow_key=flow_key)
    if waits is stage and evaluation.sign is Sign.REFUSES:
        change_stage(db, seq, stage, Trigger.PARK)
        parked.of(db).add(_next_lot(settlement))
        return TRANSITIONS[stage, Trigger.PARK].to
    return waits


def _append_log(
    db: apsw.Connection,
    settlement: Settlement,
    answer: Response | Failure,
    states: tuple[State, ...],
    next_ms: int | None,
    now_ms: int,
) -> None:
    claim, error = settlement.claim, settlement.evaluation.error
    response = answer if isinstance(answer, Response) else None
    for state in states:
        if state in _ENDS:
            append_end(
                db,
                claim.seq,
                claim.message.account,
                now_ms,
                state,
                error=error,
                timing=settlement.timing,
                response=response if state is State.ERROR else None,
            )
        else:
            append_log(
                db,
                claim.seq,
                claim.message.account,
                now_ms,
                state,
                error=error if state is State.FAILED else None,
                next_ms=next_ms if state is State.RETRY else None,
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
        offset_ms=broker_time.stored_offset_ms(db),
    )
    publications = [Publication(message, wire.host_of(message.url)) for message in callbacks]
    insert(db, publications, now_ms=now_ms, parent=claim.seq)
    if claim.message.queue is not None:
        change(
            db,
            "UPDATE messages SET open_callbacks = open_callbacks + ? WHERE seq = ? AND slot = 1",
            len(callbacks),
            claim.seq,
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
    elif (
        stage is Stage.DUE
        and slot
        and message.queue is not None
        and admission.queue_is_paused(db, message.account, message.queue)
    ):
        change_stage(db, seq, stage, Trigger.QUEUE)


def recover(db: apsw.Connection, *, now_ms: int) -> Recovery:
    """Make the attempts due again that an earlier process left unfinished, with the same attempt number.

    Each takes its place again before all others: it still has its slot, and it goes to the front of the line of its
    flow-control key. Call this only if the earlier process is known to be dead, which the file lock proves.
    """
    active = fetch(db, f"SELECT seq FROM messages WHERE stage = {Stage.ACTIVE}")
    damaged = quarantine.quarantine(db, (seq for (seq,) in active), now_ms=now_ms)
    interrupted = fetch(
        db,
        "SELECT seq, account, cancel_requested, parent, flow_key, queue, quiet, open_claims, host FROM messages"
        f" WHERE stage = {Stage.ACTIVE}",
    )
    for seq, account, cancel_requested, parent, key, queue, quiet, open_claims, host in interrupted:
        transition = TRANSITIONS[Stage.ACTIVE, Trigger.STOP if cancel_requested else Trigger.INTERRUPT]
        final = transition.to in FINAL
        db.execute(
            "UPDATE messages SET stage = ?, claim_token = claim_token + 1, finished_ms = ?, noted_ms = NULL"
            " WHERE seq = ?",
            (transition.to.value, now_ms if final else None, seq),
        )
        for state in (State.ACTIVE, *transition.log) if quiet else transition.log:
            error = STOPPED if state is State.ERROR else None
            append_log(db, seq, account, now_ms, state, error=error, next_ms=now_ms if state is State.RETRY else None)
        if open_claims >= CRASHED_FROM_CLAIMS and key is None:  # the line of a key has an order that a lot would change
            db.execute("UPDATE messages SET lot = ? WHERE seq = ?", (lots.crashed_lot(host), seq))
        if final:
            report_end_of(db, seq, State.CANCELED, error=STOPPED, now_ms=now_ms)
            admission.release_slot(db, seq)
            if parent is not None:
                admission.callback_ended(db, parent)
        else:
            admission.resume_place(db, seq, transition.to, account=account, queue=queue, flow_key=key)
    for account, key in dict.fromkeys((row[1], row[4]) for row in interrupted if row[4] is not None):
        admission.refresh_key(db, account, key, now_ms)
    waiting = db.execute("SELECT count(*) FROM (SELECT 1 FROM messages WHERE finished_ms IS NULL LIMIT 100001)").get
    return Recovery(len(interrupted) + len(damaged), waiting)


def hand_back(db: apsw.Connection) -> None:
    """The broker stops in an orderly way: the attempts in flight do not show that a message crashes it."""
    for (seq,) in fetch(db, f"SELECT seq FROM messages WHERE stage = {Stage.ACTIVE} AND open_claims > 0"):
        change(db, _HAND_BACK, seq)
