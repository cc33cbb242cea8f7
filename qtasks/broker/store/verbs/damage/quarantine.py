"""Makes damaged messages dead letters, and releases what they occupied.

Nothing that is damaged is trusted. Whose a message is, and what waits for it, is taken from its row only if the
checksum of its identity proves it; otherwise the log says whose it is, and all queues, keys and callbacks are
counted again. Whether a message had ended is what its log says.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from typing import Any, Final, TypeVar

import apsw

from qtasks.broker.core import message_rows
from qtasks.broker.core.message_rows import MessageRow
from qtasks.broker.core.rules import TRANSITIONS, Stage, Trigger
from qtasks.broker.store.verbs import admission, rows, stored, sums
from qtasks.broker.store.verbs.end_callbacks import report_end_of
from qtasks.broker.store.verbs.log_entries import add_dead_letter, append_log
from qtasks.broker.store.verbs.rows import change, fetch
from qtasks.broker.store.verbs.stored import Fault, StoredMessage
from qtasks.protocol.messages import State

T = TypeVar("T")
D = TypeVar("D")

log = logging.getLogger("qtasks.broker")

_ENDS: Final = {State.DELIVERED: Stage.DELIVERED, State.FAILED: Stage.FAILED, State.CANCELED: Stage.CANCELED}
_AT_REST: Final[dict[str, int | None]] = {
    "claim_token": 0,
    "cancel_requested": 0,
    "slot": 0,
    "place": None,
    "open_callbacks": 0,
    "interrupted_since_ms": None,
    "cuts": 0,
    "noted_ms": None,
    "quiet": 0,
    "open_claims": 0,
}
"""The values of a message that nothing waits for."""
_REWRITTEN: Final = (
    *("stage", "finished_ms", "due_ms", "host", "lot", "flow_key", "parent", "checksum"),
    *_AT_REST,
    *MessageRow._fields,
)
# Every column is written, because SQLite refuses to change a row that has a value of a wrong type.
_REWRITE: Final = f"UPDATE messages SET {', '.join(f'{name} = ?' for name in _REWRITTEN)}, state_sum = 0 WHERE seq = ?"
_LAST_ENTRY: Final = "SELECT state, time_ms FROM log WHERE seq = ? ORDER BY n DESC LIMIT 1"
_OWNER: Final = "SELECT l.account FROM log l JOIN accounts a ON a.id = l.account WHERE l.seq = ? ORDER BY l.n LIMIT 1"


def quarantine(db: apsw.Connection, seqs: Iterable[int], *, now_ms: int) -> list[int]:
    """Set aside those of the messages `seqs` that are damaged, and release what they occupied; return these."""
    damaged = [
        message for seq in seqs if (message := stored.one(db, seq)) is not None and set_aside(db, message, now_ms)
    ]
    if damaged:
        release(db, damaged, now_ms=now_ms)
    return [message.seq for message in damaged]


def set_aside(db: apsw.Connection, message: StoredMessage, now_ms: int, fault: Fault | None = None) -> bool:
    """Make a damaged message a dead letter; False, and nothing written, if it is sound.

    `fault` names a damage that the checksums do not show. The caller must `release` what the message occupied.
    """
    fault = fault or message.fault()
    if fault is None:
        return False
    seq = message.seq
    last = rows.first(db, _LAST_ENTRY, (seq,))
    if last is not None and last[0] in _ENDS:  # only its row says that it has not ended
        _rewrite(db, message, _ENDS[last[0]], last[1])
        log.error("message %s is damaged: it has ended, and is ended again", message.message.id)
        return True
    account = _owner(db, message)
    transition = TRANSITIONS[Stage.DUE, Trigger.CORRUPT]
    for state in transition.log:
        append_log(db, seq, account, now_ms, state, error=fault.value)
    letter_id = add_dead_letter(db, seq, account, now_ms, fault.value, None)
    with contextlib.suppress(apsw.ConstraintError):  # the log is damaged, too: its end was reported before
        report_end_of(db, seq, State.FAILED, error=fault.value, dead_letter_id=letter_id, now_ms=now_ms)
    _rewrite(db, message, transition.to, now_ms)
    log.error("message %s is damaged and not sent any more: %s", message.message.id, fault.value)
    return True


def release(db: apsw.Connection, damaged: Iterable[StoredMessage], *, now_ms: int) -> None:
    """Give what damaged messages occupied to those that wait for it.

    Where a message belonged is certain only for a sound identity; for another one every line is looked at.
    """
    messages = list(damaged)
    if any(message.parent is not None or not message.has_sound_identity() for message in messages):
        _count_callbacks(db)
    if all(message.has_sound_identity() for message in messages):
        queues: list[tuple[Any, ...]] = [(message.message.account, message.message.queue) for message in messages]
        keys: list[tuple[Any, ...]] = [(message.message.account, message.flow_key) for message in messages]
    else:
        queues = fetch(db, "SELECT account, name FROM queues")
        keys = fetch(db, "SELECT account, key FROM flow_keys WHERE ready_ms IS NULL")
    for account, queue in dict.fromkeys(queues):
        if queue is not None:
            admission.fill_slots(db, account, queue)
    for account, key in dict.fromkeys(keys):
        if key is not None:
            admission.refresh_key(db, account, key, now_ms)


def _owner(db: apsw.Connection, message: StoredMessage) -> int:
    """The account that a message belongs to; if its row does not prove it, that of its first log entry."""
    account = message.message.account
    if message.has_sound_identity():
        return account
    owner = db.execute(_OWNER, (message.seq,)).get
    return _of_type(int, owner, _of_type(int, account, 0))


def _rewrite(db: apsw.Connection, message: StoredMessage, stage: Stage, finished_ms: int) -> None:
    """End a message. Its values stay where they can be read, and its checksum shows that they are damaged."""
    row = message_rows.readable(message.message)
    values: dict[str, Any] = {
        **row._asdict(),
        **_AT_REST,
        "stage": stage.value,
        "finished_ms": finished_ms,
        "due_ms": _of_type(int, message.due_ms, finished_ms),
        "host": _of_type(str, message.host, ""),
        "lot": "",
        "flow_key": _of_type(str, message.flow_key, None),
        "parent": _of_type(int, message.parent, None),
        "checksum": message.checksum if message.has_sound_content() else _as_known(message.checksum),
        "retried": max(row.retried, 0),
        "max_retries": max(row.max_retries, 0),
        "timeout_ms": max(row.timeout_ms, 1),
    }
    if not change(db, _REWRITE, *(values[name] for name in _REWRITTEN), message.seq):  # another one has its id
        values["id"] = f"corrupt_{message.seq}"
        db.execute(_REWRITE, (*(values[name] for name in _REWRITTEN), message.seq))
    db.execute(sums.RENEW, (message.seq,))


def _as_known(checksum: object) -> int:
    """A checksum that matches nothing, and shows that the damage was found; see `sums.is_known`."""
    value = _of_type(int, checksum, -1)
    return value if value < 0 else ~value


def _of_type(kind: type[T], value: object, default: D) -> T | D:
    return value if isinstance(value, kind) else default


def _count_callbacks(db: apsw.Connection) -> None:
    """Count again how many callbacks the finished messages wait for that keep a slot of their queue."""
    waiting = fetch(db, "SELECT seq, open_callbacks FROM messages WHERE slot = 1 AND finished_ms IS NOT NULL")
    if not waiting:
        return
    unfinished = dict(
        fetch(
            db,
            "SELECT parent, count(*) FROM messages WHERE finished_ms IS NULL AND parent IS NOT NULL GROUP BY parent",
        )
    )
    for seq, counted in waiting:
        if (count := unfinished.get(seq, 0)) < counted:
            db.execute("UPDATE messages SET open_callbacks = ? WHERE seq = ?", (count, seq))
            admission.release_slot(db, seq)
