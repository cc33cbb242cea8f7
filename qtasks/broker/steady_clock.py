"""The broker's own time: it goes on evenly, also when the machine's clock is set.

How it works. Every time in the store (when a message is due, when it was accepted, when a window ends) is a time of
this clock. It starts at the wall time and then follows the time that has passed. If the wall clock differs by more than
`TOLERANCE_MS`, it was set: the broker's time goes on, and the difference becomes its *offset*. So no delay becomes
longer or shorter, and no stored row has to change. A smaller difference is followed slowly.

What leaves the broker is wall time, which is the broker's time plus the offset: signatures, and the times that the API
shows or is given. Cron expressions are wall time, too. On nearly every machine the offset is always 0.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from qtasks.clock import Clock

TOLERANCE_MS: Final = 2_000
"""A larger difference is a jump of the wall clock; a leap second or a correction by NTP is not."""
_LOOK_EVERY_MS: Final = 1_000
_FOLLOW_MS: Final = 10
"""By how much the broker's time approaches the wall clock in each look: one part in a hundred."""


@dataclass(frozen=True, slots=True)
class ClockMark:
    """What the store knows of the time of the process before this one."""

    high_ms: int
    """The latest time that it has used, as far as known; never goes back."""
    offset_ms: int = 0
    """Its offset at that time."""


def resumed_ms(mark: ClockMark, wall_ms: int) -> int:
    """The broker's time after a start, at the wall time `wall_ms`. Pure.

    The wall clock may have been wrong before the stop, or may be wrong now. Of the two times that this allows, the
    earlier one that does not lie before the stop; if both do, the time of the stop.
    """
    times = (wall_ms, wall_ms - mark.offset_ms)
    earliest = min((time_ms for time_ms in times if time_ms >= mark.high_ms - TOLERANCE_MS), default=mark.high_ms)
    return max(earliest, mark.high_ms)


class SteadyClock:
    """A `Clock` that neither jumps nor goes back. `machine` is the clock that it follows.

    With a `mark` it goes on from the time of an earlier process.
    """

    def __init__(self, machine: Clock, mark: ClockMark | None = None) -> None:
        self._machine = machine
        self._elapsed_ms = machine.elapsed_ms
        wall_ms, elapsed_ms = machine.wall_ms(), machine.elapsed_ms()
        start_ms = wall_ms if mark is None else resumed_ms(mark, wall_ms)
        offset_ms = wall_ms - start_ms
        expected_ms = (0,) if mark is None else (0, mark.offset_ms)
        self._offset_ms = next(
            (near_ms for near_ms in expected_ms if abs(offset_ms - near_ms) <= TOLERANCE_MS), offset_ms
        )
        self._base_ms = start_ms - elapsed_ms
        self._floor_ms = start_ms
        self._looked_ms = elapsed_ms
        self.jumps = 0
        """How often the wall clock was set since the start."""
        self.on_jump: Callable[[], None] = lambda: None
        """Called when that was noticed."""

    def now_ms(self) -> int:
        """The broker's time, Unix milliseconds. Never goes back."""
        now_ms = self._base_ms + self._elapsed_ms()
        return max(self._floor_ms, now_ms)

    def offset_ms(self) -> int:
        """What to add to `now_ms` for the wall time, in milliseconds. Notices that the wall clock was set."""
        now_ms, elapsed_ms = self.now_ms(), self._elapsed_ms()
        behind_ms = self._machine.wall_ms() - now_ms - self._offset_ms
        if abs(behind_ms) > TOLERANCE_MS:
            self.jumps += 1
            offset_ms = self._offset_ms + behind_ms
            self._offset_ms = 0 if abs(offset_ms) <= TOLERANCE_MS else offset_ms
            self.on_jump()
        elif elapsed_ms - self._looked_ms >= _LOOK_EVERY_MS:
            self._looked_ms, self._floor_ms = elapsed_ms, now_ms
            self._base_ms += max(-_FOLLOW_MS, min(_FOLLOW_MS, behind_ms))
        return self._offset_ms

    def wall_ms(self) -> int:
        """See `Clock.wall_ms`. Differs from `now_ms` plus `offset_ms` by what is still to be followed."""
        return self._machine.wall_ms()

    def elapsed_ms(self) -> int:
        """See `Clock.elapsed_ms`."""
        return self._elapsed_ms()

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return self._machine.monotonic()

    async def wait(self, event: Awaitable[object], until_ms: int | None) -> None:
        """See `Clock.wait`."""
        await self._machine.wait(
            event, None if until_ms is None else self._machine.now_ms() + max(0, until_ms - self.now_ms())
        )
