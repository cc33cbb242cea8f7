"""Long work in the API lets the event loop go on every few milliseconds."""

from __future__ import annotations

import asyncio
from typing import Final

from qtasks.clock import Clock

TURN_S: Final = 0.005
"""Seconds that a request works before others have a turn."""


class Turns:
    """Gives all requests with long work a turn, one after the other, with a turn of the event loop between them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._line = asyncio.Lock()

    def begin(self) -> Turn:
        """A first turn, which begins now."""
        return Turn(self._clock, self._line)


class Turn:
    """The turn of one request: call `end_if_long` between the steps of its work."""

    def __init__(self, clock: Clock, line: asyncio.Lock) -> None:
        self._clock = clock
        self._line = line
        self._began_s = clock.monotonic()

    @property
    def is_long(self) -> bool:
        """True if this turn has lasted `TURN_S`. For the many short steps of a loop, in front of `end_if_long`."""
        return self._clock.monotonic() - self._began_s >= TURN_S

    async def end_if_long(self) -> None:
        """Wait for the next turn if this one has lasted `TURN_S`."""
        if not self.is_long:
            return
        async with self._line:
            await asyncio.sleep(0)
        self._began_s = self._clock.monotonic()
