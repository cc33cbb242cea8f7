"""Retry policies: what a user declares, and the expression from which the broker computes the waits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError
from qtasks.protocol import durations, expressions
from qtasks.protocol.messages import DEFAULT_RETRIES, MAX_RETRIES

ErrorTypes = type[BaseException] | tuple[type[BaseException], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How many times a failed task is retried, after which waits, and after which errors.

    ``RetryPolicy(max=5, initial="10s", factor=2, jitter=0.1, give_up_on=ValueError)`` waits about 10, 20, 40, 80 and
    160 seconds. Raises DefinitionError for a value out of range.
    """

    max: int = DEFAULT_RETRIES
    """Attempts after the first, 0 to 999; 3 by default."""
    initial: str | float | timedelta = "10s"
    """Wait before the first retry: ``"1h30m"``, seconds, or a timedelta; 10 seconds by default, a day at most."""
    factor: float = 2.0
    """Each wait is the previous one times this factor, 1 to 1000; 2 by default. 1 makes all waits equal."""
    max_delay: str | float | timedelta = "1d"
    """Longest wait; a day by default, which is also the maximum."""
    jitter: float = 0.0
    """Changes each wait at random by up to this part of it, 0 to 1, up or down; 0 by default. It keeps calls that
    failed together from retrying together. A wait never becomes shorter than a millisecond."""
    on: ErrorTypes | None = None
    """Retry only after these exceptions; any other makes the call a dead letter at once. None, the default: retry after
    every exception."""
    give_up_on: ErrorTypes = ()
    """Never retry after these exceptions, even if `on` names them; none by default."""

    def __post_init__(self) -> None:
        """Validate all values. Raises DefinitionError."""
        if type(self.max) is not int or not 0 <= self.max <= MAX_RETRIES:
            raise _error(f"max is {self.max!r}; expected a whole number from 0 to {MAX_RETRIES}")
        _check_number("factor", self.factor, 1, 1000)
        _check_number("jitter", self.jitter, 0, 1)
        for name in ("initial", "max_delay"):
            _delay_ms(name, getattr(self, name))
        for name in ("on", "give_up_on"):
            _check_errors(name, getattr(self, name))

    @property
    def expression(self) -> str:
        """The waits without jitter as an expression for the broker: milliseconds over `retried`."""
        initial_ms, limit_ms = _delay_ms("initial", self.initial), _delay_ms("max_delay", self.max_delay)
        if self.factor == 1 or initial_ms == 0:
            return str(min(initial_ms, limit_ms))
        factor = f"{self.factor:.6f}".rstrip("0").rstrip(".")
        return f"min({limit_ms}, {initial_ms} * pow({factor}, retried))"

    def retries(self, error: BaseException) -> bool:
        """True if the policy allows another attempt after `error`."""
        return not isinstance(error, self.give_up_on) and (self.on is None or isinstance(error, self.on))

    @property
    def chooses(self) -> bool:
        """True if the policy depends on the type of the error."""
        return self.on is not None or self.give_up_on != ()


def jittered_ms(expression: str, retried: int, jitter: float, chance: float) -> int:
    """The wait in milliseconds before the next attempt, changed by up to `jitter` of itself; `chance` is 0 to 1.

    A wait above zero stays at least one millisecond long: rounded down to zero, it would cause a burst of retries.
    Raises ValueError for a malformed expression.
    """
    wait_ms = expressions.parse(expression).delay_ms(retried)
    if wait_ms == 0:
        return 0
    return min(expressions.MAX_DELAY_MS, max(1, round(wait_ms * (1 + jitter * (2 * chance - 1)))))


def _delay_ms(name: str, value: str | float | timedelta) -> int:
    try:
        span_ms = durations.to_ms(value)
    except (ValueError, TypeError) as error:
        raise _error(f"{name}={value!r}: {error}") from None
    if span_ms > expressions.MAX_DELAY_MS:
        raise _error(f"{name}={value!r} is longer than a day, the longest possible wait")
    return span_ms


def _check_number(name: str, value: object, least: float, most: float) -> None:
    if type(value) not in (int, float) or not least <= value <= most:  # type: ignore[operator]  # it is a number
        raise _error(f"{name} is {value!r}; expected a number from {least} to {most}")


def _check_errors(name: str, value: object) -> None:
    error_types = value if isinstance(value, tuple) else (value,) if value is not None else ()
    for error_type in error_types:
        if not (isinstance(error_type, type) and issubclass(error_type, BaseException)):
            raise _error(f"{name} names {error_type!r}, which is not an exception class")


def _error(text: str) -> DefinitionError:
    return DefinitionError(f"RetryPolicy: {text}", code=ErrorCode.OPTION_INVALID)
