"""Runs the broker step by step, in the order of time.

A running broker does many things at once; here each step is done alone, so that a test behaves the same in every run:
fire the schedules that are due, claim the one message that is due first, deliver it, settle its outcome, and repeat.
When no message is due, the clock moves to the next due time. A second call starts beside the first only when the first
waits for its result.
"""

from __future__ import annotations

import asyncio
from typing import Final

from qtasks.broker.broker import Broker
from qtasks.broker.core.values import Claim
from qtasks.broker.store.verbs.schedules import next_tick
from qtasks.error_codes import ErrorCode
from qtasks.errors import QTasksError
from qtasks.testing.call_log import CallLog
from qtasks.testing.fakes.stepped_results import SteppedResults
from qtasks.testing.fakes.virtual_clock import VirtualClock

MOST: Final = 10_000
"""Attempts in one run. A test that makes more has calls that cause calls without end."""

_REORDERED: Final = 64
"""Messages that are claimed together to reverse their order."""


class BrokerStepper:
    """Drives a broker whose own loops do not run; belongs to the broker's event loop."""

    def __init__(self, broker: Broker, clock: VirtualClock, call_log: CallLog, results: SteppedResults) -> None:
        self._broker = broker
        self._clock = clock
        self._call_log = call_log
        self._results = results
        self._waits = results.waits
        self._running: dict[asyncio.Task[None], str] = {}
        self._changed = asyncio.Event()
        self._taken: list[Claim] = []
        self.reordered = False
        """Deliver messages that are due at the same time in reverse order."""
        self._loop = asyncio.get_running_loop()
        self._waits.changed = self._look_again

    async def run(self, *, until_ms: int | None, most: int | None, schedules: bool) -> list[str]:
        """Make every attempt that is due until `until_ms`, at most `most`; return one message id per attempt.

        Reports of ends are made too, and are not counted: the test has not sent them.
        With `until_ms` None the clock moves on until no call waits. The caller has begun the waits; they end here.
        Raises QTasksError after 10,000 attempts.
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
            may_start = most is None or len(made) < most or bool(self._running)
            claim, next_ms = await self._next(schedules) if may_start else (None, None)
            if claim is not None:
                if not self._call_log.is_end_callback(claim.message):
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
        """True if a running call makes progress by itself: it does not wait for another call."""
        if not self._running:
            return False
        blocked = self._waits.blocked(self._results.is_final)
        return any(call_id not in blocked for call_id in self._running.values())

    async def _next(self, schedules: bool) -> tuple[Claim | None, int | None]:
        """The claim to deliver now; without one, the next due time (Unix ms)."""
        if self._taken:
            return self._taken.pop(), None
        offset_ms = self._broker.clock.offset_ms()
        next_tick_ms = await self._broker.store.read(next_tick, offset_ms=offset_ms) if schedules else None
        if next_tick_ms is not None:
            await self._broker.scheduler.run_once()
            next_tick_ms = await self._broker.store.read(next_tick, offset_ms=offset_ms)
        while True:
            batch = await self._broker.deliverer.claim(_REORDERED if self.reordered else 1)
            if batch.claims or not batch.has_more:
                break
        self._taken = list(batch.claims)  # popped from the end: the last one first
        if self._taken:
            return self._taken.pop(), None
        times = [time_ms + offset_ms for time_ms in (batch.next_due_ms, next_tick_ms) if time_ms is not None]
        return None, min(times, default=None)

    def _look_again(self) -> None:
        self._loop.call_soon_threadsafe(self._changed.set)

    def _start(self, claim: Claim) -> None:
        call = self._call_log.of_message(claim.message.id)
        attempt = self._broker.deliverer.start(claim)
        self._running[attempt] = claim.message.id if call is None else call.id
        attempt.add_done_callback(self._ended)

    def _ended(self, attempt: asyncio.Task[None]) -> None:
        del self._running[attempt]
        self._changed.set()

    def _check(self, made: list[str]) -> None:
        if len(made) >= MOST:
            call = self._call_log.of_message(made[-1])
            raise QTasksError(
                f"{MOST:,} attempts were made in one run, and calls are still due: {call or made[-1]}",
                details={"likely": "a task calls itself, or is retried without a delay"},
                code=ErrorCode.TEST_NEVER_IDLE,
            )
