"""Time as a port: code that needs the time receives a `Clock`, so that a test can move time.

Shared by the broker and the tasks.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

_elapsed_ns: Final[Callable[[], int]] = (
    functools.partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)
    if hasattr(time, "CLOCK_BOOTTIME")
    else time.monotonic_ns
)
"""Linux has a clock that counts the time in which the machine sleeps. Elsewhere the monotonic clock stands in."""


class Clock(Protocol):
    """The time, monotonic time for measuring spans, and a wait that ends early on an event.

    The machine's clock gives wall time. The broker's own clock (`qtasks.broker.steady_clock`) never jumps: it differs
    from wall time by `offset_ms`.
    """

    def now_ms(self) -> int:
        """The time, Unix milliseconds."""

    def offset_ms(self) -> int:
        """What to add to `now_ms` for the wall time that users see, in milliseconds."""

    def wall_ms(self) -> int:
        """What the machine's clock shows, Unix milliseconds."""

    def elapsed_ms(self) -> int:
        """Milliseconds from an arbitrary point, the machine's sleep included; never goes back."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary point; never goes back."""

    async def wait(self, event: Awaitable[object], until_ms: int | None) -> None:
        """Return when `event` completes or the time reaches `until_ms` (None: no limit), whichever is first.

        It waits for the span from now until then, also if the clock is set meanwhile, and may return early.
        """


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """Wall time, Unix milliseconds."""
        return time.time_ns() // 1_000_000

    def offset_ms(self) -> int:
        """See `Clock.offset_ms`."""
        return 0

    def wall_ms(self) -> int:
        """See `Clock.wall_ms`."""
        return self.now_ms()

    def elapsed_ms(self) -> int:
        """See `Clock.elapsed_ms`."""
        return _elapsed_ns() // 1_000_000

    def monotonic(self) -> float:
        """Seconds from an arbitrary point."""
        return time.monotonic()

    async def wait(self, event: Awaitable[object], until_ms: int | None) -> None:
        """See `Clock.wait`."""
        import asyncio  # here: commands that only read the time do not load it

        # A wall clock may jump: look again at least once a minute instead of trusting one long timer.
        timeout = None if until_ms is None else min(60.0, max(0.0, (until_ms - self.now_ms()) / 1000))
        try:
            async with asyncio.timeout(timeout):
                await event
        except TimeoutError:
            return
