"""Time as a port: code that needs the time receives a `Clock`, so that a test can move time.

Shared by the broker and the tasks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Protocol


class Clock(Protocol):
    """Wall time for what users see, monotonic time for measuring spans, and a wait that ends early on an event."""

    def now_ms(self) -> int:
        """Wall time, Unix milliseconds."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary point; never goes back."""

    async def wait(self, event: Awaitable[object], until_ms: int | None) -> None:
        """Return when `event` completes or wall time reaches `until_ms` (None: no limit), whichever is first."""


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """Wall time, Unix milliseconds."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Seconds from an arbitrary point."""
        return time.monotonic()

    async def wait(self, event: Awaitable[object], until_ms: int | None) -> None:
        """Return when `event` completes or wall time reaches `until_ms`."""
        # A wall clock may jump: look again at least once a minute instead of trusting one long timer.
        timeout = None if until_ms is None else min(60.0, max(0.0, (until_ms - self.now_ms()) / 1000))
        try:
            async with asyncio.timeout(timeout):
                await event
        except TimeoutError:
            return
