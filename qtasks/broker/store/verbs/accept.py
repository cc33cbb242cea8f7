"""Stores new messages: deduplication, rows, and the first place in a line."""

from __future__ import annotations

import itertools
from collections.abc import Container, Sequence
from typing import Any, Final

import apsw
import orjson

from qtasks.broker.core import lots, message_rows, wall_times
from qtasks.broker.core.message_rows import MessageRow
from qtasks.broker.core.rules import Stage
from qtasks.broker.core.values import Accepted, Publication
from qtasks.broker.store.verbs import admission, broker_time, sums
from qtasks.broker.store.verbs.log_entries import append_each
from qtasks.broker.store.verbs.parking import parked
from qtasks.broker.store.verbs.rows import write_each
from qtasks.protocol.messages import DEDUPLICATION_WINDOW_MS, Message, State

SHARED_FROM: Final = 1024
"""Bytes of a body that is stored once for all messages of a URL group; a shorter one is stored with each of them."""


def accept(db: apsw.Connection, publications: Sequence[Publication], *, now_ms: int) -> list[Accepted]:
    """Store messages with their deduplication keys and log entries: all of them or, on an error, none.

    A new message of a lot in which messages wait is parked behind those at once, which saves a claim from reading it
    only to park it.
    """
    accepted: list[Accepted] = []
    fresh: list[Publication] = []
    ids = _known_ids(db, publications, now_ms)
    keys: list[tuple[int, str, str, int]] = []
    for publication in publications:
        message = publication.message
        if (key := publication.deduplication_key) is not None:
            if (earlier_id := ids.setdefault((message.account, key), message.id)) is not message.id:
                accepted.append(Accepted(earlier_id, deduplicated=True))
                continue
            keys.append((message.account, key, message.id, now_ms + DEDUPLICATION_WINDOW_MS))
        accepted.append(Accepted(message.id))
        fresh.append(publication)
    write_each(db, _INSERT_KEY, keys)
    insert(db, fresh, now_ms=now_ms, parked_lots=parked.of(db))
    return accepted


_INSERT_KEY: Final = "INSERT OR REPLACE INTO deduplication (account, key, message_id, expires_ms) VALUES (?, ?, ?, ?)"
_IDS_OF_KEYS: Final = (
    "SELECT key, message_id FROM deduplication"
    " WHERE account = ? AND key IN (SELECT value FROM json_each(?)) AND expires_ms > ?"
)


def _known_ids(db: apsw.Connection, publications: Sequence[Publication], now_ms: int) -> dict[tuple[int, str], str]:
    """The ids of the messages that have used these deduplication keys within the window, by account and key."""
    keys: dict[int, list[str]] = {}
    for publication in publications:
        if publication.deduplication_key is not None:
            keys.setdefault(publication.message.account, []).append(publication.deduplication_key)
    return {
        (account, key): message_id
        for account, of_account in keys.items()
        for key, message_id in db.execute(_IDS_OF_KEYS, (account, orjson.dumps(of_account).decode(), now_ms))
    }


def insert(
    db: apsw.Connection,
    publications: Sequence[Publication],
    *,
    now_ms: int,
    parked_lots: Container[str] = (),
    parent: int | None = None,
) -> None:
    """Store messages without deduplication. `parent` is the message that waits for them, its callbacks."""
    if not publications:
        return
    first = db.execute("SELECT coalesce(max(seq), 0) + 1 FROM messages").get
    shared = _share_bodies(db, first, publications) if len(publications) > 1 else {}
    queues: dict[tuple[int, str], None] = {}
    fresh = _FreshRows(db, now_ms, parent)
    for seq, publication in enumerate(publications, first):
        message, flow = publication.message, publication.message.options.flow_control
        lot = lots.lot_of(message, publication.host)
        due_ms = _due_ms(db, message, now_ms)
        if flow is not None:
            fresh.write()  # those of the same key are before this one in its line
        stage = _first_stage(db, message, due_ms, now_ms, lot in parked_lots)
        fresh.add(seq, publication, lot, stage, due_ms, shared.get(seq))
        if stage is Stage.HELD:
            assert flow is not None, "only a message with a flow-control key is held"
            fresh.write()
            admission.refresh_key(db, message.account, flow.key, now_ms)
        elif stage is Stage.QUEUED and message.queue is not None:
            queues[message.account, message.queue] = None
    fresh.write()
    for account, queue in queues:
        admission.fill_slots(db, account, queue)


def _share_bodies(db: apsw.Connection, first: int, publications: Sequence[Publication]) -> dict[int, int]:
    """Store the bodies once that consecutive messages have in common; `shared` of those messages by `seq`.

    `first` is the `seq` of the first message. Small bodies are not shared.
    """
    shared: dict[int, int] = {}
    for _, run in itertools.groupby(enumerate(publications, first), key=lambda item: id(item[1].message.body)):
        (seq, publication), *others = run
        body = publication.message.body
        if others and len(body) >= SHARED_FROM:
            last = others[-1][0]
            db.execute("INSERT INTO shared_bodies (first, last, body) VALUES (?, ?, ?)", (seq, last, body))
            shared |= dict.fromkeys(range(seq, last + 1), seq)
    return shared


def _due_ms(db: apsw.Connection, message: Message, now_ms: int) -> int:
    """When a new message is due: a wall time that the user gave becomes the broker's time."""
    if message.options.not_before_s is None:
        return message.not_before_ms
    return max(now_ms, wall_times.due_ms(message, broker_time.stored_offset_ms(db)))


def _first_stage(db: apsw.Connection, message: Message, due_ms: int, now_ms: int, lot_is_parked: bool) -> Stage:
    """The stage of a new message. Creates or updates its queue and its flow-control key."""
    flow = message.options.flow_control
    if flow is not None:
        admission.configure_key(db, message.account, flow, now_ms)
    if message.queue is not None:
        admission.ensure_queue(db, message.account, message.queue, now_ms)
    if due_ms > now_ms:
        return Stage.DUE
    if message.queue is not None:
        return Stage.QUEUED
    if flow is not None and (
        admission.first_held(db, message.account, flow.key) is not None
        or not admission.check_key(db, message.account, flow.key, now_ms).allowed
    ):
        return Stage.HELD
    return Stage.PARKED if lot_is_parked else Stage.DUE


_COLUMNS: Final = (
    "seq",
    "stage",
    "due_ms",
    "host",
    "lot",
    "checksum",
    "place",
    "flow_key",
    "parent",
    *MessageRow._fields,
)
_INSERT_BODY: Final = "INSERT INTO stored_bodies (seq, body, shared) VALUES (?, ?, ?)"
_NULL_AT_FIRST: Final = ("finished_ms", "interrupted_since_ms", "noted_ms")


def _value(column: str) -> str:
    """The value that a new message has in a column of its state."""
    if column in _COLUMNS:
        return f"?{_COLUMNS.index(column) + 1}"
    return "NULL" if column in _NULL_AT_FIRST else "0"


_INSERT_MESSAGE: Final = (
    f"INSERT INTO messages ({', '.join(_COLUMNS)}, state_sum)"
    f" VALUES ({', '.join('?' * len(_COLUMNS))}, {sums.state_sum(_value)})"
)


_INSERT_LABEL: Final = "INSERT OR IGNORE INTO labels (account, label, seq, place) VALUES (?, ?, ?, ?)"


class _FreshRows:
    """The rows of new messages, which are written together."""

    def __init__(self, db: apsw.Connection, now_ms: int, parent: int | None) -> None:
        self._db = db
        self._now_ms = now_ms
        self._parent = parent
        self._messages: list[tuple[Any, ...]] = []
        self._bodies: list[tuple[int, bytes, int | None]] = []
        self._labels: list[tuple[int, str, int, int]] = []
        self._log: list[tuple[int, int, State, int | None]] = []

    def add(self, seq: int, publication: Publication, lot: str, stage: Stage, due_ms: int, shared: int | None) -> None:
        """Add a message; `shared` names its body if that is stored already."""
        message = publication.message
        row = message_rows.pack_message(message)
        flow = message.options.flow_control
        flow_key = None if flow is None else flow.key
        delayed = due_ms > self._now_ms
        place = None if delayed else seq
        host = publication.host
        checksum = sums.checksum(row, message.body, seq, host, flow_key, self._parent)
        self._messages.append((seq, stage.value, due_ms, host, lot, checksum, place, flow_key, self._parent, *row))
        self._bodies.append((seq, message.body if shared is None else b"", shared))
        for number, label in enumerate(message.options.labels):
            self._labels.append((message.account, label, seq, number))
        self._log.append((seq, message.account, State.CREATED, due_ms if delayed else None))

    def write(self) -> None:
        """Write what was added since the last time."""
        if not self._messages:
            return
        write_each(self._db, _INSERT_MESSAGE, self._messages)
        write_each(self._db, _INSERT_BODY, self._bodies)
        write_each(self._db, _INSERT_LABEL, self._labels)
        append_each(self._db, self._log, self._now_ms)
        for rows in (self._messages, self._bodies, self._labels, self._log):
            rows.clear()
