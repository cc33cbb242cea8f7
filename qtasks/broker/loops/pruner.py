"""The loop that keeps the store from growing for ever."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from qtasks.broker.core.values import Retention
from qtasks.broker.store.interface import Store
from qtasks.clock import Clock
from qtasks.errors import StoreError

log = logging.getLogger("qtasks.broker")

INTERVAL_MS: Final = 60_000
PAUSE_MS: Final = 20
"""Between two batches: deliveries come first."""


class Pruner:
    """Removes finished messages by age and size, a small batch at a time."""

    def __init__(self, store: Store, clock: Clock, retention: Retention) -> None:
        self._store = store
        self._clock = clock
        self._retention = retention

    async def run(self) -> None:
        """Prune once a minute until cancelled."""
        while True:
            try:
                await self.run_once()
            except Exception as error:
                # Whatever it was: a loop that ends here would let the store grow, and nobody would know.
                log.error("cannot remove old messages: %s", error, exc_info=not isinstance(error, StoreError))
            await self._wait(INTERVAL_MS)

    async def run_once(self) -> int:
        """Remove everything that is due for it; how much that was."""
        removed = 0
        while batch := await self._store.prune(self._retention, now_ms=self._clock.now_ms()):
            removed += batch
            await self._wait(PAUSE_MS)
        return removed

    async def _wait(self, span_ms: int) -> None:
        await self._clock.wait(asyncio.Event().wait(), self._clock.now_ms() + span_ms)
