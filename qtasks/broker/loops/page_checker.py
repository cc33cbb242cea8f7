"""The loop that reads all pages of the database now and then: it finds damage before a message needs the page."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

from qtasks.broker.store.integrity import page_check
from qtasks.broker.store.interface import Store
from qtasks.broker.store.verbs.upkeep import check_notes
from qtasks.broker.store.verbs.upkeep.check_notes import Checked
from qtasks.clock import Clock
from qtasks.errors import StoreError

log = logging.getLogger("qtasks.broker")

INTERVAL_MS: Final = 6 * 3_600_000
"""Time between two checks."""


class PageChecker:
    """Checks the pages of the store. A damaged one ends the broker: to go on could destroy more."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def run(self) -> None:
        """Check every six hours until cancelled; a large database also at the start, which has not checked it."""
        is_due = not await self._store.read(page_check.is_small)
        if not is_due:
            await self._note()  # the start has checked it
        while not self._store.broken.is_set():
            if is_due:
                try:
                    await self.run_once()
                except Exception as error:
                    log.error("cannot check the database: %s", error, exc_info=not isinstance(error, StoreError))
            is_due = True
            await self._clock.wait(asyncio.Event().wait(), self._clock.now_ms() + INTERVAL_MS)

    async def run_once(self) -> list[str]:
        """Check all pages once; return what is damaged."""
        findings = await self._store.read(page_check.page_findings)
        if findings:
            self._store.fail(await self._store.read(page_check.sentence, findings))
        else:
            await self._note()
        return findings

    async def _note(self) -> None:
        with contextlib.suppress(StoreError):  # the note is not worth an error: the next check writes one
            await self._store.write(check_notes.note, Checked.PAGES, 0, now_ms=self._clock.now_ms())
