"""Counts the log: each call takes the entries after the last counted one, in one transaction with the note of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, NamedTuple, cast

import apsw
import orjson

from qtasks.broker.core.interruptions import STOPPED
from qtasks.broker.core.observed import error_texts, histograms
from qtasks.broker.core.observed.statuses import COUNTED, Status
from qtasks.broker.store.verbs.insight import labelled_arguments
from qtasks.broker.store.verbs.insight.destinations import CountedDestination, Destinations
from qtasks.broker.store.verbs.insight.failure_groups import FailedAttempt, FreshFailures
from qtasks.broker.store.verbs.insight.figures import Figures, FreshFigures
from qtasks.broker.store.verbs.rows import fetch, write_each
from qtasks.protocol.messages import State

SLICE: Final = 500
"""Entries of the log that one call counts at most."""
_MOVED: Final = 500
"""Messages that one call moves at most because their time has come."""
_READ_BYTES: Final = 4_096
"""Bytes of an answer in which its error is looked for."""

_COUNTED_UNTIL: Final = "SELECT n FROM insight_progress WHERE only_row = 1"
_NOTE: Final = "UPDATE insight_progress SET n = ? WHERE only_row = 1"
_NEWEST: Final = "SELECT coalesce(max(n), 0) FROM log"
_ENTRIES: Final = (
    "SELECT n, seq, account, time_ms, state, error, next_ms, response_status,"
    f" iif(state = '{State.ERROR}', substr(response_body, 1, {_READ_BYTES}), NULL)"
    " FROM log WHERE n > ? ORDER BY n LIMIT ?"
)
_AMONG: Final = "IN (SELECT value FROM json_each(?))"
_KNOWN: Final = f"SELECT seq, account, destination, status, due_ms, started_ms FROM insight_messages WHERE seq {_AMONG}"
_NEW: Final = (
    "SELECT seq, url, call_id IS NOT NULL OR interrupted_for_ms IS NOT NULL, created_ms FROM messages"
    f" WHERE seq {_AMONG}"
)
IS_TASK: Final = "(m.call_id IS NOT NULL OR m.interrupted_for_ms IS NOT NULL)"
"""A condition on ``messages m``: it is of the framework."""
_WITH_DEAD_LETTER: Final = f"SELECT seq FROM dead_letters WHERE seq {_AMONG}"
_INSERT: Final = (
    "INSERT INTO insight_messages (seq, account, destination, status, due_ms, started_ms) VALUES (?, ?, ?, ?, ?, ?)"
)
_UPDATE: Final = "UPDATE insight_messages SET status = ?, due_ms = ?, started_ms = ? WHERE seq = ?"
_ANSWER: Final = (
    "INSERT INTO insight_answers (destination, time_ms, status, error) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
    " SET time_ms = excluded.time_ms, status = excluded.status, error = excluded.error"
)
_COUNT: Final = (
    "INSERT INTO insight_counts (account, destination, status, count) VALUES (?, ?, ?, ?)"
    " ON CONFLICT DO UPDATE SET count = count + excluded.count"
)
_BEGIN_IN_TIME: Final = (
    f"UPDATE insight_messages SET status = {Status.WAITING} WHERE seq IN (SELECT seq FROM insight_messages"
    f" WHERE account = ? AND status = {Status.SCHEDULED} AND status <= 2 AND due_ms <= ? ORDER BY due_ms LIMIT ?)"
    " RETURNING (SELECT counted_as FROM insight_destinations d WHERE d.id = destination)"
)
"""Uses the index ``insight_messages_waiting``."""

_STATUS: Final = {status.value: status for status in Status}
"""By number; quicker than to call the class."""

_TABLES: Final = (
    "insight_progress",
    "insight_destinations",
    "insight_messages",
    "insight_counts",
    "insight_spans",
    "insight_failures",
    "insight_failure_spans",
    "insight_failure_messages",
    "insight_searchable",
    "insight_answers",
)
_SCHEMAS: Final = ("0006_insight.sql", "0009_searchable.sql", "0011_answers.sql")
"""The files of the schema that make these tables, and nothing else."""
_TRIGGERS: Final = ("insight_dead_letter_gone", "insight_message_gone")


class _Entry(NamedTuple):
    """An entry of the log."""

    n: int
    seq: int
    account: int
    time_ms: int
    state: str
    error: str | None
    next_ms: int | None
    status: int | None
    body: bytes | None


@dataclass(slots=True)
class _Indexed:
    """A message of which the slice tells. `stored` is its status before; None: it is not stored yet."""

    account: int
    destination: CountedDestination
    stored: Status | None
    status: Status
    due_ms: int
    started_ms: int | None
    last_failure: FailedAttempt | None = None


class Counted(NamedTuple):
    """How far the log is counted."""

    counted: int
    """Entries that this call counted."""
    behind: int
    """Entries that are still to be counted, at most."""


def behind(db: apsw.Connection) -> int:
    """How many entries of the log are not counted yet, at most."""
    return max(0, cast("int", db.execute(_NEWEST).get) - cast("int", db.execute(_COUNTED_UNTIL).get))


def count_log(db: apsw.Connection, *, now_ms: int, most: int = SLICE) -> Counted:
    """Count the next entries of the log, up to `most` or 2, and move the messages whose time has come."""
    entries = [_Entry._make(row) for row in fetch(db, _ENTRIES, (db.execute(_COUNTED_UNTIL).get, max(2, most)))]
    if len(entries) > 1 and entries[-1].state == State.ERROR:
        entries.pop()  # the next entry tells what followed from it; one transaction has written both
    if entries:
        fresh = _Slice(db, entries)
        for entry in entries:
            fresh.count(entry)
        fresh.write()
        db.execute(_NOTE, (entries[-1].n,))
    _begin_in_time(db, now_ms)
    return Counted(len(entries), behind(db))


def note_removal(db: apsw.Connection) -> None:
    """After entries of the log were removed: a new entry may get the number of a removed one, which was counted."""
    db.execute(f"UPDATE insight_progress SET n = min(n, ({_NEWEST})) WHERE only_row = 1")


def start_again(db: apsw.Connection) -> None:
    """Make all tables anew, empty, also if they are damaged or missing: the log is counted from its first entry on."""
    for name in _TRIGGERS:
        db.execute(f"DROP TRIGGER IF EXISTS {name}")
    for name in _TABLES:
        db.execute(f"DROP TABLE IF EXISTS {name}")
    for name in _SCHEMAS:
        schema = resources.files("qtasks.broker.store.schema") / name
        db.execute(schema.read_text(encoding="utf-8"))


def _begin_in_time(db: apsw.Connection, now_ms: int) -> None:
    """Messages wait from the time on that they were scheduled for."""
    for (account,) in fetch(db, "SELECT id FROM accounts"):
        moved = Counter(row[0] for row in fetch(db, _BEGIN_IN_TIME, (account, now_ms, _MOVED)))
        for destination, count in moved.items():
            db.execute(_COUNT, (account, destination, Status.SCHEDULED, -count))
            db.execute(_COUNT, (account, destination, Status.WAITING, count))


def _json(numbers: Iterable[int]) -> str:
    return orjson.dumps([*numbers]).decode()


def _count_end(entry: _Entry, message: _Indexed, figures: Figures) -> None:
    """Count the entry that ends a message. A request to cancel it does not."""
    match entry.state:
        case State.DELIVERED:
            figures.delivered += 1
            message.status = Status.DELIVERED
            if message.started_ms is not None:
                figures.durations += histograms.of(entry.time_ms - message.started_ms)
        case State.FAILED:
            figures.failed += 1
            message.status = Status.FAILED
            if message.last_failure is not None:
                message.last_failure.is_last = True
        case State.CANCELED:
            message.status = Status.CANCELED


class _Slice:
    """Consecutive entries of the log, and what they change."""

    def __init__(self, db: apsw.Connection, entries: list[_Entry]) -> None:
        self._db = db
        self._destinations = Destinations(db)
        self._figures = FreshFigures()
        self._failures = FreshFailures()
        self._answers: dict[int, tuple[int, int, int | None, str | None]] = {}
        """The last answers, as rows, by destination."""
        accounts = {entry.seq: entry.account for entry in entries}
        stored = fetch(db, _KNOWN, (_json(accounts),))
        destinations = self._destinations.numbered({row[2] for row in stored})
        self._messages = {
            seq: _Indexed(account, destinations[number], _STATUS[status], _STATUS[status], due_ms, started_ms)
            for seq, account, number, status, due_ms, started_ms in stored
            if number in destinations
        }
        if unknown := accounts.keys() - self._messages.keys():
            for seq, url, is_task, created_ms in fetch(db, _NEW, (_json(sorted(unknown)),)):
                destination = self._destinations.of(accounts[seq], url, is_task=bool(is_task))
                self._messages[seq] = _Indexed(accounts[seq], destination, None, Status.WAITING, created_ms, None)

    def count(self, entry: _Entry) -> None:
        """Count one entry. One of a message that has been removed meanwhile counts for nothing."""
        if (message := self._messages.get(entry.seq)) is None:
            return
        time_ms, next_ms = entry.time_ms, entry.time_ms if entry.next_ms is None else entry.next_ms
        figures = self._figures.at(message.account, message.destination, time_ms)
        match entry.state:
            case State.CREATED:
                figures.created += 1
                message.status = Status.WAITING if entry.next_ms is None else Status.SCHEDULED
                message.due_ms = next_ms
            case State.ACTIVE:
                figures.waits += histograms.of(time_ms - message.due_ms)
                message.status, message.started_ms = Status.RUNNING, time_ms
            case State.ERROR:
                self._note_error(entry, message)
            case State.RETRY:
                figures.retried += 1
                message.status, message.due_ms = Status.RETRYING, next_ms
            case _:
                _count_end(entry, message, figures)
                if entry.state == State.DELIVERED:
                    self._note_answer(entry, message, None)

    def _note_error(self, entry: _Entry, message: _Indexed) -> None:
        if entry.error == STOPPED:  # the broker has stopped: the endpoint has not failed
            return
        text = error_texts.text_of(entry.error, entry.body, is_task=message.destination.is_task)
        message.last_failure = FailedAttempt(entry.seq, entry.time_ms, text)
        self._failures.add(message.account, message.destination, message.last_failure)
        self._note_answer(entry, message, text)

    def _note_answer(self, entry: _Entry, message: _Indexed, error: str | None) -> None:
        number = message.destination.counted_as
        self._answers[number] = (number, entry.time_ms, entry.status, error)

    def write(self) -> None:
        """Store what the entries change."""
        self._tell_dead_from_failed()
        moves: Counter[tuple[int, int, Status]] = Counter()
        inserted: list[tuple[Any, ...]] = []
        updated: list[tuple[Any, ...]] = []
        for seq, message in self._messages.items():
            account, counted_as = message.account, message.destination.counted_as
            if message.stored is not None:
                updated.append((message.status, message.due_ms, message.started_ms, seq))
                moves[account, counted_as, message.stored] -= 1
            else:
                values = (account, message.destination.id, message.status, message.due_ms, message.started_ms)
                inserted.append((seq, *values))
            moves[account, counted_as, message.status] += 1
        labelled_arguments.note(self._db, {seq: (account, number) for seq, account, number, *_ in inserted})
        write_each(self._db, _INSERT, inserted)
        write_each(self._db, _UPDATE, updated)
        counted = [(*key, count) for key, count in moves.items() if count and key[2] in COUNTED]
        write_each(self._db, _COUNT, counted)
        self._figures.write(self._db)
        self._failures.write(self._db, self._destinations)
        write_each(self._db, _ANSWER, list(self._answers.values()))

    def _tell_dead_from_failed(self) -> None:
        """Failed messages are dead letters, until these are removed."""
        failed = [seq for seq, message in self._messages.items() if message.status is Status.FAILED]
        if failed:
            for (seq,) in fetch(self._db, _WITH_DEAD_LETTER, (_json(failed),)):
                self._messages[seq].status = Status.DEAD
