"""Exceptions with which a running task decides how its call continues, and the one that a time limit raises."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

from qtasks.protocol import durations
from qtasks.protocol.messages import MAX_DELAY_MS

MAX_RETRY_AFTER_MS = 24 * 60 * 60 * 1000
"""A broker ignores a longer `Retry-After` (docs/protocol.md 4.6)."""


class NonRetryable(Exception):
    """Raise it when a retry cannot help: the message goes to the dead-letter queue at once (response 489)."""


class RetryAfter(Exception):
    """Raise it to retry after `delay`: ``"10m"``, seconds, or a timedelta; at most a day.

    It counts as a retry (response 503). Raises ValueError for a delay that cannot be read or is longer than a day.
    """

    def __init__(self, delay: str | float | timedelta, reason: str = "") -> None:
        delay_ms = durations.to_ms(delay)
        if delay_ms > MAX_RETRY_AFTER_MS:
            raise ValueError(f"RetryAfter waits at most a day, not {durations.format(delay_ms)}")
        super().__init__(reason or f"again in {durations.format(delay_ms)}")
        self.delay_ms = delay_ms
        self.reason = reason


class Snooze(Exception):
    """Raise it to run the same call again after `delay`, as if it had been made then. It does not count as a retry.

    The call keeps its id, and its handle continues to wait for the result. Raises ValueError for a delay that cannot be
    read or is longer than a year.
    """

    def __init__(self, delay: str | float | timedelta, reason: str = "") -> None:
        delay_ms = durations.to_ms(delay)
        if delay_ms > MAX_DELAY_MS:
            raise ValueError(f"Snooze waits at most a year, not {durations.format(delay_ms)}")
        super().__init__(reason or f"again in {durations.format(delay_ms)}")
        self.delay_ms = delay_ms
        self.reason = reason


class Cancel(Exception):
    """Raise it when there is nothing left to do: the call ends as cancelled, which is not a failure."""


REQUESTS: Final = (NonRetryable, RetryAfter, Snooze, Cancel)
"""The exceptions with which a task asks for an end: nothing went wrong."""


BY_CALLER: Final = "cancelled by its caller"
"""The reason of a call that `TaskResult.cancel` has cancelled."""


class SoftTimeLimitExceeded(asyncio.CancelledError):
    """Raised inside of an ``async def`` at its `soft_time_limit`: it can catch it and end in order before its timeout.

    It is a cancellation, so ``except Exception`` does not catch it, and what cleans up after one does. A function that
    does not catch it has failed, with AttemptTimeout.
    """


class AttemptTimeout(TimeoutError):
    """The time of an attempt was up; another attempt may follow.

    An ``async def`` was stopped. A ``def`` runs on in its thread, and what it returns is dropped.
    """
