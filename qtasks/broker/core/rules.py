"""The state machine of a message: its legal transitions, and what the outcome of an attempt means. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum, auto
from typing import Final

from qtasks.broker.core import interruptions
from qtasks.broker.core.interruptions import UNTROUBLED, Sign, Situation
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
    """Due, but its lot has no room: its host has no room for another attempt, or its URL prefix refuses."""
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
    QUEUE = auto()
    """Its delay is over and it joins its queue, or its queue is paused."""
    ADMIT = auto()
    """Its queue gives it a slot."""
    HOLD = auto()
    """Its flow-control key allows no start now."""
    CORRUPT = auto()
    """What is stored of the message no longer matches its checksums: it is not sent any more."""
    CRASH_LOOP = auto()
    """The broker ended again and again during its attempts: it is not sent any more."""
    SUCCEED = auto()
    RETRY = auto()
    """The attempt failed and retries remain."""
    FAIL = auto()
    """The attempt failed and no retry follows."""
    CANCEL = auto()
    STOP = auto()
    """The attempt failed after its message was cancelled: no retry follows."""
    INTERRUPT = auto()
    """The attempt did not count, or the broker stopped during it: it is repeated with the same number.

    The log gets one interruption of a message a minute; of the others it has no entry, not even ACTIVE.
    """


@dataclass(frozen=True, slots=True)
class Transition:
    """The stage that a trigger leads to, and the log entries to write."""

    to: Stage
    log: tuple[State, ...] = ()


STARTABLE: Final = (Stage.DUE, Stage.PARKED, Stage.HELD)
"""The stages that a claim takes messages from."""

TRANSITIONS: Final[Mapping[tuple[Stage, Trigger], Transition]] = {
    **{(stage, Trigger.CLAIM): Transition(Stage.ACTIVE, (State.ACTIVE,)) for stage in STARTABLE},
    **{
        (stage, Trigger.CORRUPT): Transition(Stage.FAILED, (State.ERROR, State.FAILED))
        for stage in (*STARTABLE, Stage.QUEUED, Stage.ACTIVE)
    },
    **{(stage, Trigger.CRASH_LOOP): Transition(Stage.FAILED, (State.ERROR, State.FAILED)) for stage in STARTABLE},
    **{(stage, Trigger.PARK): Transition(Stage.PARKED) for stage in STARTABLE},
    **{(stage, Trigger.HOLD): Transition(Stage.HELD) for stage in STARTABLE},
    **{(stage, Trigger.QUEUE): Transition(Stage.QUEUED) for stage in STARTABLE},
    **{
        (stage, Trigger.CANCEL): Transition(Stage.CANCELED, (State.CANCEL_REQUESTED, State.CANCELED))
        for stage in (*STARTABLE, Stage.QUEUED)
    },
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
    """When the next attempt is due; set for RETRY. INTERRUPT without it: as soon as the URL prefix answers."""
    sign: Sign = Sign.NONE
    """What the outcome says about the URL prefix of the message."""
    since_ms: int | None = None
    """Since when the message has been interrupted; None if this attempt counted."""
    cuts: int = 0
    """How many of these interruptions cut a run."""
    is_expired: bool = False
    """The message has used up its allowance: its attempts count, and it waits for no probe any more."""


def evaluate(
    message: Message, outcome: Response | Failure, *, now_ms: int, offset_ms: int = 0, situation: Situation = UNTROUBLED
) -> Evaluation:
    """Decide what `outcome` of the current attempt means for `message` (docs/protocol.md 4.3, 4.6, 5.2, 5.14).

    The wall time, which dates in a response are compared with, is `now_ms` plus `offset_ms`.
    """
    if (success := success_in(outcome, may_wait=message.options.interrupted_for_ms is not None)) is not None:
        return success
    assessment = interruptions.assess(message, outcome, situation, now_ms=now_ms, offset_ms=offset_ms)
    error = outcome.error if isinstance(outcome, Failure) else _describe(outcome)
    if not assessment.counts:
        trigger, error, due_ms = Trigger.INTERRUPT, f"{interruptions.NOT_COUNTED}: {error}", assessment.due_ms
    elif is_final(outcome) or message.retried >= message.max_retries:
        return Evaluation(Trigger.FAIL, _storable(error), sign=assessment.sign, is_expired=assessment.is_expired)
    else:
        trigger, due_ms = Trigger.RETRY, now_ms + retry_delay_ms(message, outcome, wall_ms=now_ms + offset_ms)
    is_over = assessment.counts and not assessment.is_cut and not assessment.is_expired
    return Evaluation(
        trigger,
        _storable(error),
        due_ms,
        sign=assessment.sign,
        since_ms=None if is_over else now_ms if situation.since_ms is None else situation.since_ms,
        cuts=0 if is_over else situation.cuts + assessment.is_cut,
        is_expired=assessment.is_expired,
    )


_SUCCESS: Final = {
    may_wait: Evaluation(Trigger.SUCCEED, sign=Sign.ANSWERS if may_wait else Sign.NONE) for may_wait in (False, True)
}


def success_in(outcome: Response | Failure, *, may_wait: bool) -> Evaluation | None:
    """What `evaluate` decides for a 2xx; None for every other outcome, which takes the whole message to decide.

    `may_wait`: the message has an allowance for interruptions.
    """
    return _SUCCESS[may_wait] if isinstance(outcome, Response) and 200 <= outcome.status < 300 else None


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


def retry_delay_ms(message: Message, outcome: Response | Failure, *, wall_ms: int) -> int:
    """Milliseconds until the next attempt: from the response's headers, else the expression, else the backoff."""
    if isinstance(outcome, Response) and (asked_ms := retry_after.delay_ms(outcome.headers, wall_ms)) is not None:
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
