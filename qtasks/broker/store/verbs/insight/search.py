"""Searches messages and dead letters by a filter of the console, newest first."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import apsw

from qtasks.broker.core.message_rows import hides_body
from qtasks.broker.core.observed import arguments, error_texts
from qtasks.broker.core.observed.message_filter import Condition, ConsoleFilter, Kind
from qtasks.broker.store.verbs.insight import candidates
from qtasks.broker.store.verbs.insight.candidates import Part
from qtasks.broker.store.verbs.insight.index import IS_TASK
from qtasks.broker.store.verbs.insight.labelled_arguments import LABELS
from qtasks.broker.store.verbs.insight.shown import READ_BYTES
from qtasks.broker.store.verbs.reads.filters import Where
from qtasks.broker.store.verbs.rows import fetch, first
from qtasks.protocol.labels.argument_labels import name_in
from qtasks.protocol.messages import State

SCAN: Final = 2_000
"""Messages that one call looks at, at most: some milliseconds."""
_FEWEST: Final = 5
"""Messages that one call looks at in any case."""

_FROM: Final = (
    "FROM json_each(?) j CROSS JOIN messages m ON m.seq = j.value"
    " LEFT JOIN insight_messages i ON i.seq = m.seq LEFT JOIN insight_destinations d ON d.id = i.destination"
)
_COLUMNS: Final = {Kind.QUEUE: "m.queue", Kind.KEY: "m.flow_key", Kind.SCHEDULE: "m.schedule_id"}
_ERRORS: Final = (
    f"SELECT l.error, substr(l.response_body, 1, {READ_BYTES}), {IS_TASK} FROM log l JOIN messages m USING (seq)"
    f" WHERE l.seq = ? AND l.state IN ('{State.ERROR}', '{State.FAILED}')"
)
_BODY: Final = "SELECT b.body, m.options FROM bodies b JOIN messages m USING (seq) WHERE b.seq = ?"
_GROUPS: Final = "SELECT failure FROM insight_failure_messages WHERE seq = ?"
_DEAD_LETTERS: Final = (
    "SELECT seq, failed_ms, n, response_status FROM dead_letters"
    " WHERE account = ? AND (failed_ms, n) < (?, ?) ORDER BY failed_ms DESC, n DESC LIMIT ?"
)
_END: Final = (2**62, 0)
_ASCII: Final = re.compile(r"[0-9A-Za-z _.,:;()=+*-]+")
"""The same of an error: JSON writes these characters as they are."""
_PLAIN: Final = re.compile(r"[0-9A-Za-z_-]+")
"""A value that a body must contain as it is, wherever it is an argument: most bodies need not be read as JSON."""


class Matches(NamedTuple):
    """What one call has found."""

    seqs: list[int]
    below: int | None
    """Go on with the messages below this `seq`; None: there are no more."""
    looked_at: int


class DeadMatch(NamedTuple):
    """A dead letter that matches."""

    seq: int
    failed_ms: int
    n: int
    response_status: int

    @property
    def id(self) -> str:
        """The id that clients see."""
        return f"{self.failed_ms}-{self.n}"


class DeadMatches(NamedTuple):
    """What one call has found of the dead letters."""

    letters: list[DeadMatch]
    before: tuple[int, int] | None
    """Go on with those before this key; None: there are no more."""
    looked_at: int


def messages(
    db: apsw.Connection,
    account: int,
    criteria: ConsoleFilter,
    *,
    below: int | None,
    count: int,
    part: Part | None = None,
    scan: int = SCAN,
) -> Matches:
    """Up to `count` messages that match, newest first, of up to `scan` that are looked at.

    `part` is for a filter that is `searchable`; None: of both parts.
    """
    scan = _bounded(scan, criteria)
    bounds = candidates.Bounds(db, criteria, below)
    test = _Test(db, account, criteria, part)
    stream = candidates.of(db, account, criteria, bounds, part)
    seqs: list[int] = []
    looked_at, last = 0, None
    size = count + 1
    while looked_at < scan and (some := list(itertools.islice(stream, min(size, scan - looked_at)))):
        for seq in test.those_of(some):
            if len(seqs) == count:
                return Matches(seqs, seqs[-1], looked_at)
            seqs.append(seq)
        looked_at, last, size = looked_at + len(some), some[-1], 512
    is_over = looked_at < scan or next(stream, None) is None
    return Matches(seqs, None if is_over else last, looked_at)


def dead_letters(
    db: apsw.Connection,
    account: int,
    criteria: ConsoleFilter,
    *,
    before: tuple[int, int] | None,
    count: int,
    scan: int = SCAN,
) -> DeadMatches:
    """As `messages`, for dead letters, by the time at which they failed."""
    scan = _bounded(scan, criteria)
    test = _Test(db, account, criteria)
    letters = [DeadMatch._make(row) for row in fetch(db, _DEAD_LETTERS, (account, *(before or _END), scan + 1))]
    matching: list[DeadMatch] = []
    looked_at = 0
    for some in _portions(letters[:scan]):
        fitting = set(test.those_of([letter.seq for letter in some]))
        for letter in some:
            if letter.seq in fitting:
                if len(matching) == count:
                    return DeadMatches(matching, _key(matching[-1]), looked_at)
                matching.append(letter)
            looked_at += 1
    return DeadMatches(matching, _key(letters[scan - 1]) if len(letters) > scan else None, looked_at)


def _bounded(scan: int, criteria: ConsoleFilter) -> int:
    """How many messages one call looks at: fewer if it looks for many texts in bodies, so that others read between."""
    texts = sum(len(condition.values) for condition in criteria.of(Kind.ARGUMENT, Kind.ERROR))
    return min(scan, max(_FEWEST, scan // max(1, texts)))


def _portions(letters: Sequence[DeadMatch]) -> Iterator[Sequence[DeadMatch]]:
    return (letters[start : start + 512] for start in range(0, len(letters), 512))


def _key(letter: DeadMatch) -> tuple[int, int]:
    return letter.failed_ms, letter.n


class _Test:
    """Tells which messages match a filter."""

    def __init__(self, db: apsw.Connection, account: int, criteria: ConsoleFilter, part: Part | None = None) -> None:
        self._db = db
        self._where = _conditions(account, criteria)
        argument = criteria.searchable()
        self._further: list[Callable[[int], bool]] = [
            self._error_test(account, condition) for condition in criteria.of(Kind.ERROR)
        ]
        if argument is not None and part is Part.UNLABELLED:
            self._further.append(lambda seq: not self._labels(seq, argument.path[0]))
        self._further += [self._argument_test(condition) for condition in criteria.of(Kind.ARGUMENT)]

    def those_of(self, seqs: Sequence[int]) -> list[int]:
        """Those of `seqs` that match, in their order."""
        where = self._where
        rows = fetch(self._db, f"SELECT m.seq {_FROM}{where}", (candidates.as_json(seqs), *where.values))
        matching = {seq for (seq,) in rows}
        return [seq for seq in seqs if seq in matching and all(fits(seq) for fits in self._further)]

    def _error_test(self, account: int, condition: Condition) -> Callable[[int], bool]:
        literal, open_ended = candidates.failures_with(self._db, account, condition)
        texts = [value.lower() for value in condition.values]

        def fits(seq: int) -> bool:
            groups = {failure for (failure,) in fetch(self._db, _GROUPS, (seq,))}
            has_error = bool(groups & literal) or (bool(groups & open_ended) and self._has_error(seq, texts))
            return has_error is not condition.negated

        return fits

    def _has_error(self, seq: int, texts: Sequence[str]) -> bool:
        return any(
            text in error_texts.text_of(error, body, is_task=bool(is_task)).lower()
            for error, body, is_task in fetch(self._db, _ERRORS, (seq,))
            for text in texts
        )

    def _argument_test(self, condition: Condition) -> Callable[[int], bool]:
        chosen = set(condition.labels) if condition.has_labels else set()

        def fits(seq: int) -> bool:
            labels = self._labels(seq, condition.path[0]) if chosen else set()
            return (bool(labels & chosen) if labels else self._has_argument(seq, condition)) is not condition.negated

        return fits

    def _labels(self, seq: int, name: str) -> set[str]:
        """The labels of the argument that a message has: of one that has any, they say all about the argument."""
        return {label for (label,) in fetch(self._db, LABELS, (seq,)) if name_in(label) == name}

    def _has_argument(self, seq: int, condition: Condition) -> bool:
        """Looks into the body of a message, unless its publisher hides it: a match would tell what is in it."""
        row = first(self._db, _BODY, (seq,))
        if row is None or hides_body(row[1]):
            return False
        return arguments.has_value(row[0] or b"", condition.path, condition.values)


def _conditions(account: int, criteria: ConsoleFilter) -> Where:
    """What SQL can test of a filter."""
    where = Where("+m.account = ?", account)
    where.between("m.created_ms", criteria.after_ms, criteria.before_ms)
    if criteria.of(Kind.STATUS):
        statuses = ", ".join(str(status.value) for status in criteria.statuses())
        where.add(f"i.status IN ({statuses})")
    for condition in criteria.conditions:
        test = Where("1")
        marks = ", ".join("?" * len(condition.values))
        if condition.kind in (Kind.TASK, Kind.URL):
            candidates.add_destination(test, condition)
        elif condition.kind is Kind.ANY:
            candidates.add_destination(test, condition)
            test = Where(f"({test.text} OR m.id IN ({marks}) OR m.call_id IN ({marks}))", *test.values)
            test.values += [*condition.values, *condition.values]
        elif condition.kind is Kind.ID:
            test.add(f"(m.id IN ({marks}) OR m.call_id IN ({marks}))", *condition.values, *condition.values)
        elif condition.kind is Kind.LABEL:
            test.add(f"EXISTS (SELECT 1 FROM labels t WHERE t.seq = m.seq AND t.label IN ({marks}))", *condition.values)
        elif condition.kind in _COLUMNS:
            test.add(f"{_COLUMNS[condition.kind]} IN ({marks})", *condition.values)
        elif condition.kind is Kind.ARGUMENT and not condition.negated and all(map(_PLAIN.fullmatch, condition.values)):
            _add_argument(test, condition, marks)
        elif condition.kind is Kind.ERROR and not condition.negated and all(map(_ASCII.fullmatch, condition.values)):
            part = "instr(lower(l.error), ?) > 0 OR instr(lower(CAST(l.response_body AS TEXT)), ?) > 0"
            tests = " OR ".join(part for _ in condition.values)
            texts = [value.lower() for value in condition.values for _ in range(2)]
            test.add(f"EXISTS (SELECT 1 FROM log l WHERE l.seq = m.seq AND ({tests}))", *texts)
        else:
            continue
        where.add(f"coalesce({test.text}, 0) = {int(not condition.negated)}", *test.values)
    return where


def _add_argument(test: Where, condition: Condition, marks: str) -> None:
    """Require that a message has a value of the condition anywhere in its body, or in a label."""
    tests = " OR ".join("instr(b.body, ?) > 0" for _ in condition.values)
    text = f"EXISTS (SELECT 1 FROM bodies b WHERE b.seq = m.seq AND ({tests}))"
    values: list[object] = [value.encode() for value in condition.values]
    if condition.has_labels:
        text = f"({text} OR EXISTS (SELECT 1 FROM labels t WHERE t.seq = m.seq AND t.label IN ({marks})))"
        values += condition.labels
    test.add(text, *values)
