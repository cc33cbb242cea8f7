"""The ports for time and randomness in a test: time moves when the test says so, randomness is seeded."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable

from qtasks.clock import Clock


class VirtualClock:
    """A clock that stands still until it is moved. Unix milliseconds."""

    def __init__(self, now_ms: int) -> None:
        self._elapsed_ms = now_ms
        self._set_by_ms = 0
        """By how much the wall clock was set, in all."""
        self._moved = asyncio.Event()

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return self._elapsed_ms + self._set_by_ms

    def offset_ms(self) -> int:
        """See `Clock.offset_ms`."""
        return 0

    def wall_ms(self) -> int:
        """See `Clock.wall_ms`."""
        return self.now_ms()

    def elapsed_ms(self) -> int:
        """See `Clock.elapsed_ms`."""
        return self._elapsed_ms

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return self._elapsed_ms / 1000

    def advance(self, span_ms: int) -> None:
        """Let `span_ms` milliseconds pass."""
        self._elapsed_ms += span_ms
        self._moved.set()
        self._moved = asyncio.Event()

    def move_to(self, now_ms: int) -> None:
        """Let time pass until the clock shows `now_ms`, Unix milliseconds."""
        self.advance(now_ms - self.now_ms())

    def jump(self, span_ms: int) -> None:
        """Set the wall clock forward, or back if `span_ms` is negative, while no time passes."""
        self._set_by_ms += span_ms
        self.advance(0)

    async def wait(self, event: Awaitable[object], until_ms: int | None) -> None:
        """See `Clock.wait`."""
        waiting = asyncio.ensure_future(event)
        end_ms = None if until_ms is None else until_ms - self._set_by_ms
        try:
            while not waiting.done() and (end_ms is None or self._elapsed_ms < end_ms):
                moved = asyncio.ensure_future(self._moved.wait())
                try:
                    await asyncio.wait({waiting, moved}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    moved.cancel()
        finally:
            waiting.cancel()


class TaskClock:
    """The clock of tasks under test: the wall time of `clock`, and the machine's monotonic time.

    The code of a task takes real time while virtual time stands still: its time limit must end all the same.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return self._clock.now_ms()

    def offset_ms(self) -> int:
        """See `Clock.offset_ms`."""
        return self._clock.offset_ms()

    def wall_ms(self) -> int:
        """See `Clock.wall_ms`."""
        return self._clock.wall_ms()

    def elapsed_ms(self) -> int:
        """See `Clock.elapsed_ms`."""
        return self._clock.elapsed_ms()

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return time.monotonic()

    async def wait(self, event: Awaitable[object], until_ms: int | None) -> None:
        """See `Clock.wait`."""
        await self._clock.wait(event, until_ms)


class SeededRandom:
    """The same ids and the same jitter in every run."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)  # noqa: S311 - protects nothing outside this process

    def token(self, size: int) -> bytes:
        """See `Random.token`."""
        return self._random.randbytes(size)

    def fraction(self) -> float:
        """See `Random.fraction`."""
        return self._random.random()
