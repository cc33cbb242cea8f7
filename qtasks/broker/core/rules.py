"""Pure decisions: the table of legal moves of a message, and what the outcome of an attempt does to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum, auto
from typing import Final

from qtasks.broker.ports import Failure
from qtasks.protocol import expressions, retry_after
from qtasks.protocol.messages import Message, Response, State

MAX_BACKOFF_S: Final = 86_400
MAX_ERROR: Final = 2_000
"""Characters of an error text that are kept."""


class Stage(IntEnum):
    """Where a stored message stands. The numbers are in the database: below 10 it waits or runs, from 10 it is over."""

    DUE = 1
    """Claimable once its due time has come; the only stage that is in the claimable index."""
    PARKED = 2
    """Due, but held back by a cap on its destination's host."""
    ACTIVE = 3
    """Claimed: an attempt is under way."""
    QUEUED = 4
    """In the line of its queue: without a slot, or with one while the queue is paused."""
    HELD = 5
    """Due, but in the line of its flow-control key."""
    DELIVERED = 10
    FAILED = 11
    CANCELED = 12


FINAL: Final = frozenset({Stage.DELIVERED, Stage.FAILED, Stage.CANCELED})


class Event(StrEnum):
    """What can happen to a message."""

    CLAIM = auto()
    PARK = auto()
    UNPARK = auto()
    """A start forgets what was held back: the caps are counted anew."""
    QUEUE = auto()
    """Its delay is over and it joins its queue, or its queue is paused."""
    ADMIT = auto()
    """Its queue has a slot for it."""
    HOLD = auto()
    """Its flow-control key lets nothing start now."""
    CORRUPT = auto()
    """What is stored no longer matches its checksum: it is never sent."""
    SUCCEED = auto()
    RETRY = auto()
    """The attempt failed and there are retries left."""
    FAIL = auto()
    """The attempt failed for good."""
    CANCEL = auto()
    STOP = auto()
    """The attempt failed, and somebody had asked to cancel meanwhile."""
    INTERRUPT = auto()
    """The broker stopped during the attempt: it is made again, with the same number."""


@dataclass(frozen=True, slots=True)
class Move:
    """The stage an event leads to, and the log entries it leaves."""

    to: Stage
    log: tuple[State, ...] = ()


_STARTABLE: Final = (Stage.DUE, Stage.PARKED, Stage.HELD)

MOVES: Final[Mapping[tuple[Stage, Event], Move]] = {
    **{(stage, Event.CLAIM): Move(Stage.ACTIVE, (State.ACTIVE,)) for stage in _STARTABLE},
    **{(stage, Event.CORRUPT): Move(Stage.FAILED, (State.ERROR, State.FAILED)) for stage in _STARTABLE},
    **{(stage, Event.PARK): Move(Stage.PARKED) for stage in _STARTABLE},
    **{(stage, Event.HOLD): Move(Stage.HELD) for stage in _STARTABLE},
    **{(stage, Event.QUEUE): Move(Stage.QUEUED) for stage in _STARTABLE},
    **{
        (stage, Event.CANCEL): Move(Stage.CANCELED, (State.CANCEL_REQUESTED, State.CANCELED))
        for stage in (*_STARTABLE, Stage.QUEUED)
    },
    (Stage.PARKED, Event.UNPARK): Move(Stage.DUE),
    (Stage.QUEUED, Event.ADMIT): Move(Stage.DUE),
    (Stage.ACTIVE, Event.CANCEL): Move(Stage.ACTIVE, (State.CANCEL_REQUESTED,)),
    (Stage.ACTIVE, Event.SUCCEED): Move(Stage.DELIVERED, (State.DELIVERED,)),
    (Stage.ACTIVE, Event.RETRY): Move(Stage.DUE, (State.ERROR, State.RETRY)),
    (Stage.ACTIVE, Event.FAIL): Move(Stage.FAILED, (State.ERROR, State.FAILED)),
    (Stage.ACTIVE, Event.STOP): Move(Stage.CANCELED, (State.ERROR, State.CANCELED)),
    (Stage.ACTIVE, Event.INTERRUPT): Move(Stage.DUE, (State.ERROR, State.RETRY)),
}
"""Every legal move (docs/protocol.md 5.1). A pair that is missing here cannot happen."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an attempt's outcome does to its message."""

    event: Event
    error: str | None = None
    due_ms: int | None = None
    """When the next attempt is due; set for RETRY alone."""


def judge(message: Message, outcome: Response | Failure, *, now_ms: int) -> Verdict:
    """Decide what `outcome` of the current attempt means for `message` (docs/protocol.md 4.3, 4.6, 5.2)."""
    if isinstance(outcome, Response) and 200 <= outcome.status < 300:
        return Verdict(Event.SUCCEED)
    error = _storable(outcome.error if isinstance(outcome, Failure) else _describe(outcome))
    if is_final(outcome) or message.retried >= message.max_retries:
        return Verdict(Event.FAIL, error)
    return Verdict(Event.RETRY, error, now_ms + retry_delay_ms(message, outcome, now_ms=now_ms))


def is_final(outcome: Response | Failure) -> bool:
    """Whether trying again is pointless: a refused destination, or an answer that says so.

    The header alone decides: 489 without it is an ordinary failure (docs/compatibility.md A16).
    """
    if isinstance(outcome, Failure):
        return outcome.final
    return any(
        name.lower() == "upstash-nonretryable-error" and value.strip().lower() == "true"
        for name, value in outcome.headers
    )


def retry_delay_ms(message: Message, outcome: Response | Failure, *, now_ms: int) -> int:
    """Milliseconds until the next attempt: the answer's own wish, else the expression, else the backoff."""
    if isinstance(outcome, Response) and (asked := retry_after.delay_ms(outcome.headers, now_ms)) is not None:
        return asked
    if message.options.retry_delay is not None:
        return expressions.parse(message.options.retry_delay).delay_ms(message.retried)
    return backoff_s(message.retried + 1) * 1000


def backoff_s(retry: int) -> int:
    """Seconds before retry number `retry` (1 for the first): e^(2.5 n), truncated, at most a day."""
    return MAX_BACKOFF_S if retry >= 5 else min(MAX_BACKOFF_S, int(math.exp(2.5 * retry)))


def _describe(response: Response) -> str:
    if 300 <= response.status < 400:
        location = next((value for name, value in response.headers if name.lower() == "location"), "nowhere")
        return f"the destination answered {response.status}, a redirect to {location[:200]}; redirects are not followed"
    return f"the destination answered {response.status}"


def _storable(text: str) -> str:
    """`text` as every store can keep it: an application's own words may hold half a surrogate pair, or NUL."""
    return text[:MAX_ERROR].encode(errors="replace").decode().replace("\x00", "?")
