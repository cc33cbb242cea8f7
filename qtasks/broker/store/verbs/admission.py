"""Admission: which messages may start, by the slots of queues and the limits of flow-control keys.

How it works. A message that may not start now is in no index that a claim scans. It waits in one of two lines:

- **Queues.** A queue has as many slots as its parallelism. A message joins the end of the line (stage QUEUED) and
  is admitted (stage DUE, `slot` 1) when a slot is free. It keeps the slot through its retries and until its callbacks
  have ended. Then the first in the line is admitted, in the same transaction. Used slots are counted from the rows.
- **Flow-control keys.** A key admits an attempt while fewer than `parallelism` run and fewer than `rate` have started
  in the current window. The window is fixed: it begins with the first start and lasts one period. A message that is
  not admitted waits in the key's line (stage HELD). `ready_ms` of the key is the time at which the first of the line
  may start. It may be too early (then the claim finds out) but never too late. So a claim reads only the keys that are
  ready, and no line.

The order in a line is `place`, then `seq`. A message that joins later, after a delay or for a retry, joins the end. A
message whose attempt was cut off by a crash joins the front.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, cast

import apsw

from qtasks.broker.core.rules import TRANSITIONS, Stage, Trigger
from qtasks.broker.core.values import USE_NOTED_MS
from qtasks.broker.store.verbs.log_entries import CHANGE_STAGE, change_stage
from qtasks.broker.store.verbs.rows import change, fetch, first
from qtasks.protocol.messages import FlowControl

FRONT: Final = 0
"""The place of a message whose attempt was cut off by a crash: before all others."""


def join_line(db: apsw.Connection, seq: int, stage: Stage, trigger: Trigger, place: int | None) -> None:
    """Put a message into a line (QUEUE or HOLD), at its place, or at the end if `place` is None."""
    # The end: one more than the newest `seq`. Ties are broken by `seq`, and this message is older: so it stands behind
    # all that wait and before all that are accepted later.
    db.execute(
        "UPDATE messages SET stage = ?, place = coalesce(?, (SELECT max(seq) + 1 FROM messages)) WHERE seq = ?",
        (TRANSITIONS[stage, trigger].to.value, place, seq),
    )


def resume_place(
    db: apsw.Connection, seq: int, stage: Stage, *, account: int, queue: str | None, flow_key: str | None
) -> Stage:
    """Give a message whose attempt did not count its place again; return its stage.

    It still has its slot, and it goes to the front of the line of its flow-control key.
    """
    if queue is not None and queue_is_paused(db, account, queue):
        change_stage(db, seq, stage, Trigger.QUEUE)
        return TRANSITIONS[stage, Trigger.QUEUE].to
    if flow_key is not None:
        join_line(db, seq, stage, Trigger.HOLD, FRONT)
        return TRANSITIONS[stage, Trigger.HOLD].to
    return stage


# -- queues

_FIRST_QUEUED: Final = (
    f"SELECT seq FROM messages WHERE account = ? AND queue = ? AND stage = {Stage.QUEUED} AND slot = 0"
    " ORDER BY place, seq LIMIT ? OFFSET ?"
)
"""Uses the index ``messages_queued``."""


_ENSURE_QUEUE: Final = (
    "INSERT INTO queues (account, name, parallelism, paused, created_ms, updated_ms, used_ms, by_enqueue)"
    " VALUES (?1, ?2, 1, 0, ?3, ?3, ?3, 1) ON CONFLICT (account, name) DO UPDATE SET used_ms = excluded.used_ms"
    " WHERE excluded.used_ms > used_ms + ?4"
)


def ensure_queue(db: apsw.Connection, account: int, name: str, now_ms: int) -> None:
    """Create a queue that does not exist yet, with parallelism 1 (docs/protocol.md 2.3), or note its use."""
    db.execute(_ENSURE_QUEUE, (account, name, now_ms, USE_NOTED_MS))


def queue_is_paused(db: apsw.Connection, account: int, queue: str) -> bool:
    """True if no message of the queue may start now."""
    return bool(db.execute("SELECT paused FROM queues WHERE account = ? AND name = ?", (account, queue)).get)


def fill_slots(db: apsw.Connection, account: int, queue: str) -> int:
    """Give the free slots of a queue to the first messages of its line; return how many were admitted."""
    row = db.execute("SELECT parallelism, paused FROM queues WHERE account = ? AND name = ?", (account, queue)).get
    if row is None:
        return 0
    parallelism, paused = row
    if paused:
        return 0
    used = db.execute(
        "SELECT count(*) FROM messages WHERE account = ? AND queue = ? AND slot = 1", (account, queue)
    ).get
    if (free := parallelism - cast("int", used)) <= 0:
        return 0
    to = TRANSITIONS[Stage.QUEUED, Trigger.ADMIT].to.value
    admitted, damaged = 0, 0
    while admitted < free and (line := fetch(db, _FIRST_QUEUED, (account, queue, free - admitted, damaged))):
        changed = sum(change(db, "UPDATE messages SET stage = ?, slot = 1 WHERE seq = ?", to, seq) for (seq,) in line)
        admitted, damaged = admitted + changed, damaged + len(line) - changed
    return admitted


def withdraw_slots(db: apsw.Connection, account: int, queue: str) -> None:
    """After parallelism was lowered: take slots from messages that have not started; they return to their places."""
    excess = db.execute(
        "SELECT (SELECT count(*) FROM messages WHERE account = q.account AND queue = q.name AND slot = 1)"
        " - q.parallelism FROM queues q WHERE q.account = ? AND q.name = ?",
        (account, queue),
    ).get
    if cast("int", excess) <= 0:
        return
    for seq, stage in fetch(
        db,
        "SELECT seq, stage FROM messages WHERE account = ? AND queue = ? AND slot = 1 AND claim_token = 0"
        f" AND stage IN ({Stage.DUE}, {Stage.PARKED}, {Stage.QUEUED}, {Stage.HELD})"
        " ORDER BY place DESC, seq DESC LIMIT ?",
        (account, queue, excess),
    ):
        to = Stage.QUEUED if stage == Stage.QUEUED else TRANSITIONS[stage, Trigger.QUEUE].to
        change(db, "UPDATE messages SET stage = ?, slot = 0 WHERE seq = ?", to.value, seq)


def suspend_queue(db: apsw.Connection, account: int, queue: str) -> None:
    """A queue was paused: messages with a slot that have not started keep the slot but wait in the line."""
    for seq, stage in fetch(
        db,
        "SELECT seq, stage FROM messages WHERE account = ? AND queue = ? AND slot = 1"
        f" AND stage IN ({Stage.DUE}, {Stage.PARKED}, {Stage.HELD})",
        (account, queue),
    ):
        change(db, CHANGE_STAGE, TRANSITIONS[stage, Trigger.QUEUE].to.value, seq)


def resume_queue(db: apsw.Connection, account: int, queue: str) -> None:
    """A pause has ended: messages that kept a slot may start, then free slots are filled."""
    for (seq,) in fetch(
        db,
        f"SELECT seq FROM messages WHERE account = ? AND queue = ? AND slot = 1 AND stage = {Stage.QUEUED}",
        (account, queue),
    ):
        change(db, CHANGE_STAGE, TRANSITIONS[Stage.QUEUED, Trigger.ADMIT].to.value, seq)
    fill_slots(db, account, queue)


def release_slot(db: apsw.Connection, seq: int) -> None:
    """Free the slot of a message that is finished and waits for no callback, and admit the next message."""
    row = first(
        db,
        "SELECT account, queue FROM messages"
        " WHERE seq = ? AND slot = 1 AND open_callbacks = 0 AND finished_ms IS NOT NULL",
        (seq,),
    )
    if row is not None and change(db, "UPDATE messages SET slot = 0 WHERE seq = ?", seq):
        fill_slots(db, *row)


def callback_ended(db: apsw.Connection, parent: int) -> None:
    """Record that a callback of the message `parent` has ended. The message may have been removed already."""
    change(db, "UPDATE messages SET open_callbacks = open_callbacks - 1 WHERE seq = ? AND open_callbacks > 0", parent)
    release_slot(db, parent)


# -- flow-control keys

_FIRST_HELD: Final = (
    f"SELECT seq FROM messages WHERE account = ? AND flow_key = ? AND stage = {Stage.HELD} ORDER BY place, seq LIMIT 1"
)
"""Uses the index ``messages_held``."""
_RUNNING: Final = f"SELECT count(*) FROM messages WHERE account = ? AND flow_key = ? AND stage = {Stage.ACTIVE}"
"""Uses the index ``messages_running``."""


@dataclass(frozen=True, slots=True)
class Admission:
    """True if an attempt may start now; else the time from which one may (None: not before something changes)."""

    allowed: bool
    until_ms: int | None = None


def configure_key(db: apsw.Connection, account: int, flow: FlowControl, now_ms: int) -> None:
    """Take over the limits of the newest message, except for pinned ones (docs/protocol.md 5.10)."""
    row = db.execute(
        "SELECT parallelism, rate, period_s, pinned_parallelism, pinned_rate, used_ms FROM flow_keys"
        " WHERE account = ? AND key = ?",
        (account, flow.key),
    ).get
    if row is None:
        db.execute(
            "INSERT INTO flow_keys (account, key, parallelism, rate, period_s, used_ms) VALUES (?, ?, ?, ?, ?, ?)",
            (account, flow.key, flow.parallelism, flow.rate, flow.period_s, now_ms),
        )
        return
    parallelism, rate, period_s, pinned_parallelism, pinned_rate, used_ms = row
    limits = (
        parallelism if pinned_parallelism else flow.parallelism,
        rate if pinned_rate else flow.rate,
        period_s if pinned_rate else flow.period_s,
    )
    if limits != (parallelism, rate, period_s):
        db.execute(
            "UPDATE flow_keys SET parallelism = ?, rate = ?, period_s = ? WHERE account = ? AND key = ?",
            (*limits, account, flow.key),
        )
        refresh_key(db, account, flow.key, now_ms)
    if now_ms > used_ms + USE_NOTED_MS:
        note_key_use(db, account, flow.key, now_ms)


def note_key_use(db: apsw.Connection, account: int, key: str, now_ms: int) -> None:
    """The key is used now: it is kept from now on for the retention of delivered messages."""
    db.execute("UPDATE flow_keys SET used_ms = ? WHERE account = ? AND key = ?", (now_ms, account, key))


def check_key(db: apsw.Connection, account: int, key: str, now_ms: int) -> Admission:
    """Return whether the key admits an attempt now and, if not, from when."""
    row = db.execute(
        "SELECT parallelism, rate, period_s, paused, window_start_ms, window_count FROM flow_keys"
        " WHERE account = ? AND key = ?",
        (account, key),
    ).get
    if row is None:
        return Admission(True)
    parallelism, rate, period_s, paused, start_ms, count = row
    if paused:
        return Admission(False)
    if parallelism is not None and db.execute(_RUNNING, (account, key)).get >= parallelism:
        return Admission(False)
    if rate is not None and count >= rate and (end_ms := window_end(start_ms, period_s, now_ms)) > now_ms:
        return Admission(False, end_ms)
    return Admission(True)


def window_end(start_ms: int, period_s: int, now_ms: int) -> int:
    """When the window that began at `start_ms` ends; `now_ms` if it is over.

    A window that begins more than a period in the future was counted before the clock was set back: it is over.
    """
    end_ms = start_ms + period_s * 1000
    return end_ms if now_ms < end_ms and start_ms - now_ms <= period_s * 1000 else now_ms


def count_start(db: apsw.Connection, account: int, key: str, now_ms: int) -> None:
    """Count an attempt that starts now in the key's window; the first one begins a new window."""
    row = db.execute(
        "SELECT rate, period_s, window_start_ms, window_count FROM flow_keys WHERE account = ? AND key = ?",
        (account, key),
    ).get
    if row is None:
        return
    rate, period_s, start_ms, count = row
    if rate is None:
        return
    if window_end(start_ms, period_s, now_ms) <= now_ms:
        start_ms, count = now_ms, 0
    db.execute(
        "UPDATE flow_keys SET window_start_ms = ?, window_count = ? WHERE account = ? AND key = ?",
        (start_ms, count + 1, account, key),
    )


def first_held(db: apsw.Connection, account: int, key: str) -> int | None:
    """`seq` of the first message in the key's line."""
    return cast("int | None", db.execute(_FIRST_HELD, (account, key)).get)


def refresh_key(db: apsw.Connection, account: int, key: str, now_ms: int) -> int | None:
    """Compute when the first message of the key's line may start, and store it in `ready_ms`, where a claim looks.

    None: no message waits, or none may start before something changes.
    """
    ready_ms: int | None = None
    if first_held(db, account, key) is not None:
        admission = check_key(db, account, key, now_ms)
        ready_ms = now_ms if admission.allowed else admission.until_ms
    db.execute(
        "UPDATE flow_keys SET ready_ms = ? WHERE account = ? AND key = ? AND ready_ms IS NOT ?",
        (ready_ms, account, key, ready_ms),
    )
    return ready_ms
