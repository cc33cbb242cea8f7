"""Timers of an event loop of which most are stopped long before they are due.

A timer of the loop costs two microseconds, a tenth of the work for a small task. Here, a timer that is not due for a
while is only a member of a set, which is looked through every two seconds. What is due before the next look becomes a
timer of the loop. So it is as exact, at a fifth of the cost.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Final

LOOK_EVERY_S: Final = 2.0


class RareTimer:
    """Calls its method `due` once, unless it is stopped before. Belongs to the event loop on which it is started."""

    __slots__ = ("_handle", "_loop_timers", "when_s")

    def start(self, delay_s: float) -> None:
        """Call `due` in `delay_s` seconds, or in the loop's next turn if that is not positive."""
        timers = self._loop_timers = _timers_of_running_loop()
        self._handle: asyncio.Handle | None = None
        if delay_s > LOOK_EVERY_S:
            self.when_s = timers.loop.time() + delay_s
            timers.add(self)
        elif delay_s > 0:
            self._handle = timers.loop.call_later(delay_s, self.due)
        else:
            self._handle = timers.loop.call_soon(self.due)

    def stop(self) -> None:
        """Do not call `due`. No effect if it was called already."""
        if self._handle is None:
            self._loop_timers.waiting.discard(self)
        else:
            self._handle.cancel()

    def arm(self, loop: asyncio.AbstractEventLoop) -> None:
        """Become a timer of the loop."""
        self._handle = loop.call_at(self.when_s, self.due)

    def due(self) -> None:
        """What is done when the time has come."""
        raise NotImplementedError


class Deadline(RareTimer):
    """Cancels the asyncio task in which it is made, which is `running`, after `delay_s`.

    As `asyncio.timeout`, which costs ten microseconds.
    """

    __slots__ = ("_cancelling", "_running", "is_expired")

    def __init__(self, delay_s: float, running: asyncio.Task[Any]) -> None:
        self.is_expired = False
        """True if the task was cancelled."""
        self._running = running
        self._cancelling = running.cancelling()
        self.start(delay_s)

    def due(self) -> None:
        """Cancel the task."""
        self.is_expired = True
        self._running.cancel()

    def has_caused(self, error: BaseException | None) -> bool:
        """End the deadline. True if `error`, if any, is the cancellation that it made, and no other code cancelled."""
        self.stop()
        if not self.is_expired:
            return False
        is_last_one = self._running.uncancel() <= self._cancelling
        return is_last_one and isinstance(error, asyncio.CancelledError)


class LoopTimers:
    """The timers of one event loop that are not due soon."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: Final = loop
        self.waiting: set[RareTimer] = set()
        self._is_looking = False

    def add(self, timer: RareTimer) -> None:
        """Add a timer that is due after more than `LOOK_EVERY_S`."""
        self.waiting.add(timer)
        if not self._is_looking:
            self._is_looking = True
            self.loop.call_later(LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        """Arm what is due before the next look."""
        next_s = self.loop.time() + LOOK_EVERY_S
        for timer in [timer for timer in self.waiting if timer.when_s <= next_s]:
            self.waiting.remove(timer)
            timer.arm(self.loop)
        self._is_looking = bool(self.waiting)
        if self._is_looking:
            self.loop.call_at(next_s, self._look)


class _OfThisThread(threading.local):
    """The timers of the event loop that ran last in this thread."""

    timers: LoopTimers | None = None


_HERE: Final = _OfThisThread()


def _timers_of_running_loop() -> LoopTimers:
    timers, loop = _HERE.timers, asyncio.get_running_loop()
    if timers is None or timers.loop is not loop:  # another loop runs here now: timers that wait keep theirs
        timers = _HERE.timers = LoopTimers(loop)
    return timers
