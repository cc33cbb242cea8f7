"""The attempts of a message, read from its log. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from qtasks.broker.core.interruptions import NOT_COUNTED, STOPPED
from qtasks.broker.ports import UNTIMED, Timing
from qtasks.protocol.messages import Response, State


class HistoryEntry(NamedTuple):
    """One entry of a message's log."""

    n: int
    time_ms: int
    state: State
    error: str | None
    next_ms: int | None
    response: Response | None
    timing: Timing


@dataclass(slots=True)
class PastAttempt:
    """One attempt. Times are the broker's."""

    number: int
    """From 1. An interrupted attempt and the one that repeats it have the same number."""
    due_ms: int | None
    started_ms: int
    ended_ms: int | None = None
    outcome: str = "running"
    """``delivered``, ``failed``, ``interrupted`` or ``running``."""
    error: str | None = None
    response: Response | None = None
    timing: Timing = UNTIMED
    next_ms: int | None = None
    """When the next attempt was due that followed from it."""


def attempts(entries: Iterable[HistoryEntry], *, first_due_ms: int | None, failed_before: int = 0) -> list[PastAttempt]:
    """The attempts in a log, oldest first.

    `first_due_ms` is when the message was due at first, and `failed_before` counts the failed attempts before the first
    of the entries.
    """
    past: list[PastAttempt] = []
    due_ms, number, running = first_due_ms, failed_before + 1, False
    for entry in entries:
        if entry.state is State.ACTIVE:
            past.append(PastAttempt(number, due_ms, entry.time_ms))
            running, due_ms = True, None
        elif entry.state is State.RETRY:
            due_ms = entry.next_ms
            if past:
                past[-1].next_ms = entry.next_ms
        elif running and entry.state in (State.DELIVERED, State.ERROR, State.CANCELED):
            attempt, running = past[-1], False
            attempt.ended_ms, attempt.error, attempt.response = entry.time_ms, entry.error, entry.response
            attempt.timing, attempt.outcome = entry.timing, _outcome(entry)
            number += attempt.outcome == "failed"
    return past


def is_interruption(error: str | None) -> bool:
    """True for the error of an attempt that spent no retry."""
    return error is not None and error.startswith((NOT_COUNTED, STOPPED))


def _outcome(entry: HistoryEntry) -> str:
    if entry.state is State.DELIVERED:
        return "delivered"
    return "interrupted" if is_interruption(entry.error) else "failed"
