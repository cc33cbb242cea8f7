"""The failures of an account, one of them, and its messages."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import apsw

from qtasks.broker.core.observed.message_filter import ConsoleFilter, Kind
from qtasks.broker.store.verbs.insight import candidates
from qtasks.broker.store.verbs.insight.failure_groups import SLOT_MS
from qtasks.broker.store.verbs.reads.filters import Where
from qtasks.broker.store.verbs.rows import fetch, first

MAX_FAILURES: Final = 200
SPARKS: Final = 24
"""Numbers of a sparkline."""

_FAILURE: Final = (
    "SELECT f.id, f.fingerprint, f.destination, d.url, d.task, f.error, f.first_ms, f.last_ms,"
    " (SELECT m.id FROM messages m WHERE m.seq = f.sample)"
    " FROM insight_failures f LEFT JOIN insight_destinations d ON d.id = f.destination"
)
_SLOTS: Final = "SELECT start_ms, attempts, messages FROM insight_failure_spans WHERE failure = ? AND start_ms >= ?"
_DEAD_LETTERS: Final = (
    "SELECT m.failure, count(*) FROM dead_letters d JOIN insight_failure_messages m ON m.seq = d.seq AND m.is_last = 1"
    " WHERE d.account = ? GROUP BY m.failure"
)
_DEAD_LETTERS_OF: Final = (
    "FROM insight_failure_messages m JOIN dead_letters d ON d.seq = m.seq"
    " WHERE m.failure = ? AND m.is_last = 1 AND d.account = ?"
)
_MEMBERS: Final = "SELECT seq FROM insight_failure_messages WHERE failure = ? AND seq < ? ORDER BY seq DESC LIMIT ?"


class FailureFigures(NamedTuple):
    """A failure, and how often it happened in the time. Times are the broker's, in Unix milliseconds."""

    number: int
    fingerprint: str
    task: str | None
    destination: str
    error: str
    attempts: int
    messages: int
    dead_letters: int
    first_ms: int
    last_ms: int
    sparks: tuple[int, ...]
    """Attempts in equal parts of the time, the oldest first."""
    sample_id: str | None
    """Its last message; None if it has been removed."""


def failures(
    db: apsw.Connection, account: int, criteria: ConsoleFilter, *, hours: int, now_ms: int
) -> list[FailureFigures]:
    """The failures of the last `hours` hours, latest first, that a filter by task, URL or error matches."""
    where = Where("f.account = ?", account)
    where.add("f.last_ms >= ?", now_ms - hours * 3_600_000)
    for condition in criteria.conditions:
        test = Where("1")
        if condition.kind is Kind.ERROR:
            for value in condition.values:
                test.add("instr(lower(f.error), ?) > 0", value.lower())
        elif condition.kind in (Kind.TASK, Kind.URL, Kind.ANY):
            candidates.add_destination(test, condition)
        else:
            continue
        where.add(f"coalesce({test.text}, 0) = {int(not condition.negated)}", *test.values)
    rows = fetch(db, f"{_FAILURE}{where} ORDER BY f.last_ms DESC LIMIT ?", (*where.values, MAX_FAILURES))
    dead = dict(fetch(db, _DEAD_LETTERS, (account,))) if rows else {}
    return [_figures(db, row, dead.get(row[0], 0), hours=hours, now_ms=now_ms) for row in rows]


def failure(db: apsw.Connection, account: int, fingerprint: str, *, hours: int, now_ms: int) -> FailureFigures | None:
    """The failure of that fingerprint, or None."""
    row = first(db, f"{_FAILURE} WHERE f.account = ? AND f.fingerprint = ?", (account, fingerprint))
    if row is None:
        return None
    return _figures(db, row, dead_letter_count(db, account, row[0]), hours=hours, now_ms=now_ms)


def dead_letter_count(db: apsw.Connection, account: int, number: int) -> int:
    """How many dead letters failed with it for good."""
    return int(db.execute(f"SELECT count(*) {_DEAD_LETTERS_OF}", (number, account)).get)


def dead_letter_ids(db: apsw.Connection, account: int, number: int, *, count: int) -> list[str]:
    """The ids of up to `count` of them, oldest first."""
    rows = fetch(
        db,
        f"SELECT d.failed_ms, d.n {_DEAD_LETTERS_OF} ORDER BY m.seq LIMIT ?",
        (number, account, count),
    )
    return [f"{failed_ms}-{n}" for failed_ms, n in rows]


def members(db: apsw.Connection, number: int, *, below: int | None, count: int) -> tuple[list[int], int | None]:
    """Up to `count` messages of a failure, newest first, and where to go on."""
    seqs = [seq for (seq,) in fetch(db, _MEMBERS, (number, 2**62 if below is None else below, count + 1))]
    return seqs[:count], seqs[count - 1] if len(seqs) > count else None


def _figures(
    db: apsw.Connection, row: tuple[Any, ...], dead_letters: int, *, hours: int, now_ms: int
) -> FailureFigures:
    number, fingerprint, _, url, task, error, first_ms, last_ms, sample_id = row
    part_ms = hours * 3_600_000 // SPARKS
    begin_ms = max((now_ms - hours * 3_600_000) // SLOT_MS * SLOT_MS, 0)
    sparks = [0] * SPARKS
    attempts = messages = 0
    for start_ms, in_slot, fresh in fetch(db, _SLOTS, (number, begin_ms)):
        attempts, messages = attempts + in_slot, messages + fresh
        sparks[min(SPARKS - 1, (start_ms - begin_ms) // part_ms)] += in_slot
    return FailureFigures(
        number,
        fingerprint,
        task,
        url or "",
        error,
        attempts,
        messages,
        dead_letters,
        first_ms,
        last_ms,
        tuple(sparks),
        sample_id,
    )
