"""The loop that looks for room while the disk is full, so that messages are accepted again soon after there is some."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from qtasks.broker.store.interface import Store
from qtasks.clock import Clock
from qtasks.errors import StoreError

log = logging.getLogger("qtasks.broker")

INTERVAL_MS: Final = 1_000
"""Time between two looks while there is no room."""


class RoomWatcher:
    """Looks for room on the disk, only while it is full."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def run(self) -> None:
        """Look once a second while there is no room, until cancelled."""
        while True:
            await self._store.lacks_room.wait()
            try:
                await self._store.look_for_room()
            except Exception as error:
                # Every error: if this loop ended, a broker whose disk was full once would never accept a message again.
                log.error("cannot look for room: %s", error, exc_info=not isinstance(error, StoreError))
            await self._clock.wait(asyncio.Event().wait(), self._clock.now_ms() + INTERVAL_MS)
