"""How a task is tried again: a policy as a person writes it, and the expression the broker computes with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError
from qtasks.protocol import durations, expressions
from qtasks.protocol.messages import DEFAULT_RETRIES, MAX_RETRIES

Errors = type[BaseException] | tuple[type[BaseException], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When and how often a failed task is tried again.

    ``RetryPolicy(max=5, initial="10s", factor=2, jitter=0.1, give_up_on=ValueError)`` waits about 10, 20, 40, 80 and
    160 seconds. Raises DefinitionError for values that cannot work.
    """

    max: int = DEFAULT_RETRIES
    """Attempts after the first, 0 to 999."""
    initial: str | float | timedelta = "10s"
    """The wait before the first retry."""
    factor: float = 2.0
    """By how much each wait is longer than the one before; 1 for equal waits."""
    max_delay: str | float | timedelta = "1d"
    """No wait is longer than this, a day at most."""
    jitter: float = 0.0
    """Each wait is changed by up to this part of itself, 0 to 1, up or down, so that failures do not come back at once
    together. It is never shortened to nothing."""
    on: Errors | None = None
    """Only these are tried again, everything else is a dead letter at once. None: every error."""
    give_up_on: Errors = ()
    """These are never tried again, even where `on` names them."""

    def __post_init__(self) -> None:
        """Refuse at once what could only fail later."""
        if type(self.max) is not int or not 0 <= self.max <= MAX_RETRIES:
            raise _error(f"max is {self.max!r}; a whole number from 0 to {MAX_RETRIES} is wanted")
        _check_number("factor", self.factor, 1, 1000)
        _check_number("jitter", self.jitter, 0, 1)
        for name in ("initial", "max_delay"):
            _span_ms(name, getattr(self, name))
        for name in ("on", "give_up_on"):
            _check_errors(name, getattr(self, name))

    @property
    def expression(self) -> str:
        """The waits, without jitter, as the broker computes them: milliseconds over `retried`."""
        initial_ms, most_ms = _span_ms("initial", self.initial), _span_ms("max_delay", self.max_delay)
        if self.factor == 1 or initial_ms == 0:
            return str(min(initial_ms, most_ms))
        factor = f"{self.factor:.6f}".rstrip("0").rstrip(".")
        return f"min({most_ms}, {initial_ms} * pow({factor}, retried))"

    def retries(self, error: BaseException) -> bool:
        """Whether another attempt may follow after `error`."""
        return not isinstance(error, self.give_up_on) and (self.on is None or isinstance(error, self.on))

    @property
    def chooses(self) -> bool:
        """Whether the kind of error matters."""
        return self.on is not None or self.give_up_on != ()


def jittered_ms(expression: str, retried: int, jitter: float, chance: float) -> int:
    """The wait before the next attempt, changed by up to `jitter` of itself; `chance` is from 0 to 1.

    A wait that is meant is at least a millisecond long: rounded to nothing, jitter would make a storm of retries.
    Raises ValueError for an expression that cannot be read.
    """
    wait_ms = expressions.parse(expression).delay_ms(retried)
    if wait_ms == 0:
        return 0
    return min(expressions.MAX_DELAY_MS, max(1, round(wait_ms * (1 + jitter * (2 * chance - 1)))))


def _span_ms(name: str, value: str | float | timedelta) -> int:
    try:
        span_ms = durations.to_ms(value)
    except (ValueError, TypeError) as error:
        raise _error(f"{name}={value!r}: {error}") from None
    if span_ms > expressions.MAX_DELAY_MS:
        raise _error(f"{name}={value!r} is longer than a day, the longest wait there is")
    return span_ms


def _check_number(name: str, value: object, least: float, most: float) -> None:
    if type(value) not in (int, float) or not least <= value <= most:  # type: ignore[operator]  # it is a number
        raise _error(f"{name} is {value!r}; a number from {least} to {most} is wanted")


def _check_errors(name: str, value: object) -> None:
    kinds = value if isinstance(value, tuple) else (value,) if value is not None else ()
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise _error(f"{name} names {kind!r}, which is no class of exceptions")


def _error(text: str) -> DefinitionError:
    return DefinitionError(f"RetryPolicy: {text}", code=ErrorCode.OPTION_INVALID)
