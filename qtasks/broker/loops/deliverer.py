"""The delivery loop: claim due messages, send them signed, settle the outcomes. It does not poll.

A caller whose write may let an attempt start wakes the loop first and submits the write in the same iteration of the
event loop. The claim that follows then joins the same transaction, so a single message costs two commits: one stores
and claims it, one records its end. The end of an attempt causes a claim only if a message may have waited for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Sequence
from typing import Final

from qtasks.broker.core.bundle_plan import BundlePlan, plan
from qtasks.broker.core.slot_offers import SlotOffer
from qtasks.broker.core.values import Claim, ClaimBatch
from qtasks.broker.events import EventWatchers
from qtasks.broker.loops.attempt_parts import AttemptParts
from qtasks.broker.loops.bundle_attempts import BundleAttempts
from qtasks.broker.loops.delivery_log import DeliveryLog
from qtasks.broker.loops.host_limits import HostLimits
from qtasks.broker.loops.key_ring import KeyRing
from qtasks.broker.loops.outcome_recorder import OutcomeRecorder
from qtasks.broker.loops.single_attempts import SingleAttempts
from qtasks.broker.ports import StreamingTransport, Transport
from qtasks.broker.settings import DeliveryLimits
from qtasks.broker.store.interface import Store
from qtasks.broker.store.verbs import settle
from qtasks.clock import Clock
from qtasks.errors import StoreError
from qtasks.randomness import Random

log = logging.getLogger("qtasks.broker")

CLAIM_BATCH: Final = 64
"""Messages that are claimed at once."""
_STORE_PAUSE_MS: Final = 1_000
"""Wait after a claim that failed, for example because the disk is full."""


class Deliverer:
    """Claims due messages and makes their attempts, as many concurrently as the limits allow.

    What a claim yields leaves at once: to a dispatcher that takes bundles together, else each message singly. Bundles
    go through `streaming`: by default `transport` itself, if it can.
    """

    def __init__(
        self,
        store: Store,
        transport: Transport,
        clock: Clock,
        random: Random,
        *,
        keys: KeyRing,
        watchers: EventWatchers,
        limits: DeliveryLimits | None = None,
        streaming: StreamingTransport | None = None,
        region: str = "EU-CENTRAL-1",
        delivery_log: DeliveryLog | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._limits = HostLimits(limits or DeliveryLimits(), clock)
        self._region = region
        self._recorder = OutcomeRecorder(store, clock, random, watchers, wake=self.wake, delivery_log=delivery_log)
        parts = AttemptParts(clock, random, keys, self._limits, self._recorder, region)
        self._singles = SingleAttempts(parts, transport, offer_room=self.offer_room)
        streaming = streaming or (transport if isinstance(transport, StreamingTransport) else None)
        self._bundles = (
            None if streaming is None else BundleAttempts(parts, streaming, self._singles, offer_room=self.offer_room)
        )
        self._attempts: dict[asyncio.Task[None], int] = {}
        """Attempts whose end is not stored yet: each task with the number of its messages."""
        self._wake = asyncio.Event()
        self._next_due_ms: int | None = None
        """When the loop claims again although nothing wakes it; None: not before something does."""
        self._waits_for_room = True
        """Messages may wait for the end of an attempt."""
        self._has_new_room = False
        """An attempt has ended during the claim under way, which did not see that."""
        self._claiming = asyncio.Lock()
        self._draining = False
        self.interrupted = 0
        """Messages whose attempts `drain` has cancelled."""

    @property
    def in_flight(self) -> int:
        """Attempts in flight."""
        return self._limits.in_flight

    def last_offer(self, prefix: str) -> SlotOffer | None:
        """See `HostLimits.last_offer`."""
        return self._limits.last_offer(prefix)

    @property
    def draining(self) -> bool:
        """True once `drain` was called: no further attempt starts."""
        return self._draining

    def wake(self) -> None:
        """Claim again, in the transaction of the next write: a message may be due, or a slot may be free."""
        self._wake.set()

    def offer_room(self) -> None:
        """An attempt has ended, or a lot need not wait any more: claim again if a message may have waited for that."""
        if self._claiming.locked():
            self._has_new_room = True  # the claim will say whether a message has waited
        elif self._waits_for_room:
            self.wake()

    def wake_at(self, due_ms: int) -> None:
        """A message that becomes due then was stored: claim again at that time at the latest."""
        if self._next_due_ms is None or due_ms < self._next_due_ms:
            self.wake()

    async def run(self) -> None:
        """Deliver until cancelled or drained."""
        while not self._draining:
            self._wake.clear()
            self._next_due_ms = None  # a claim under way may not see a message that is stored meanwhile
            try:
                next_due_ms, has_more = await self._start_due()
            except Exception as error:
                # Every error: if this loop ended, nothing would be delivered any more, without notice.
                log.error("cannot claim messages: %s", error, exc_info=not isinstance(error, StoreError))
                next_due_ms, has_more = self._clock.now_ms() + _STORE_PAUSE_MS, False
            if not has_more:
                self._next_due_ms = next_due_ms
                await self._clock.wait(self._wake.wait(), next_due_ms)

    async def run_once(self) -> int:
        """Make every attempt that is due now and wait until all have ended; return their number. For tests."""
        count = 0
        while True:
            _, has_more = await self._start_due()
            if not self._attempts and not has_more:
                return count
            count += sum(self._attempts.values())
            await asyncio.gather(*self._attempts)

    async def drain(self, timeout_s: float) -> bool:
        """Start no further attempt and wait for those in flight; True if all ended within `timeout_s`.

        The others are cancelled. Their messages stay claimed, so the next start of the broker delivers them again.
        `interrupted` is their number.
        """
        self._draining = True
        self.wake()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                async with self._claiming:  # a claim in progress will start attempts, which count as well
                    pass
                if self._attempts:
                    await asyncio.wait(self._attempts)
        self.interrupted += sum(self._attempts.values())
        finished = not self._attempts
        for attempt in list(self._attempts):
            attempt.cancel()
        await asyncio.gather(*self._attempts, return_exceptions=True)
        if not finished:
            with contextlib.suppress(StoreError):
                await self._store.write(settle.hand_back)
        return finished

    async def _start_due(self) -> tuple[int | None, bool]:
        """Claim and start as many messages as the limits allow.

        Returns when the next message is due or a host's pause ends (Unix ms), and whether further messages can start at
        once.
        """
        async with self._claiming:
            self._waits_for_room, self._has_new_room = True, False
            room = self._limits.room
            if room <= 0:
                return None, False  # the end of an attempt wakes the loop
            began_ms = self._clock.now_ms()
            batch = await self.claim(min(room, CLAIM_BATCH))
            self._waits_for_room = batch.waits_for_room
            if self._waits_for_room and self._has_new_room:
                self.wake()
            self._start_all(batch.claims)
        probe_ms = self._limits.next_probe_ms(began_ms)
        next_ms = min((time_ms for time_ms in (batch.next_due_ms, probe_ms) if time_ms is not None), default=None)
        return next_ms, batch.has_more and self._limits.room > 0

    async def claim(self, limit: int) -> ClaimBatch:
        """Claim due messages that may start, earliest first. The caller must `start` each of them."""
        return await self._store.claim(now_ms=self._clock.now_ms(), limit=limit, rooms=self._limits.rooms())

    def start(self, claim: Claim) -> asyncio.Task[None]:
        """Start an attempt. The returned task ends when the outcome is stored."""
        return self._run(self._singles.make(claim, self._limits.start(claim.lot)), 1)

    def _start_all(self, claims: Sequence[Claim]) -> None:
        """Start attempts, those that may leave together in bundles."""
        if self._bundles is None or len(claims) == 1:
            planned = BundlePlan([], list(claims))
        else:
            planned = plan(claims, region=self._region, free=lambda key: self._limits.free_slots(key.lot, key.folder))
        for bundle in planned.bundles:
            begun = self._limits.start(bundle.key.lot, len(bundle.claims))
            self._limits.send_bundle(bundle.key.lot, len(bundle.claims))
            assert self._bundles is not None
            self._run(self._bundles.make(bundle, begun), len(bundle.claims))
        for claim in planned.singles:
            self.start(claim)

    def _run(self, work: Coroutine[None, None, None], count: int) -> asyncio.Task[None]:
        attempt = asyncio.create_task(work)
        self._attempts[attempt] = count
        attempt.add_done_callback(self._ended)
        return attempt

    def _ended(self, attempt: asyncio.Task[None]) -> None:
        del self._attempts[attempt]
        if not attempt.cancelled() and (error := attempt.exception()) is not None:
            log.error("an attempt ended in an error of the broker itself", exc_info=error)
