"""The messages that a filter may hold for, newest first, by the index that leaves the fewest."""

from __future__ import annotations

import copy
import heapq
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum, auto
from typing import Any, Final

import apsw
import orjson

from qtasks.broker.core.observed.message_filter import Condition, ConsoleFilter, Kind
from qtasks.broker.core.observed.shown_urls import without_secrets
from qtasks.broker.core.observed.statuses import Status
from qtasks.broker.store.verbs.insight import labelled_arguments
from qtasks.broker.store.verbs.reads.filters import Where
from qtasks.broker.store.verbs.rows import fetch


class Part(Enum):
    """Which messages a search by a searchable argument looks at."""

    LABELLED = auto()
    """Those with a label of the argument: an index finds them."""
    UNLABELLED = auto()
    """Those without one, which must be read."""


MAX_LINES: Final = 64
"""Destinations, labels or failures whose messages are merged; with more of them all messages are looked at."""
NEAR_MS: Final = 60_000
"""`seq` follows the time of publishing, but not to the millisecond: this much earlier may come later."""
_FIRST_PAGE, _PAGE = 64, 1_024

_BY_STATUS: Final = "insight_messages WHERE account = ? AND status = ?"
_BY_DESTINATION: Final = "insight_messages WHERE account = ? AND destination = ? AND status = ?"
_BY_LABEL: Final = "labels WHERE account = ? AND label = ?"
_BY_FAILURE: Final = "insight_failure_messages WHERE failure = ?"
_BY_ID: Final = "SELECT seq FROM messages m WHERE account = ?1 AND id = ?2"
_BY_CALL: Final = "SELECT seq FROM messages m WHERE account = ?1 AND call_id = ?2 ORDER BY seq DESC LIMIT 1000"
_TIME_AT: Final = "SELECT seq, created_ms FROM messages WHERE seq >= ? ORDER BY seq LIMIT 1"


class Bounds:
    """The `seq` that a message of the page may have: from `low`, below `high`."""

    def __init__(self, db: apsw.Connection, criteria: ConsoleFilter, below: int | None) -> None:
        newest = db.execute("SELECT coalesce(max(seq), 0) FROM messages").get
        self.low = 0 if criteria.after_ms is None else _first_at(db, criteria.after_ms - NEAR_MS, newest)
        self.high = newest + 1
        if criteria.before_ms is not None:
            self.high = _first_at(db, criteria.before_ms + NEAR_MS, newest)
        if below is not None:
            self.high = min(self.high, below)

    def up_to(self, last: int | None) -> Bounds:
        """The same for messages up to `last`; None: no other limit."""
        bounds = copy.copy(self)
        if last is not None:
            bounds.high = min(bounds.high, last + 1)
        return bounds


def _first_at(db: apsw.Connection, time_ms: int, newest: int) -> int:
    """About the first `seq` of a message that was published at a time or later."""
    low, high = 0, newest + 1
    while low < high:
        middle = (low + high) // 2
        row = db.execute(_TIME_AT, (middle,)).fetchone()
        if row is None or row[1] >= time_ms:
            high = middle
        else:
            low = row[0] + 1
    return low


def of(
    db: apsw.Connection, account: int, criteria: ConsoleFilter, bounds: Bounds, part: Part | None = None
) -> Iterator[int]:
    """`seq` of every message that may match, newest first, within the bounds; some of them do not match.

    `part` is for a filter that is `searchable`; None: of both parts.
    """
    statuses, argument = criteria.statuses(), criteria.searchable()
    if ids := criteria.asks_for(Kind.ID):
        return iter(_with_ids(db, account, ids[0].values, bounds))
    if argument is not None and part is Part.LABELLED:
        return _merged(db, _BY_LABEL, [(account, label) for label in argument.labels], bounds)
    if labels := criteria.asks_for(Kind.LABEL):
        return _merged(db, _BY_LABEL, [(account, label) for label in labels[0].values], bounds)
    if named := _named(db, account, criteria, bounds):
        return iter(named)
    numbers = _numbers(db, account, criteria)
    newest: Mapping[int, int] = {}
    if argument is not None and part is Part.UNLABELLED:
        numbers = _destinations(db, account, None) if numbers is None else numbers
        newest = labelled_arguments.unlabelled(db, argument.path[0], numbers or ())
    if numbers is not None and len(numbers) <= MAX_LINES:
        lines = [
            _line(db, _BY_DESTINATION, (account, number, status), bounds.up_to(newest.get(number)))
            for number in sorted(numbers)
            for status in statuses
        ]
        return _distinct(lines)
    if failures := _failures(db, account, criteria):
        return _merged(db, _BY_FAILURE, [(failure,) for failure in failures], bounds)
    return _merged(db, _BY_STATUS, [(account, status) for status in statuses], bounds)


def of_destinations(db: apsw.Connection, account: int, numbers: Sequence[int], bounds: Bounds) -> Iterator[int]:
    """`seq` of every message to these destinations, at most `MAX_LINES` of them, newest first, within the bounds."""
    lines = [(account, number, status) for number in numbers[:MAX_LINES] for status in Status]
    return _merged(db, _BY_DESTINATION, lines, bounds)


def _named(db: apsw.Connection, account: int, criteria: ConsoleFilter, bounds: Bounds) -> list[int]:
    """The messages that a word alone names by an id."""
    words = criteria.asks_for(Kind.ANY)
    return next((ids for word in words if (ids := _with_ids(db, account, word.values, bounds))), [])


def _numbers(db: apsw.Connection, account: int, criteria: ConsoleFilter) -> set[int] | None:
    """The destinations that may match; None if they are too many, or if all may."""
    numbers: set[int] | None = None
    for condition in criteria.asks_for(Kind.TASK, Kind.URL, Kind.ANY):
        matching = _destinations(db, account, condition)
        if matching is not None:
            numbers = matching if numbers is None else numbers & matching
    return numbers


def _with_ids(db: apsw.Connection, account: int, values: Sequence[str], bounds: Bounds) -> list[int]:
    seqs = {seq for value in values for sql in (_BY_ID, _BY_CALL) for (seq,) in fetch(db, sql, (account, value))}
    return sorted((seq for seq in seqs if bounds.low <= seq < bounds.high), reverse=True)


def _destinations(db: apsw.Connection, account: int, condition: Condition | None) -> set[int] | None:
    """The destinations that fit the condition, all without one; None if they are too many."""
    where = Where("d.account = ?", account)
    if condition is not None:
        add_destination(where, condition)
    rows = fetch(db, f"SELECT d.id FROM insight_destinations d{where} LIMIT ?", (*where.values, MAX_LINES + 1))
    return {number for (number,) in rows} if len(rows) <= MAX_LINES else None


def add_destination(where: Where, condition: Condition) -> None:
    """Require of a destination ``d`` what a condition about its task, its URL or a part of them says."""
    tests: list[str] = []
    values: list[Any] = []
    for value in condition.values:
        if condition.kind is Kind.TASK:
            tests.append("d.task IS ?")
            values.append(value)
        elif condition.kind is Kind.ANY:
            tests.append("(instr(lower(d.url), ?) > 0 OR instr(lower(d.task), ?) > 0)")
            values += [value.lower(), value.lower()]
        elif value.endswith("*"):
            tests.append("substr(d.url, 1, ?) = ?")
            values += [len(value) - 1, value[:-1]]
        else:
            tests.append("d.url = ?")
            values.append(without_secrets(value))
    where.add(f"({' OR '.join(tests)})", *values)


def _failures(db: apsw.Connection, account: int, criteria: ConsoleFilter) -> list[int]:
    """The failures that messages with the error belong to; none if they are too many, or if no error is asked for."""
    asked = criteria.asks_for(Kind.ERROR)
    if not asked:
        return []
    literal, open_ended = failures_with(db, account, asked[0])
    numbers = sorted(literal | open_ended)
    return numbers if len(numbers) <= MAX_LINES else []


def failures_with(db: apsw.Connection, account: int, condition: Condition) -> tuple[set[int], set[int]]:
    """The failures all of whose errors contain a text of the condition, and those of which some errors may."""
    literal: set[int] = set()
    open_ended: set[int] = set()
    texts = [value.lower() for value in condition.values]
    for number, pattern in fetch(db, "SELECT id, pattern FROM insight_failures WHERE account = ?", (account,)):
        lowered = pattern.lower()
        if any(text in lowered for text in texts):
            literal.add(number)
        elif not pattern or "…" in pattern or len(pattern) >= LONG_PATTERN:
            open_ended.add(number)
    return literal, open_ended


LONG_PATTERN: Final = 500
"""Characters of a pattern that may stand for an error that is longer."""


def _merged(db: apsw.Connection, source: str, lines: Sequence[tuple[Any, ...]], bounds: Bounds) -> Iterator[int]:
    """The messages of several lines of an index, newest first, each once."""
    return _distinct([_line(db, source, line, bounds) for line in lines])


def _distinct(lines: Sequence[Iterator[int]]) -> Iterator[int]:
    previous = -1
    for seq in heapq.merge(*lines, reverse=True):
        if seq != previous:
            yield seq
        previous = seq


def _line(db: apsw.Connection, source: str, key: tuple[Any, ...], bounds: Bounds) -> Iterator[int]:
    below, size = bounds.high, _FIRST_PAGE
    while True:
        rows = fetch(
            db,
            f"SELECT seq FROM {source} AND seq >= ? AND seq < ? ORDER BY seq DESC LIMIT ?",
            (*key, bounds.low, below, size),
        )
        yield from (seq for (seq,) in rows)
        if len(rows) < size:
            return
        below, size = rows[-1][0], _PAGE


def as_json(numbers: Sequence[int]) -> str:
    """Numbers as the JSON array that a query reads with ``json_each``."""
    return orjson.dumps(numbers).decode()
