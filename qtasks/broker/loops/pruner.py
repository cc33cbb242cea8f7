"""The loop that removes old messages, so that the store does not grow without limit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

from qtasks.broker.core.values import Retention
from qtasks.broker.store.interface import Store
from qtasks.broker.store.verbs import retention
from qtasks.broker.store.verbs.upkeep import store_sizes
from qtasks.clock import Clock
from qtasks.errors import StoreError

log = logging.getLogger("qtasks.broker")

INTERVAL_MS: Final = 60_000
"""Time between two runs."""
PAUSE_MS: Final = 20
"""Pause between two batches of one run, so that deliveries have priority."""


class Pruner:
    """Removes finished messages by age and total size, in small batches."""

    def __init__(self, store: Store, clock: Clock, retention: Retention) -> None:
        self._store = store
        self._clock = clock
        self._retention = retention
        self._noted_hour: int | None = None

    async def run(self) -> None:
        """Prune once a minute until cancelled, and note the size of the store once an hour."""
        while True:
            try:
                await self.run_once()
                await self._note_size()
            except Exception as error:
                # Every error: if this loop ended, the store would grow without limit and without notice.
                log.error("cannot remove old messages: %s", error, exc_info=not isinstance(error, StoreError))
            await self._wait(INTERVAL_MS)

    async def run_once(self) -> int:
        """Remove every message whose retention has ended; return how many were removed."""
        removed = 0
        while batch := await self._store.write(retention.prune, self._retention, now_ms=self._clock.now_ms()):
            removed += batch
            await self._wait(PAUSE_MS)
        return removed

    async def _note_size(self) -> None:
        now_ms = self._clock.now_ms()
        if (hour := now_ms // store_sizes.HOUR_MS) != self._noted_hour:
            with contextlib.suppress(StoreError):  # as on a full disk: the next run tries again
                await self._store.write(store_sizes.note, now_ms=now_ms)
                self._noted_hour = hour

    async def _wait(self, span_ms: int) -> None:
        await self._clock.wait(asyncio.Event().wait(), self._clock.now_ms() + span_ms)
