"""Interruptions: attempts that say nothing about their message (docs/protocol.md 5.14). Pure.

A message with an allowance for interruptions spends no retry on an attempt that was refused or cut before an answer,
because nothing but the destination's absence caused it. An attempt that this broker could not even make counts for no
message.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from qtasks.broker.ports import Failure
from qtasks.protocol import retry_after
from qtasks.protocol.headers import DISPATCHER_HEADER, INTERRUPTED_HEADER
from qtasks.protocol.messages import Headers, Message, Response

QUICK_FOR_MS: Final = 60_000
"""For this long a prefix that refuses is probed at least twice a second."""
PATIENCE_MS: Final = 250
"""After this time a probe without an answer does not hold up the others: twice as many messages may start beside it."""
NOTED_EVERY_MS: Final = 60_000
"""The log of a message gets at most one interruption in this time."""

CRASHED_FROM_CLAIMS: Final = 2
"""A message with this many claims in a row that no outcome followed is next tried while no other such one runs."""
MOST_OPEN_CLAIMS: Final = 10
"""However many retries a message has, it is not sent any more after this many claims in a row without an outcome."""

NOT_COUNTED: Final = "interrupted, no retry is spent"
STOPPED: Final = "the broker stopped during this attempt; it is made again"
"""With these texts begin the errors of attempts that count for no retry."""

_PAUSE_MS: Final = (50, 500, 5_000)
"""Pauses between two probes: the first, the longest in the first minute, the longest of all."""
_BUSY_MS: Final = (100, 1_000, 60_000)
"""How long a message waits that runs elsewhere: at least, by default, and at most."""
_OWN_PAUSE_MS: Final = (100, 5_000)
"""Pauses of a message that this broker could not send: the first, and the longest."""
_PROXY_STATUSES: Final = frozenset({502, 503, 504})
"""What a proxy answers in front of a dead application."""


class Sign(Enum):
    """What the outcome of an attempt says about the URL prefix of its message."""

    NONE = auto()
    ANSWERS = auto()
    """It answered, with any status: something alive is there."""
    REFUSES = auto()


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known, beside the message, when the outcome of one of its attempts is assessed."""

    since_ms: int | None = None
    """Since when the message has been interrupted, or has waited for a probe; None: it has not."""
    cuts: int = 0
    """How many of the interruptions since then cut a run."""
    is_alone: bool = False
    """Nothing else of its prefix is in flight."""
    is_probe: bool = False
    """The prefix refused when the attempt began."""
    has_dispatcher: bool = False
    """The prefix has answered as a dispatcher of the framework."""


UNTROUBLED: Final = Situation()
"""The situation of a message that nothing has interrupted."""
WITH_DISPATCHER: Final = Situation(has_dispatcher=True)
"""The same, where a dispatcher has answered before."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """Whether an attempt was an interruption, and what that changes."""

    sign: Sign = Sign.NONE
    counts: bool = True
    """False: an interruption. It spends no retry."""
    due_ms: int | None = None
    """When the message may start again; None: as soon as its prefix answers, in its old place."""
    is_cut: bool = False
    """A run of the message was cut, and the message may be the reason."""
    is_expired: bool = False
    """It would have been an interruption, but the allowance of the message is used up."""


def assess(
    message: Message, outcome: Response | Failure, situation: Situation, *, now_ms: int, offset_ms: int = 0
) -> Assessment:
    """Decide whether `outcome` of an attempt of `message` was an interruption. See `rules.evaluate`."""
    since_ms = now_ms if situation.since_ms is None else situation.since_ms
    if isinstance(outcome, Failure) and not outcome.attempted:
        return Assessment(counts=False, due_ms=now_ms + _own_pause_ms(now_ms - since_ms))
    if message.options.interrupted_for_ms is None:
        return Assessment()
    reason = None if isinstance(outcome, Failure) else _header(outcome.headers, INTERRUPTED_HEADER)
    is_proxy = _is_proxy(outcome, situation)
    if isinstance(outcome, Failure):
        sign = Sign.REFUSES if outcome.interrupted else Sign.NONE
    else:
        sign = Sign.REFUSES if is_proxy or reason == "draining" else Sign.ANSWERS
    if sign is not Sign.REFUSES and reason is None:
        return Assessment(sign)
    if now_ms - since_ms >= message.options.interrupted_for_ms:
        return Assessment(sign, is_expired=True)
    # A proxy that answers for an application known to be away says nothing about the message.
    is_cut = outcome.mid_run if isinstance(outcome, Failure) else is_proxy and not situation.is_probe
    if is_cut and situation.is_alone:
        return Assessment(sign, is_cut=True)
    due_ms = None
    if isinstance(outcome, Response) and sign is Sign.ANSWERS:
        due_ms = now_ms + _busy_ms(outcome.headers, now_ms + offset_ms)
    elif is_proxy and situation.cuts and now_ms - since_ms > QUICK_FOR_MS:
        due_ms = now_ms  # the next probe is another message: behind a proxy, this one could be what ends the process
    return Assessment(sign, counts=False, due_ms=due_ms, is_cut=is_cut)


def max_open_claims(max_retries: int) -> int:
    """After how many claims in a row that the broker did not survive a message with these retries is a dead letter.

    The first ones prove nothing, because others were in flight too; each later one counts as a failed attempt.
    """
    return min(CRASHED_FROM_CLAIMS + 1 + max_retries, MOST_OPEN_CLAIMS)


def probe_pause_ms(down_ms: int) -> int:
    """The pause before the next probe of a prefix that has refused for `down_ms`: it grows with that time."""
    first, quick, longest = _PAUSE_MS
    return max(min(max(down_ms // 2, first), quick), min(down_ms * quick // QUICK_FOR_MS, longest))


def has_dispatcher(outcome: Response | Failure) -> bool:
    """True if the framework's dispatcher gave this answer."""
    return isinstance(outcome, Response) and _header(outcome.headers, DISPATCHER_HEADER) is not None


def is_handed_back(headers: Headers) -> bool:
    """True if an answer says that nothing of the request has run, at no fault of its own."""
    return _header(headers, INTERRUPTED_HEADER) is not None


def _is_proxy(outcome: Response | Failure, situation: Situation) -> bool:
    """True for the answer of a proxy in the place of a dispatcher that has answered before."""
    return (
        isinstance(outcome, Response)
        and outcome.status in _PROXY_STATUSES
        and situation.has_dispatcher
        and not has_dispatcher(outcome)
    )


def _own_pause_ms(waited_ms: int) -> int:
    shortest, longest = _OWN_PAUSE_MS
    return min(max(waited_ms // 2, shortest), longest)


def _busy_ms(headers: Headers, wall_ms: int) -> int:
    shortest, usual, longest = _BUSY_MS
    asked_ms = retry_after.delay_ms(headers, wall_ms)
    return usual if asked_ms is None else min(max(asked_ms, shortest), longest)


def _header(headers: Headers, name: str) -> str | None:
    """The value of a header line in lower case; None without one."""
    name = name.lower()
    return next((value.strip().lower() for line, value in headers if line.lower() == name), None)
