"""The loop that looks at all messages again and again, and sets aside those that are damaged."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from qtasks.broker.store.interface import Store
from qtasks.broker.store.verbs.damage import quarantine, scrub
from qtasks.broker.store.verbs.upkeep import check_notes
from qtasks.broker.store.verbs.upkeep.check_notes import Checked
from qtasks.clock import Clock
from qtasks.errors import StoreError

log = logging.getLogger("qtasks.broker")

INTERVAL_MS: Final = 60 * 60_000
"""Time between two walks over all messages."""
PAUSE_MS: Final = 500
"""Pause between two pieces of a walk: a million messages take 42 minutes, and 0.5 % of a processor."""


class Scrubber:
    """Walks over all messages, a piece at a time. Calls `wake_deliverer` before it releases what others wait for."""

    def __init__(self, store: Store, clock: Clock, *, wake_deliverer: Callable[[], None]) -> None:
        self._store = store
        self._clock = clock
        self._wake_deliverer = wake_deliverer

    async def run(self) -> None:
        """Walk at the start and then once an hour, until cancelled or until the store is broken."""
        while not self._store.broken.is_set():
            try:
                await self.run_once()
            except Exception as error:
                # Every error: if this loop ended, damage would wait in silence.
                log.error("cannot look for damaged messages: %s", error, exc_info=not isinstance(error, StoreError))
            await self._wait(INTERVAL_MS)

    async def run_once(self) -> int:
        """Walk over all messages once; return how many were set aside."""
        count = 0
        after: int | None = 0
        while after is not None:
            piece = await self._store.read(scrub.look_at, after=after)
            if piece.findings:
                self._wake_deliverer()
                seqs = [finding.seq for finding in piece.findings]
                count += len(await self._store.write(quarantine.quarantine, seqs, now_ms=self._clock.now_ms()))
            after = piece.last
            if after is not None:
                await self._wait(PAUSE_MS)
        with contextlib.suppress(StoreError):  # as on a full disk: the next walk writes a note
            await self._store.write(check_notes.note, Checked.MESSAGES, count, now_ms=self._clock.now_ms())
        return count

    async def _wait(self, span_ms: int) -> None:
        await self._clock.wait(asyncio.Event().wait(), self._clock.now_ms() + span_ms)
