"""One step of the broker after another, in the order of time.

What a running broker does all at once is done here one thing at a time, so that a test is the same in every run: fire
the schedules whose time has come, claim the one message that is due first, deliver it, settle its outcome, and look
again. When nothing is due any more the clock moves on to whatever comes next. A second call is started beside the first
only when the first waits for its result.
"""

from __future__ import annotations

import asyncio
from typing import Final

from qtasks.broker.broker import Broker
from qtasks.broker.core.values import Claim
from qtasks.error_codes import ErrorCode
from qtasks.errors import QTasksError
from qtasks.testing.call_log import Ledger
from qtasks.testing.fakes.stepped_results import SteppedResults
from qtasks.testing.fakes.virtual_clock import VirtualClock

MOST: Final = 10_000
"""Attempts in one go. A test that makes more has calls that never end calling."""

_REORDERED: Final = 64
"""Messages that are taken at once when their order is to be changed."""


class Steps:
    """Drives a broker whose own loops do not run; belongs to the broker's event loop."""

    def __init__(self, broker: Broker, clock: VirtualClock, ledger: Ledger, results: SteppedResults) -> None:
        self._broker = broker
        self._clock = clock
        self._ledger = ledger
        self._results = results
        self._waits = results.waits
        self._running: dict[asyncio.Task[None], str] = {}
        self._changed = asyncio.Event()
        self._taken: list[Claim] = []
        self.reordered = False
        """Deliver what is due in the reverse of its order."""
        self._loop = asyncio.get_running_loop()
        self._waits.changed = self._look_again

    async def run(self, *, until_ms: int | None, most: int | None, schedules: bool) -> list[str]:
        """Make every attempt that is due until `until_ms`, or `most` of them; the messages, one for each attempt.

        `until_ms` None follows what waits as far as it goes, and leaves the clock there. The waits have begun; here
        they end. Raises QTasksError when there is no end to it.
        """
        try:
            return await self._run(until_ms, most, schedules)
        finally:
            self._waits.end()

    async def _run(self, until_ms: int | None, most: int | None, schedules: bool) -> list[str]:
        made: list[str] = []
        while True:
            self._changed.clear()
            if self._is_busy():
                await self._changed.wait()
                continue
            wanted = most is None or len(made) < most or bool(self._running)
            claim, next_ms = await self._next(schedules) if wanted else (None, None)
            if claim is not None:
                made.append(claim.message.id)
                self._start(claim)
                self._check(made)
            elif next_ms is not None and (until_ms is None or next_ms <= until_ms):
                self._clock.move_to(next_ms)
            elif self._running:
                self._waits.give_up(running=True)
                await self._changed.wait()
            else:
                break
        if until_ms is not None:
            self._clock.move_to(until_ms)
        return made

    def _is_busy(self) -> bool:
        """Whether a call runs that does not wait for another one."""
        if not self._running:
            return False
        blocked = self._waits.blocked(self._results.is_final)
        return any(call_id not in blocked for call_id in self._running.values())

    async def _next(self, schedules: bool) -> tuple[Claim | None, int | None]:
        """What is to be delivered now; where there is nothing, the time of what comes next."""
        if self._taken:
            return self._taken.pop(), None
        next_tick_ms: int | None = None
        if schedules:
            await self._broker.scheduler.run_once()
            next_tick_ms = await self._broker.store.next_tick()
        while True:
            found = await self._broker.deliverer.claim(_REORDERED if self.reordered else 1)
            if found.claims or not found.more:
                break
        self._taken = list(found.claims)  # taken from the end: the last one first
        if self._taken:
            return self._taken.pop(), None
        times = [time_ms for time_ms in (found.next_due_ms, next_tick_ms) if time_ms is not None]
        return None, min(times, default=None)

    def _look_again(self) -> None:
        self._loop.call_soon_threadsafe(self._changed.set)

    def _start(self, claim: Claim) -> None:
        call = self._ledger.of_message(claim.message.id)
        attempt = self._broker.deliverer.start(claim)
        self._running[attempt] = claim.message.id if call is None else call.id
        attempt.add_done_callback(self._ended)

    def _ended(self, attempt: asyncio.Task[None]) -> None:
        del self._running[attempt]
        self._changed.set()

    def _check(self, made: list[str]) -> None:
        if len(made) >= MOST:
            call = self._ledger.of_message(made[-1])
            raise QTasksError(
                f"{MOST:,} attempts were made in one go, and something is due still: {call or made[-1]}",
                details={"likely": "a task calls itself, or is tried again without a wait"},
                code=ErrorCode.TEST_NEVER_IDLE,
            )
