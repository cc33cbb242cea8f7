"""The loop that notices when the machine's clock was set, and when the machine has slept."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from qtasks.broker.store.interface import Store
from qtasks.broker.store.verbs import broker_time
from qtasks.errors import StoreError

log = logging.getLogger("qtasks.broker")

LOOK_EVERY_MS: Final = 1_000
"""Time between two looks at the machine's clock."""
NOTE_EVERY_MS: Final = 60_000
"""Time after which the broker's time is stored again."""
_SLEPT_MS: Final = 5_000
"""If this much more than planned has passed between two looks, the machine has slept: timers of this process have not
counted that time."""
_LAST_MS: Final = 253_402_300_799_000
"""The last second of the calendar, in the year 9999."""


class ClockWatch:
    """Compares the broker's time with the machine's clock. It has the rest of the broker look again after a jump.

    `wake` wakes the delivery loop, `look_again` has the schedule loop compute the next runs again.
    """

    def __init__(self, store: Store, *, wake: Callable[[], None], look_again: Callable[[], None]) -> None:
        self._store = store
        self._clock = store.clock
        self._wake = wake
        self._look_again = look_again
        self._offset_ms = self._clock.offset_ms()
        """The offset that all stored times agree with."""
        self._reported_ms = self._offset_ms
        self._looked_ms = self._noted_ms = self._clock.now_ms()
        self._jumped = asyncio.Event()
        self._clock.on_jump = self._jumped.set

    async def run(self) -> None:
        """Look once a second, and when a jump was noticed elsewhere, until cancelled."""
        if self._offset_ms:
            now_ms = self._clock.now_ms()
            log.warning(
                "the machine's clock shows %s, and by the broker's own time it is %s: the clock was set, or is wrong."
                " Delays and limits follow the broker's time, and cron schedules the machine's",
                _shown(now_ms + self._offset_ms),
                _shown(now_ms),
            )
        while True:
            self._jumped.clear()
            try:
                await self.run_once()
            except Exception as error:
                # Every error: if this loop ended, nothing would notice the next jump.
                log.error("cannot store the time: %s", error, exc_info=not isinstance(error, StoreError))
            await self._clock.wait(self._jumped.wait(), self._clock.now_ms() + LOOK_EVERY_MS)

    async def run_once(self) -> bool:
        """Look at the machine's clock; return whether it was set since the last look."""
        offset_ms, now_ms = self._clock.offset_ms(), self._clock.now_ms()
        has_slept = now_ms - self._looked_ms > LOOK_EVERY_MS + _SLEPT_MS
        self._looked_ms = now_ms
        if has_jumped := offset_ms != self._offset_ms:
            self._report(offset_ms, now_ms)
            while await self._store.write(broker_time.move_to_wall_time, now_ms=now_ms, offset_ms=offset_ms):
                pass
            await self._store.write(broker_time.note, now_ms=now_ms, offset_ms=offset_ms)
            self._offset_ms, self._noted_ms = offset_ms, now_ms
        if has_jumped or has_slept:
            self._look_again()
            self._wake()
        elif now_ms - self._noted_ms >= NOTE_EVERY_MS:
            self._noted_ms = now_ms
            await self._store.write(broker_time.note, now_ms=now_ms, offset_ms=offset_ms)
        return has_jumped

    async def note(self) -> None:
        """Store the time at the end of the process. A storage that takes no writes any more changes nothing."""
        with contextlib.suppress(StoreError):
            await self._store.write(broker_time.note, now_ms=self._clock.now_ms(), offset_ms=self._clock.offset_ms())

    def _report(self, offset_ms: int, now_ms: int) -> None:
        if offset_ms == self._reported_ms:
            return
        span = timedelta(milliseconds=abs(offset_ms - self._reported_ms))
        log.warning(
            "the machine's clock was set %s by %s, from %s to %s. Delays, retries and limits go on as before; cron"
            " schedules and times of day follow the new time",
            "forward" if offset_ms > self._reported_ms else "back",
            span,
            _shown(now_ms + self._reported_ms),
            _shown(now_ms + offset_ms),
        )
        self._reported_ms = offset_ms


def _shown(time_ms: int) -> str:
    time_ms = max(0, min(time_ms, _LAST_MS))
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms)).isoformat(timespec="seconds")
