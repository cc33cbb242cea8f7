"""What a running task may raise to say how its message is to go on. Wishes, not failures of the machinery."""

from __future__ import annotations

from datetime import timedelta

from qtasks.protocol import durations
from qtasks.protocol.messages import MAX_DELAY_MS

MAX_RETRY_AFTER_MS = 24 * 60 * 60 * 1000
"""A broker ignores a longer wish (docs/protocol.md 4.6)."""


class NonRetryable(Exception):
    """Trying again cannot help: the message goes straight to the dead letters (answer 489)."""


class RetryAfter(Exception):
    """Try again in `delay` (``"10m"``, seconds, or a timedelta; a day at most), counted as a retry (answer 503).

    Raises ValueError for a delay that cannot be read or is longer than a day.
    """

    def __init__(self, delay: str | float | timedelta, reason: str = "") -> None:
        delay_ms = durations.to_ms(delay)
        if delay_ms > MAX_RETRY_AFTER_MS:
            raise ValueError(f"RetryAfter waits a day at most, not {durations.format(delay_ms)}")
        super().__init__(reason or f"again in {durations.format(delay_ms)}")
        self.delay_ms = delay_ms
        self.reason = reason


class Snooze(Exception):
    """Not yet: run the same call again after `delay`, as if it had been made then. Not counted as a retry.

    The call keeps its id, so whoever waits for its result goes on waiting. Raises ValueError for a delay that cannot be
    read or is longer than a year.
    """

    def __init__(self, delay: str | float | timedelta, reason: str = "") -> None:
        delay_ms = durations.to_ms(delay)
        if delay_ms > MAX_DELAY_MS:
            raise ValueError(f"Snooze waits a year at most, not {durations.format(delay_ms)}")
        super().__init__(reason or f"again in {durations.format(delay_ms)}")
        self.delay_ms = delay_ms
        self.reason = reason


class Cancel(Exception):
    """There is nothing to do any more: the call ends here, as cancelled, and is no failure."""


class AttemptTimeout(TimeoutError):
    """An ``async def`` ran for as long as one attempt may, and was stopped; another attempt may follow."""
