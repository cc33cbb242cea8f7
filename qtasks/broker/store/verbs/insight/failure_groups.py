"""Failed attempts in groups: what differs only in numbers, ids, addresses and quoted values is one failure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import apsw

from qtasks.broker.core.observed import error_texts
from qtasks.broker.store.verbs.insight.destinations import CountedDestination, Destinations

SLOT_MS: Final = 600_000
"""Attempts are counted by ten minutes."""
MAX_GROUPS: Final = 2_000
"""Failures of an account with figures of their own; further ones are counted together."""
OTHER_ERRORS: Final = "other errors: there are too many different ones to tell them apart"

_GROUP: Final = "SELECT id FROM insight_failures WHERE account = ? AND fingerprint = ?"
_COUNT: Final = "SELECT count(*) FROM insight_failures WHERE account = ?"
_NOTE: Final = (
    "INSERT INTO insight_failures (account, fingerprint, destination, error, pattern, first_ms, last_ms, sample)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (account, fingerprint) DO UPDATE SET error = excluded.error,"
    " first_ms = min(first_ms, excluded.first_ms), last_ms = max(last_ms, excluded.last_ms), sample = excluded.sample"
    " RETURNING id"
)
_IS_MEMBER: Final = "SELECT 1 FROM insight_failure_messages WHERE failure = ? AND seq = ?"
_JOIN: Final = (
    "INSERT INTO insight_failure_messages (failure, seq, is_last) VALUES (?, ?, ?)"
    " ON CONFLICT DO UPDATE SET is_last = max(is_last, excluded.is_last)"
)
_COUNT_SLOT: Final = (
    "INSERT INTO insight_failure_spans (failure, start_ms, attempts, messages) VALUES (?, ?, ?, ?)"
    " ON CONFLICT DO UPDATE SET attempts = attempts + excluded.attempts, messages = messages + excluded.messages"
)


@dataclass(slots=True)
class FailedAttempt:
    """An attempt that failed. `is_last`: its message failed with it for good."""

    seq: int
    time_ms: int
    error: str
    is_last: bool = False


@dataclass(slots=True)
class _Group:
    account: int
    destination: CountedDestination
    pattern: str
    attempts: list[FailedAttempt] = field(default_factory=list)


class FreshFailures:
    """What one slice of the log adds to the groups."""

    def __init__(self) -> None:
        self._groups: dict[tuple[int, str], _Group] = {}

    def add(self, account: int, destination: CountedDestination, attempt: FailedAttempt) -> None:
        """Add an attempt; the caller may mark it as the last one later."""
        pattern = error_texts.pattern_of(attempt.error)
        key = account, error_texts.fingerprint(destination.url, pattern)
        group = self._groups.setdefault(key, _Group(account, destination, pattern))
        group.attempts.append(attempt)

    def write(self, db: apsw.Connection, destinations: Destinations) -> None:
        """Add them to what is stored."""
        for (account, fingerprint), group in self._groups.items():
            if db.execute(_GROUP, (account, fingerprint)).get is None and db.execute(_COUNT, (account,)).get >= (
                MAX_GROUPS
            ):
                others = destinations.of(account, "", is_task=False)
                for attempt in group.attempts:
                    attempt.error = OTHER_ERRORS
                _write(db, error_texts.fingerprint("", ""), _Group(account, others, "", group.attempts))
            else:
                _write(db, fingerprint, group)


def _write(db: apsw.Connection, fingerprint: str, group: _Group) -> None:
    begin, end = group.attempts[0], group.attempts[-1]
    note = (begin.time_ms, max(attempt.time_ms for attempt in group.attempts), end.seq)
    failure = db.execute(_NOTE, (group.account, fingerprint, group.destination.id, end.error, group.pattern, *note)).get
    slots: dict[int, tuple[int, int]] = {}
    for attempt in group.attempts:
        is_new = db.execute(_IS_MEMBER, (failure, attempt.seq)).get is None
        db.execute(_JOIN, (failure, attempt.seq, attempt.is_last))
        start_ms = attempt.time_ms // SLOT_MS * SLOT_MS
        attempts, messages = slots.get(start_ms, (0, 0))
        slots[start_ms] = attempts + 1, messages + is_new
    for start_ms, counts in slots.items():
        db.execute(_COUNT_SLOT, (failure, start_ms, *counts))
