"""Why a message has not started: its time, its queue, its flow-control key, its host, or the broker's own limit."""

from __future__ import annotations

from typing import Final, NamedTuple, cast

import apsw

from qtasks.broker.core import lots
from qtasks.broker.core.past_attempts import is_interruption
from qtasks.broker.core.rules import Stage
from qtasks.broker.store.verbs import admission
from qtasks.broker.store.verbs.parking import prefixes
from qtasks.broker.store.verbs.stored import StoredMessage

_COUNTED: Final = 1000
"""Messages before this one that are counted at most."""
_BEFORE_IN_QUEUE: Final = (
    f"SELECT count(*) FROM (SELECT 1 FROM messages WHERE account = ? AND queue = ? AND stage = {Stage.QUEUED}"
    " AND slot = 0 AND (place, seq) < (?, ?) LIMIT ?)"
)
"""Uses the index ``messages_queued``."""
_BEFORE_IN_KEY: Final = (
    f"SELECT count(*) FROM (SELECT 1 FROM messages WHERE account = ? AND flow_key = ? AND stage = {Stage.HELD}"
    " AND (place, seq) < (?, ?) LIMIT ?)"
)
"""Uses the index ``messages_held``."""
_ACTIVE: Final = f"SELECT count(*) FROM messages WHERE stage = {Stage.ACTIVE}"
_LAST_ERROR: Final = "SELECT error FROM log WHERE seq = ? AND state = 'ERROR' ORDER BY n DESC LIMIT 1"


class Wait(NamedTuple):
    """What a message waits for."""

    reason: str
    """One of the words in docs/console.md."""
    text: str
    until_ms: int | None = None
    """When that ends, in the broker's time; None if it depends on others."""
    subject: str | None = None
    """The name of the queue, key, host or prefix."""


def wait_of(db: apsw.Connection, message: StoredMessage, *, now_ms: int, parallelism: int) -> Wait | None:
    """What a message waits for; None during an attempt and at its end. `parallelism`: the broker's limit."""
    match message.stage:
        case Stage.DUE if message.due_ms > now_ms:
            return _for_its_time(db, message)
        case Stage.DUE:
            return _for_the_broker(db, parallelism)
        case Stage.PARKED:
            return _for_its_lot(db, message, parallelism)
        case Stage.QUEUED:
            return _for_its_queue(db, message)
        case Stage.HELD:
            return _for_its_key(db, message, now_ms)
    return None


def _for_its_time(db: apsw.Connection, message: StoredMessage) -> Wait:
    if not message.claim_token:
        return Wait("delay", "It was published with a delay, which is not over.", message.due_ms)
    error = db.execute(_LAST_ERROR, (message.seq,)).get
    if is_interruption(error if isinstance(error, str) else None):
        return Wait("retry", "Its last attempt was interrupted; the same attempt is made again.", message.due_ms)
    return Wait("retry", "Its last attempt failed; the next one follows after a pause.", message.due_ms)


def _for_the_broker(db: apsw.Connection, parallelism: int) -> Wait:
    if cast("int", db.execute(_ACTIVE).get) >= parallelism:
        return Wait("capacity", f"The broker makes {parallelism} attempts at a time, and all of these run.")
    return Wait("due", "It may start: the broker takes it next.")


def _for_its_lot(db: apsw.Connection, message: StoredMessage, parallelism: int) -> Wait:
    host, prefix, is_alone, is_crashed = lots.parse(message.lot)
    if prefix is not None:
        state = prefixes.read(db, prefix)
        if state.down_since_ms is not None:
            text = f"The application at {prefix} does not answer. It is probed, and its messages wait until it answers."
            return Wait("probe", text, state.probe_ms, prefix)
        if is_alone:
            text = f"Its runs were cut more than once, so it waits until nothing else runs at {prefix}."
            return Wait("host", text, subject=prefix)
    if is_crashed:
        return Wait("host", "The broker ended during its attempts, so it waits for its turn to run alone.", None, host)
    if cast("int", db.execute(_ACTIVE).get) >= parallelism:
        return _for_the_broker(db, parallelism)
    return Wait("host", f"As many attempts as may run at {host} are running.", subject=host)


def _for_its_queue(db: apsw.Connection, message: StoredMessage) -> Wait:
    account, queue = message.message.account, message.message.queue
    row = db.execute("SELECT parallelism, paused FROM queues WHERE account = ? AND name = ?", (account, queue)).get
    parallelism, is_paused = row or (1, 0)
    if is_paused:
        return Wait("queue-paused", f"The queue {queue} is paused.", subject=queue)
    before = db.execute(_BEFORE_IN_QUEUE, (account, queue, message.place, message.seq, _COUNTED)).get
    text = f"The queue {queue} runs {parallelism} at a time; {_before(before)}."
    return Wait("queue", text, subject=queue)


def _for_its_key(db: apsw.Connection, message: StoredMessage, now_ms: int) -> Wait:
    account, key = message.message.account, message.flow_key or ""
    row = db.execute(
        "SELECT parallelism, rate, period_s, paused FROM flow_keys WHERE account = ? AND key = ?", (account, key)
    ).get
    parallelism, rate, period_s, is_paused = row or (None, None, 1, 0)
    if is_paused:
        return Wait("key-paused", f"The key {key} is paused.", subject=key)
    before = _before(db.execute(_BEFORE_IN_KEY, (account, key, message.place, message.seq, _COUNTED)).get)
    until_ms = admission.check_key(db, account, key, now_ms).until_ms
    if until_ms is not None:
        text = f"The key {key} starts {rate} in {period_s} s, and has started them; {before}."
        return Wait("rate", text, until_ms, key)
    limit = f"runs {parallelism} at a time" if parallelism is not None else "has no free place"
    return Wait("key", f"The key {key} {limit}; {before}.", subject=key)


def _before(count: int) -> str:
    if count == 0:
        return "this message is the next"
    if count >= _COUNTED:
        return f"{_COUNTED:,} messages or more stand before it"
    return f"{count} message{'s stand' if count > 1 else ' stands'} before it"
