"""What may start: the lines of queues and flow-control keys.

How it works. A message that may not start now is in no index that a claim scans. It stands in one of two lines:

- **Queues.** A queue has as many slots as its parallelism. A message enters at the end of the line (stage QUEUED) and
  is admitted (stage DUE, `slot` 1) when a slot is free. It keeps the slot through its retries and until its callbacks
  have ended; then the next head is admitted, in the same transaction. Slots are counted from the rows that hold them.
- **Flow-control keys.** A key lets an attempt start while fewer than `parallelism` run and fewer than `rate` have
  started in the current window. The window is fixed: it begins with the first start and lasts the period. What is not
  let through stands in the key's line (stage HELD). `ready_ms` of the key says when its head may start; it may be too
  early (the claim looks again), never too late. So a claim reads the keys whose head may start, and no line.

The order in a line is `place`, then `seq`. What joins late (after a delay, or for a retry) joins at the end; an attempt
that a crash has cut joins at the front.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, cast

import apsw

from qtasks.broker.core.rules import TRANSITIONS, Stage, Trigger
from qtasks.broker.store.log_entries import fetch, move
from qtasks.protocol.messages import FlowControl

FRONT: Final = 0
"""The place of an attempt that a crash has cut: before everybody else's."""


def join(db: apsw.Connection, seq: int, stage: Stage, trigger: Trigger, place: int | None) -> None:
    """Put a message at its place in a line (QUEUE or HOLD), or at the end where it has none."""
    # One more than the newest message's number, and itself older: behind all that wait, before all that follow.
    db.execute(
        "UPDATE messages SET stage = ?, place = coalesce(?, (SELECT max(seq) + 1 FROM messages)) WHERE seq = ?",
        (TRANSITIONS[stage, trigger].to.value, place, seq),
    )


# -- queues


def ensure_queue(db: apsw.Connection, account: int, name: str, now_ms: int) -> None:
    """A queue that is named is made, with parallelism 1 (docs/protocol.md 2.3)."""
    db.execute(
        "INSERT OR IGNORE INTO queues (account, name, parallelism, paused, created_ms, updated_ms)"
        " VALUES (?, ?, 1, 0, ?, ?)",
        (account, name, now_ms, now_ms),
    )


def is_paused(db: apsw.Connection, account: int, queue: str) -> bool:
    """Whether nothing of the queue may start now."""
    return bool(db.execute("SELECT paused FROM queues WHERE account = ? AND name = ?", (account, queue)).get)


def admit(db: apsw.Connection, account: int, queue: str) -> int:
    """Give the free slots of a queue to the heads of its line; how many."""
    found = db.execute("SELECT parallelism, paused FROM queues WHERE account = ? AND name = ?", (account, queue)).get
    if found is None or found[1]:
        return 0
    used = db.execute(
        "SELECT count(*) FROM messages WHERE account = ? AND queue = ? AND slot = 1", (account, queue)
    ).get
    if (free := found[0] - cast("int", used)) <= 0:
        return 0
    heads = fetch(
        db,
        "SELECT seq FROM messages WHERE account = ? AND queue = ? AND stage = 4 AND slot = 0"
        " ORDER BY place, seq LIMIT ?",
        (account, queue, free),
    )
    to = TRANSITIONS[Stage.QUEUED, Trigger.ADMIT].to.value
    db.executemany("UPDATE messages SET stage = ?, slot = 1 WHERE seq = ?", [(to, seq) for (seq,) in heads])
    return len(heads)


def withdraw(db: apsw.Connection, account: int, queue: str) -> None:
    """Fewer slots than before: those who have one too many and have not started go back to their place in line."""
    found = db.execute(
        "SELECT (SELECT count(*) FROM messages WHERE account = q.account AND queue = q.name AND slot = 1)"
        " - q.parallelism FROM queues q WHERE q.account = ? AND q.name = ?",
        (account, queue),
    ).get
    if (excess := cast("int", found)) <= 0:
        return
    for seq, stage in fetch(
        db,
        "SELECT seq, stage FROM messages WHERE account = ? AND queue = ? AND slot = 1 AND claim_token = 0"
        " AND finished_ms IS NULL ORDER BY place DESC, seq DESC LIMIT ?",
        (account, queue, excess),
    ):
        if stage != Stage.QUEUED:
            move(db, seq, Stage(stage), Trigger.QUEUE)
        db.execute("UPDATE messages SET slot = 0 WHERE seq = ?", (seq,))


def hold_queue(db: apsw.Connection, account: int, queue: str) -> None:
    """A pause: who has a slot and has not started keeps it, in line."""
    for seq, stage in fetch(
        db,
        "SELECT seq, stage FROM messages WHERE account = ? AND queue = ? AND slot = 1 AND stage IN (1, 2, 5)",
        (account, queue),
    ):
        move(db, seq, Stage(stage), Trigger.QUEUE)


def resume_queue(db: apsw.Connection, account: int, queue: str) -> None:
    """The end of a pause: who kept a slot goes on, then free slots are given out."""
    for (seq,) in fetch(
        db, "SELECT seq FROM messages WHERE account = ? AND queue = ? AND slot = 1 AND stage = 4", (account, queue)
    ):
        move(db, seq, Stage.QUEUED, Trigger.ADMIT)
    admit(db, account, queue)


def release(db: apsw.Connection, seq: int) -> None:
    """Free the slot of a message that is finished and waits for no callback, and admit the next."""
    found = db.execute(
        "UPDATE messages SET slot = 0 WHERE seq = ? AND slot = 1 AND open_callbacks = 0 AND stage >= 10"
        " RETURNING account, queue",
        (seq,),
    ).get
    if found is not None:
        admit(db, *found)


def callback_ended(db: apsw.Connection, parent: int) -> None:
    """One callback less to wait for; `parent` may be gone by now."""
    db.execute(
        "UPDATE messages SET open_callbacks = open_callbacks - 1 WHERE seq = ? AND open_callbacks > 0", (parent,)
    )
    release(db, parent)


# -- flow-control keys


@dataclass(frozen=True, slots=True)
class Permit:
    """Whether an attempt may start now; if not, when (None: not before something changes)."""

    allowed: bool
    until_ms: int | None = None


def configure(db: apsw.Connection, account: int, flow: FlowControl, now_ms: int) -> None:
    """The newest message's values become the key's, except for what is pinned (docs/protocol.md 5.10)."""
    known = db.execute(
        "SELECT parallelism, rate, period_s, pinned_parallelism, pinned_rate FROM flow_keys"
        " WHERE account = ? AND key = ?",
        (account, flow.key),
    ).get
    if known is None:
        db.execute(
            "INSERT INTO flow_keys (account, key, parallelism, rate, period_s) VALUES (?, ?, ?, ?, ?)",
            (account, flow.key, flow.parallelism, flow.rate, flow.period_s),
        )
        return
    parallelism, rate, period_s, pinned_parallelism, pinned_rate = known
    new = (
        parallelism if pinned_parallelism else flow.parallelism,
        rate if pinned_rate else flow.rate,
        period_s if pinned_rate else flow.period_s,
    )
    if new != (parallelism, rate, period_s):
        db.execute(
            "UPDATE flow_keys SET parallelism = ?, rate = ?, period_s = ? WHERE account = ? AND key = ?",
            (*new, account, flow.key),
        )
        refresh(db, account, flow.key, now_ms)


def permit(db: apsw.Connection, account: int, key: str, now_ms: int) -> Permit:
    """Whether the key lets an attempt start now."""
    found = db.execute(
        "SELECT parallelism, rate, period_s, paused, window_start_ms, window_count FROM flow_keys"
        " WHERE account = ? AND key = ?",
        (account, key),
    ).get
    if found is None:
        return Permit(True)
    parallelism, rate, period_s, paused, start_ms, count = found
    if paused:
        return Permit(False)
    if parallelism is not None and running(db, account, key) >= parallelism:
        return Permit(False)
    if rate is not None and count >= rate and (end_ms := window_end(start_ms, period_s, now_ms)) > now_ms:
        return Permit(False, end_ms)
    return Permit(True)


def running(db: apsw.Connection, account: int, key: str) -> int:
    """Attempts of the key under way."""
    found = db.execute(
        "SELECT count(*) FROM messages WHERE account = ? AND flow_key = ? AND stage = 3", (account, key)
    ).get
    return cast("int", found)


def window_end(start_ms: int, period_s: int, now_ms: int) -> int:
    """When the window that began at `start_ms` ends; `now_ms` when it is over.

    A window that begins more than a period ahead was counted by a clock that has been set back since: it is over.
    """
    end_ms = start_ms + period_s * 1000
    return end_ms if now_ms < end_ms and start_ms - now_ms <= period_s * 1000 else now_ms


def start(db: apsw.Connection, account: int, key: str, now_ms: int) -> None:
    """Count an attempt that starts now; the first one of a window begins it."""
    found = db.execute(
        "SELECT rate, period_s, window_start_ms, window_count FROM flow_keys WHERE account = ? AND key = ?",
        (account, key),
    ).get
    if found is None or found[0] is None:
        return
    _, period_s, start_ms, count = found
    if window_end(start_ms, period_s, now_ms) <= now_ms:
        start_ms, count = now_ms, 0
    db.execute(
        "UPDATE flow_keys SET window_start_ms = ?, window_count = ? WHERE account = ? AND key = ?",
        (start_ms, count + 1, account, key),
    )


def head(db: apsw.Connection, account: int, key: str) -> int | None:
    """`seq` of the first in the key's line."""
    found = db.execute(
        "SELECT seq FROM messages WHERE account = ? AND flow_key = ? AND stage = 5 ORDER BY place, seq LIMIT 1",
        (account, key),
    ).get
    return cast("int | None", found)


def refresh(db: apsw.Connection, account: int, key: str, now_ms: int) -> int | None:
    """Find out when the head of the key's line may start, and keep it where the claim looks."""
    ready_ms: int | None = None
    if head(db, account, key) is not None:
        allowed = permit(db, account, key, now_ms)
        ready_ms = now_ms if allowed.allowed else allowed.until_ms
    db.execute(
        "UPDATE flow_keys SET ready_ms = ? WHERE account = ? AND key = ? AND ready_ms IS NOT ?",
        (ready_ms, account, key, ready_ms),
    )
    return ready_ms
