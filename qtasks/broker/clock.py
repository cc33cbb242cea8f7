"""The real clock and the real source of chance. The only module of the broker that asks the machine for them."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable


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


class SystemRandom:
    """The machine's randomness."""

    def token(self, size: int) -> bytes:
        """`size` unpredictable bytes."""
        return secrets.token_bytes(size)

    def fraction(self) -> float:
        """A float in [0, 1) for jitter."""
        return random.random()  # noqa: S311 - jitter is no secret
