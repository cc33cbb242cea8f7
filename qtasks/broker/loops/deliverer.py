"""The delivery loop: claim what is due, send it signed, settle the outcome. Nothing here polls.

Whoever writes what may let an attempt start wakes the loop first and submits the write in the same breath: the claim
that follows is then a part of the same transaction. So a lone message costs two commits, one that stores and leases it
and one that records its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, TypeVar

from qtasks.broker import ids
from qtasks.broker.core import message_builder, rules
from qtasks.broker.core.values import Claim, ClaimBatch, Settled, Settlement
from qtasks.broker.events import EventWatchers, MessageEvent
from qtasks.broker.loops.key_ring import KeyRing
from qtasks.broker.ports import DeliveryRequest, Failure, Transport
from qtasks.broker.settings import DeliveryLimits
from qtasks.broker.store.interface import Store
from qtasks.clock import Clock
from qtasks.errors import StoreError
from qtasks.protocol import signing
from qtasks.protocol.messages import Headers, Message, Response, SigningKeys, State
from qtasks.randomness import Random

T = TypeVar("T")

log = logging.getLogger("qtasks.broker")

USER_AGENT: Final = "Upstash-QStash"
CLAIM_BATCH: Final = 64
_STORE_PAUSE_MS: Final = 1_000
"""How long to wait before the store is tried again after it refused (a full disk, say)."""


class Deliverer:
    """Claims due messages and makes their attempts, as many at once as the limits allow."""

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
        region: str = "EU-CENTRAL-1",
    ) -> None:
        self._store = store
        self._transport = transport
        self._clock = clock
        self._random = random
        self._keys = keys
        self._watchers = watchers
        self._limits = limits or DeliveryLimits()
        self._region = region
        self._attempts: set[asyncio.Task[None]] = set()
        """Attempts whose end is not recorded yet."""
        self._in_flight: Counter[str] = Counter()
        """By host, until there is an outcome."""
        self._wake = asyncio.Event()
        self._claiming = asyncio.Lock()
        self._draining = False

    @property
    def in_flight(self) -> int:
        """Attempts under way."""
        return self._in_flight.total()

    @property
    def draining(self) -> bool:
        """No attempt is started any more."""
        return self._draining

    def wake(self) -> None:
        """Something may be due, or a slot is free: look, together with whatever is written next."""
        self._wake.set()

    async def run(self) -> None:
        """Deliver until cancelled or drained."""
        while not self._draining:
            self._wake.clear()
            try:
                next_due_ms, more = await self._start_due()
            except Exception as error:
                # Whatever it was: a loop that ends here would deliver nothing more, and nobody would know.
                log.error("cannot claim messages: %s", error, exc_info=not isinstance(error, StoreError))
                next_due_ms, more = self._clock.now_ms() + _STORE_PAUSE_MS, False
            if not more:
                await self._clock.wait(self._wake.wait(), next_due_ms)

    async def run_once(self) -> int:
        """Make every attempt that is due now, wait for their ends, and return how many there were."""
        made = 0
        while True:
            _, more = await self._start_due()
            if not self._attempts and not more:
                return made
            made += len(self._attempts)
            await asyncio.gather(*self._attempts)

    async def drain(self, timeout_s: float) -> bool:
        """Start nothing new and wait for the attempts under way; True when all ended in time.

        Those that did not are abandoned: their messages are claimed, so the next start delivers them again.
        """
        self._draining = True
        self.wake()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                async with self._claiming:  # a claim under way will start attempts: they count too
                    pass
                if self._attempts:
                    await asyncio.wait(self._attempts)
        finished = not self._attempts
        for attempt in list(self._attempts):
            attempt.cancel()
        await asyncio.gather(*self._attempts, return_exceptions=True)
        return finished

    async def _start_due(self) -> tuple[int | None, bool]:
        """Claim and start what there is room for; when the next is due, and whether to come back at once."""
        async with self._claiming:
            room = self._limits.in_flight - self.in_flight
            if room <= 0:
                return None, False  # the end of an attempt wakes us
            found = await self.claim(min(room, CLAIM_BATCH))
            for claim in found.claims:
                self.start(claim)
        return found.next_due_ms, found.more and self.in_flight < self._limits.in_flight

    async def claim(self, limit: int) -> ClaimBatch:
        """Take what is due now and may start, earliest first; whoever takes it starts it."""
        return await self._store.claim(
            now_ms=self._clock.now_ms(), limit=limit, host_limit=self._limits.per_host, in_flight=self._in_flight
        )

    def start(self, claim: Claim) -> asyncio.Task[None]:
        """Begin an attempt. What is returned ends when the outcome is recorded."""
        self._in_flight[claim.host] += 1
        attempt = asyncio.create_task(self._attempt(claim))
        self._attempts.add(attempt)
        attempt.add_done_callback(self._ended)
        return attempt

    def _vacate(self, host: str) -> None:
        self._in_flight[host] -= 1
        if not self._in_flight[host]:
            del self._in_flight[host]
        self.wake()

    def _ended(self, attempt: asyncio.Task[None]) -> None:
        self._attempts.discard(attempt)
        if not attempt.cancelled() and (error := attempt.exception()) is not None:
            log.error("an attempt ended in an error of the broker itself", exc_info=error)

    async def _attempt(self, claim: Claim) -> None:
        message = claim.message
        try:
            keys = await self._insist(lambda: self._keys.of(message.account), f"read the signing keys for {message.id}")
            self._tell(State.ACTIVE, message)
            started = self._clock.monotonic()
            outcome = await self._send(message, keys)
        finally:
            self._vacate(claim.host)
        duration_ms = (self._clock.monotonic() - started) * 1000
        now_ms = self._clock.now_ms()
        evaluation = rules.evaluate(message, outcome, now_ms=now_ms)
        settlement = Settlement(claim, outcome, evaluation, self._callback_ids(message, now_ms))
        try:
            settled = await self._settle(settlement, now_ms)
        except Exception as error:
            # An answer that cannot be kept must not keep its message from going on: the evaluation stands without it.
            log.exception("the answer to message %s cannot be recorded", message.id)
            lost = Failure("bad_response", f"the answer could not be recorded: {type(error).__name__}")
            settled = await self._settle(replace(settlement, outcome=lost), now_ms)
        if settled is None:
            log.warning("message %s was settled by another claim; this outcome is dropped", message.id)
            return
        self._tell(
            settled.state,
            message,
            outcome=outcome,
            error=evaluation.error,
            next_delivery_ms=evaluation.due_ms if settled.state is State.RETRY else None,
            duration_ms=duration_ms,
        )
        self._watchers.tell_created(settled.created, now_ms=now_ms)

    def _callback_ids(self, message: Message, now_ms: int) -> tuple[str, str] | None:
        if not message_builder.has_callbacks(message):
            return None
        return ids.message_id(self._random, now_ms), ids.message_id(self._random, now_ms)

    async def _settle(self, settlement: Settlement, now_ms: int) -> Settled | None:
        """Record an attempt's end: what an endpoint has done must not be forgotten, however long the store refuses."""

        def record() -> Awaitable[Settled | None]:
            self.wake()
            return self._store.settle(settlement, now_ms=now_ms)

        return await self._insist(record, f"record the end of an attempt of {settlement.claim.message.id}")

    async def _send(self, message: Message, keys: SigningKeys) -> Response | Failure:
        """The transport's outcome. Whatever breaks on the way costs an attempt, never the message."""
        try:
            request = signed_request(
                message,
                keys,
                now_s=self._clock.now_ms() // 1000,
                jti=ids.jwt_id(self._random),
                region=self._region,
            )
            return await self._transport.send(request)
        except asyncio.CancelledError:
            attempt = asyncio.current_task()
            if attempt is None or attempt.cancelling():
                raise
            # Not us, but what we waited for was cancelled: an application's event loop has ended, say.
            return Failure("connection_lost", "the attempt was cancelled by the other side")
        except Exception as error:
            log.exception("message %s could not be sent", message.id)
            return Failure("connection_lost", f"the attempt broke off in the broker itself: {type(error).__name__}")

    async def _insist(self, ask: Callable[[], Awaitable[T]], what: str) -> T:
        """The store's answer, asked for until it gives one."""
        while True:
            try:
                return await ask()
            except StoreError as error:
                log.error("cannot %s: %s", what, error)
                await self._clock.wait(asyncio.Event().wait(), self._clock.now_ms() + _STORE_PAUSE_MS)

    def _tell(
        self,
        state: State,
        message: Message,
        *,
        outcome: Response | Failure | None = None,
        error: str | None = None,
        next_delivery_ms: int | None = None,
        duration_ms: float | None = None,
    ) -> None:
        if self._watchers:
            self._watchers.tell(
                MessageEvent(
                    time_ms=self._clock.now_ms(),
                    state=state,
                    message=message,
                    outcome=outcome,
                    error=error,
                    next_delivery_ms=next_delivery_ms,
                    duration_ms=duration_ms,
                )
            )


def signed_request(message: Message, keys: SigningKeys, *, now_s: int, jti: str, region: str) -> DeliveryRequest:
    """The signed request of the message's current attempt (docs/protocol.md 4.1).

    The broker's own headers come last and once: forwarded ones of the same name were dropped on acceptance.
    """
    headers: Headers = (
        *(() if _names(message.headers, "user-agent") else (("User-Agent", USER_AGENT),)),
        *message.headers,
        ("Upstash-Caller-Ip", message.caller_ip),
        ("Upstash-Message-Id", message.id),
        ("Upstash-Region", region),
        ("Upstash-Retried", str(message.retried)),
        ("Upstash-Signature", signing.sign(keys.current, url=message.url, body=message.body, now_s=now_s, jti=jti)),
    )
    if message.url_group is not None:
        headers += (("Upstash-Topic-Name", message.url_group),)
    if message.schedule_id is not None:
        headers += (("Upstash-Schedule-Id", message.schedule_id),)
    return DeliveryRequest(message.url, message.method, headers, message.body, message.timeout_ms)


def _names(headers: Headers, name: str) -> bool:
    return any(line[0].lower() == name for line in headers)
