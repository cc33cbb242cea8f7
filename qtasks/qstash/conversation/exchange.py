"""One operation against a QStash service, repeated if that is safe and useful.

Pure code decides everything here. `exchange` is a generator: it yields the next step, an `HttpAttempt` or a `Pause`,
and receives the outcome of that step. The synchronous and the asynchronous client are two short loops around it.

When is repeating safe? If the reply is lost, the client cannot know whether the service executed the request. Such an
operation is therefore repeated only if two executions have the effect of one (`Operation.repeatable`): reads, deletions
by id, and publishes, which carry a deduplication id for this purpose. Every other operation is repeated only if the
service certainly did nothing: no connection was made, or the service answered 429 or 503.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar, cast

from qtasks.errors import BrokerUnreachable, ConfigurationError, QStashError
from qtasks.qstash.conversation import failures
from qtasks.qstash.conversation.operation import Operation
from qtasks.qstash.conversation.transport import AsyncTransport, Reply, Request, SyncTransport

__all__ = [
    "AsyncTransport",
    "Exchange",
    "ExchangeSettings",
    "ExchangeStep",
    "HttpAttempt",
    "Outcome",
    "Pause",
    "Reply",
    "Request",
    "Retry",
    "RetryConfig",
    "SyncTransport",
    "attempts",
    "exchange",
    "is_success",
    "official_backoff",
    "read",
    "retry_after_s",
]

T = TypeVar("T")

DEFAULT_RETRIES = 5
DEFAULT_TOTAL_S = 60.0
DEFAULT_TIMEOUT_S = 60.0
"""Seconds that one attempt may take. The service stores a message and answers; it does not wait for the delivery."""


class RetryConfig(TypedDict, total=False):
    """How the client repeats its own requests, in the form of the official SDK."""

    retries: int
    """Attempts after the first one; 0 for none. Default 5."""
    backoff: Callable[[int], float]
    """Milliseconds to wait before a retry, given the number of retries made so far (0 for the first)."""


def official_backoff(retries_so_far: int) -> float:
    """The official SDK's pauses in milliseconds: 136, 369, 1004, 2730, 7421, ..."""
    return math.exp(1 + min(retries_so_far, 20)) * 50


@dataclass(frozen=True, slots=True)
class Retry:
    """How a client repeats an operation after a network error or an error of the service (429, 5xx).

    `retries` counts attempts after the first. `backoff` gives the pause in milliseconds before a retry, from the number
    of retries made so far; a `Retry-After` of the service replaces it. No attempt begins later than `total_s` seconds
    after the first one did, so an operation ends within `total_s` plus the time of one attempt.
    """

    retries: int = DEFAULT_RETRIES
    backoff: Callable[[int], float] = official_backoff
    total_s: float = DEFAULT_TOTAL_S

    @classmethod
    def of(cls, value: Retry | RetryConfig | Mapping[str, object] | bool | None) -> Retry:
        """Convert the argument `retry` of a client: a `Retry`, a dict, False (no retries), None or True (default)."""
        if isinstance(value, Retry):
            return value
        if value is None or value is True:
            return cls()
        if value is False:
            return cls(retries=0)
        unknown = sorted(set(value) - {"retries", "backoff"})
        if unknown:
            raise ConfigurationError(
                f"retry has no setting {unknown[0]!r}", details={"expected": "`retries` and `backoff` (milliseconds)"}
            )
        config = cast("RetryConfig", value)
        return cls(
            retries=max(0, config.get("retries", DEFAULT_RETRIES)), backoff=config.get("backoff", official_backoff)
        )

    def pause_s(self, retries_so_far: int, outcome: Reply | BrokerUnreachable) -> float:
        """Seconds to wait before the next attempt."""
        asked = retry_after_s(outcome) if isinstance(outcome, Reply) else None
        pause_s = asked if asked is not None else self.backoff(retries_so_far) / 1000
        return max(0.0, pause_s)


@dataclass(frozen=True, slots=True)
class HttpAttempt:
    """A step: send `request`. The driver sends the outcome back into the generator."""

    request: Request
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Pause:
    """A step: wait."""

    seconds: float


ExchangeStep = HttpAttempt | Pause
Outcome = Reply | BrokerUnreachable
Exchange = Generator[ExchangeStep, Outcome | None, T]


@dataclass(frozen=True, slots=True)
class ExchangeSettings:
    """The settings of a client for every exchange: retries, time limit of an attempt, and the clock."""

    retry: Retry
    timeout_s: float
    """Seconds that one attempt may take."""
    monotonic: Callable[[], float]


def exchange(operation: Operation[T], request: Request, settings: ExchangeSettings) -> Exchange[T]:
    """Run one operation: return its value or raise its error. The docstring of this module states the rules."""
    reply = yield from attempts(operation, request, settings)
    return read(operation, request, reply)


def attempts(operation: Operation[Any], request: Request, settings: ExchangeSettings) -> Exchange[Reply]:
    """Repeat `request` until it succeeds, and return the reply; else raise the error of the last attempt."""
    retry, monotonic = settings.retry, settings.monotonic
    attempt = HttpAttempt(request, operation.timeout_s or settings.timeout_s)
    began_s = monotonic()
    maybe_done = False
    made = 0
    while True:
        outcome = yield attempt
        assert outcome is not None, "the driver sends the outcome of every attempt"
        made += 1
        if not _worth_repeating(operation, outcome) or made > retry.retries:
            break
        pause_s = retry.pause_s(made - 1, outcome)
        if not monotonic() - began_s + pause_s <= retry.total_s:  # also when the backoff is not a number
            break
        maybe_done = maybe_done or _may_have_acted(outcome)
        yield Pause(pause_s)
    if isinstance(outcome, BrokerUnreachable):
        raise failures.after_attempts(outcome, made)
    if outcome.status == 404 and operation.absent_is_done and maybe_done:
        return Reply(200, outcome.headers, b"{}")
    if not is_success(outcome.status):
        raise failures.refused(request, outcome)
    return outcome


def read(operation: Operation[T], request: Request, reply: Reply) -> T:
    """The value of a successful reply. Raises ApiError if the operation cannot read the reply."""
    try:
        return operation.read(reply)
    except QStashError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise failures.not_understood(request, reply, error) from None  # its text is in the message


def is_success(status: int) -> bool:
    """True if an HTTP status reports success."""
    return 200 <= status < 300


def retry_after_s(reply: Reply) -> float | None:
    """Seconds to wait, from the header `Retry-After` of a reply; None if it is absent or cannot be read.

    A date is compared with the header `Date` of the same reply, so that the local clock does not matter.
    """
    text = reply.header("Retry-After")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        return _until_date_s(text, reply.header("Date"))
    return seconds if seconds >= 0 else None


def _until_date_s(text: str, now: str | None) -> float | None:
    if now is None:
        return None
    from email.utils import parsedate_to_datetime  # takes milliseconds to import, and is rarely needed

    try:
        return max(0.0, (parsedate_to_datetime(text) - parsedate_to_datetime(now)).total_seconds())
    except (ValueError, TypeError):
        return None


_NOT_IMPLEMENTED = 501
_DID_NOTHING = frozenset({429, 503})
"""Statuses that mean that the service did not begin the operation."""


def _worth_repeating(operation: Operation[Any], outcome: Outcome) -> bool:
    if isinstance(outcome, BrokerUnreachable):
        return operation.repeatable or not outcome.sent
    if outcome.status == 429:
        return not failures.quota_is_spent(outcome)
    if outcome.status < 500 or outcome.status == _NOT_IMPLEMENTED:
        return False
    return operation.repeatable or outcome.status in _DID_NOTHING


def _may_have_acted(outcome: Outcome) -> bool:
    return outcome.sent if isinstance(outcome, BrokerUnreachable) else outcome.status not in _DID_NOTHING
