"""The state machine of a message: its legal transitions, and what the outcome of an attempt means. Pure."""

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
"""An error text is stored up to this length, in characters."""


class Stage(IntEnum):
    """The stage of a stored message. The numbers are in the database; from 10 on a stage is final."""

    DUE = 1
    """A claim may take it once its due time has passed. The only stage in the claimable index."""
    PARKED = 2
    """Due, but its destination's host has no room for another attempt."""
    ACTIVE = 3
    """Claimed: an attempt is in flight."""
    QUEUED = 4
    """Waits in its queue: without a slot, or with one while the queue is paused."""
    HELD = 5
    """Due, but waits for its flow-control key."""
    DELIVERED = 10
    FAILED = 11
    CANCELED = 12


FINAL: Final = frozenset({Stage.DELIVERED, Stage.FAILED, Stage.CANCELED})


class Trigger(StrEnum):
    """The cause of a change of a message's stage."""

    CLAIM = auto()
    PARK = auto()
    UNPARK = auto()
    """The broker starts: attempts in flight are counted from zero again."""
    QUEUE = auto()
    """Its delay is over and it joins its queue, or its queue is paused."""
    ADMIT = auto()
    """Its queue gives it a slot."""
    HOLD = auto()
    """Its flow-control key allows no start now."""
    CORRUPT = auto()
    """The stored message no longer matches its checksum: it is never sent."""
    SUCCEED = auto()
    RETRY = auto()
    """The attempt failed and retries remain."""
    FAIL = auto()
    """The attempt failed and no retry follows."""
    CANCEL = auto()
    STOP = auto()
    """The attempt failed after its message was cancelled: no retry follows."""
    INTERRUPT = auto()
    """The broker stopped during the attempt: the attempt is repeated with the same number."""


@dataclass(frozen=True, slots=True)
class Transition:
    """The stage that a trigger leads to, and the log entries to write."""

    to: Stage
    log: tuple[State, ...] = ()


_STARTABLE: Final = (Stage.DUE, Stage.PARKED, Stage.HELD)

TRANSITIONS: Final[Mapping[tuple[Stage, Trigger], Transition]] = {
    **{(stage, Trigger.CLAIM): Transition(Stage.ACTIVE, (State.ACTIVE,)) for stage in _STARTABLE},
    **{(stage, Trigger.CORRUPT): Transition(Stage.FAILED, (State.ERROR, State.FAILED)) for stage in _STARTABLE},
    **{(stage, Trigger.PARK): Transition(Stage.PARKED) for stage in _STARTABLE},
    **{(stage, Trigger.HOLD): Transition(Stage.HELD) for stage in _STARTABLE},
    **{(stage, Trigger.QUEUE): Transition(Stage.QUEUED) for stage in _STARTABLE},
    **{
        (stage, Trigger.CANCEL): Transition(Stage.CANCELED, (State.CANCEL_REQUESTED, State.CANCELED))
        for stage in (*_STARTABLE, Stage.QUEUED)
    },
    (Stage.PARKED, Trigger.UNPARK): Transition(Stage.DUE),
    (Stage.QUEUED, Trigger.ADMIT): Transition(Stage.DUE),
    (Stage.ACTIVE, Trigger.CANCEL): Transition(Stage.ACTIVE, (State.CANCEL_REQUESTED,)),
    (Stage.ACTIVE, Trigger.SUCCEED): Transition(Stage.DELIVERED, (State.DELIVERED,)),
    (Stage.ACTIVE, Trigger.RETRY): Transition(Stage.DUE, (State.ERROR, State.RETRY)),
    (Stage.ACTIVE, Trigger.FAIL): Transition(Stage.FAILED, (State.ERROR, State.FAILED)),
    (Stage.ACTIVE, Trigger.STOP): Transition(Stage.CANCELED, (State.ERROR, State.CANCELED)),
    (Stage.ACTIVE, Trigger.INTERRUPT): Transition(Stage.DUE, (State.ERROR, State.RETRY)),
}
"""Every legal transition (docs/protocol.md 5.1). A pair without an entry cannot happen."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The broker's conclusion from the outcome of an attempt."""

    trigger: Trigger
    error: str | None = None
    due_ms: int | None = None
    """When the next attempt is due; set only for RETRY."""


def evaluate(message: Message, outcome: Response | Failure, *, now_ms: int) -> Evaluation:
    """Decide what `outcome` of the current attempt means for `message` (docs/protocol.md 4.3, 4.6, 5.2)."""
    if isinstance(outcome, Response) and 200 <= outcome.status < 300:
        return Evaluation(Trigger.SUCCEED)
    error = _storable(outcome.error if isinstance(outcome, Failure) else _describe(outcome))
    if is_final(outcome) or message.retried >= message.max_retries:
        return Evaluation(Trigger.FAIL, error)
    return Evaluation(Trigger.RETRY, error, now_ms + retry_delay_ms(message, outcome, now_ms=now_ms))


def is_final(outcome: Response | Failure) -> bool:
    """True if a retry cannot help: the policy refuses the destination, or the response says so.

    Only the header counts: a 489 without it is an ordinary failure (docs/compatibility.md A16).
    """
    if isinstance(outcome, Failure):
        return outcome.final
    return any(
        name.lower() == "upstash-nonretryable-error" and value.strip().lower() == "true"
        for name, value in outcome.headers
    )


def retry_delay_ms(message: Message, outcome: Response | Failure, *, now_ms: int) -> int:
    """Milliseconds until the next attempt: from the response's headers, else the expression, else the backoff."""
    if isinstance(outcome, Response) and (asked_ms := retry_after.delay_ms(outcome.headers, now_ms)) is not None:
        return asked_ms
    if message.options.retry_delay is not None:
        return expressions.parse(message.options.retry_delay).delay_ms(message.retried)
    return backoff_s(message.retried + 1) * 1000


def backoff_s(retry: int) -> int:
    """Seconds before retry number `retry`, which counts from 1: e^(2.5 retry), rounded down, at most one day."""
    return MAX_BACKOFF_S if retry >= 5 else min(MAX_BACKOFF_S, int(math.exp(2.5 * retry)))


def _describe(response: Response) -> str:
    if 300 <= response.status < 400:
        location = next((value for name, value in response.headers if name.lower() == "location"), "nowhere")
        return f"the destination answered {response.status}, a redirect to {location[:200]}; redirects are not followed"
    return f"the destination answered {response.status}"


def _storable(text: str) -> str:
    """`text` in a form that every store accepts: an application's text may contain lone surrogates or NUL."""
    return text[:MAX_ERROR].encode(errors="replace").decode().replace("\x00", "?")
