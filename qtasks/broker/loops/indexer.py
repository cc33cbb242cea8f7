"""The loop that counts the log for the console, behind everything else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

import apsw

from qtasks.broker.store.interface import Store
from qtasks.broker.store.verbs.insight import forget, index
from qtasks.clock import Clock
from qtasks.errors import StoreError

log = logging.getLogger("qtasks.broker")

SLICE_S: Final = 0.003
"""Seconds that one slice keeps the event loop, about."""
FEWEST: Final = 20
"""Entries of the log in a slice at least."""
REST: Final = 11
"""Rest after a slice, as a multiple of the time that it took, while the log grows."""
IDLE_REST: Final = 1
"""The same while it does not grow."""
LOOK_EVERY_MS: Final = 1_000
"""Time between two looks at the log while the store is written to; without a write there is none."""
FORGET_EVERY_MS: Final = 3_600_000
"""Time between two removals of what is old."""
START_AGAIN_EVERY_MS: Final = 3_600_000
"""Damaged tables are made again at most this often."""
VIEW_S: Final = 0.05
"""Seconds that a view waits at most for entries that are not counted yet."""


class DamagedFigures(Exception):
    """A table that the console reads is missing, or its rows contradict each other."""


class Indexer:
    """Counts the log in small slices, so that deliveries go on between them."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._size = FEWEST * 5
        self._forgot_ms: int | None = None
        self._started_again_ms: int | None = None

    async def run(self) -> None:
        """Count what is written until cancelled, or until the store is broken. It sleeps while nothing is written."""
        while not self._store.broken.is_set():
            try:
                await self.run_once()
            except DamagedFigures as error:
                await self._start_again(error)
            except Exception as error:
                # Every error: if this loop ended, the console would show old figures and not say so.
                log.error("cannot count the log: %s", error, exc_info=not isinstance(error, StoreError))
            await self._clock.wait(asyncio.Event().wait(), self._clock.now_ms() + LOOK_EVERY_MS)
            await self._store.written.wait()

    async def run_once(self) -> int:
        """Count all entries that are not counted yet, and remove what is old; return how many were counted.

        While calls come one by one there is a slice for nearly each of them. One a second would save a third of all
        transactions then, but was measured to make a call slower by a quarter, probably because caches go cold.
        """
        await self._forget()
        counted, behind_before = 0, 0
        while True:
            self._store.written.clear()  # the last slice, which counts nothing, writes nothing either
            progress, took_s = await self._slice()
            counted += progress.counted
            if not progress.counted:
                return counted
            rest = REST if progress.behind > behind_before - progress.counted else IDLE_REST
            behind_before = progress.behind
            await self._rest(took_s * rest)

    async def catch_up(self) -> None:
        """Count for a view what is not counted yet, as far as `VIEW_S` and the storage allow."""
        until_s = self._clock.monotonic() + VIEW_S
        with contextlib.suppress(StoreError, DamagedFigures):  # on a full disk a view shows what it can
            while self._clock.monotonic() < until_s:
                progress, _ = await self._slice()
                if not progress.behind or not progress.counted:
                    return

    async def _slice(self) -> tuple[index.Counted, float]:
        """Count one slice, and learn from the time that it took how large the next one may be."""
        took_s = 0.0

        def count(db: apsw.Connection) -> index.Counted:
            nonlocal took_s
            began_s = self._clock.monotonic()
            try:
                progress = index.count_log(db, now_ms=self._clock.now_ms(), most=self._size)
            except (apsw.SQLError, apsw.ConstraintError) as error:
                raise DamagedFigures(str(error)) from error
            took_s = self._clock.monotonic() - began_s
            return progress

        progress = await self._store.write_patiently(count)
        if took_s > SLICE_S:
            self._size = max(FEWEST, self._size * 2 // 3)
        elif took_s < SLICE_S / 2:
            self._size = min(index.SLICE, self._size * 3 // 2)
        return progress, took_s

    async def _forget(self) -> None:
        """Remove what is old, once an hour."""
        now_ms = self._clock.now_ms()
        if self._forgot_ms is not None and now_ms - self._forgot_ms < FORGET_EVERY_MS:
            return
        self._forgot_ms = now_ms
        while await self._store.write_patiently(forget.forget_old, now_ms=now_ms):
            await self._rest(SLICE_S)
        after: int | None = 0
        while after is not None:
            after = await self._store.write_patiently(forget.forget_destinations, after=after)
            await self._rest(SLICE_S)

    async def _start_again(self, damage: DamagedFigures) -> None:
        """Make the tables anew; at most once an hour, for an error that comes back would keep the store busy."""
        now_ms = self._clock.now_ms()
        if self._started_again_ms is not None and now_ms - self._started_again_ms < START_AGAIN_EVERY_MS:
            log.error("the figures of the console are damaged: %s", damage)
            return
        log.error("the figures of the console are damaged, and counted again from the log: %s", damage)
        self._started_again_ms = now_ms
        try:
            await self._store.write_long(index.start_again)
        except Exception as error:
            log.error("the figures of the console cannot be made anew: %s", error)

    async def _rest(self, span_s: float) -> None:
        if span_ms := round(span_s * 1000):
            await self._clock.wait(asyncio.Event().wait(), self._clock.now_ms() + span_ms)
