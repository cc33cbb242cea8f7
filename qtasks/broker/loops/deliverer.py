"""The delivery loop: claim due messages, send them signed, settle the outcomes. It does not poll.

A caller whose write may let an attempt start wakes the loop first and submits the write in the same iteration of the
event loop. The claim that follows then joins the same transaction, so a single message costs two commits: one stores
and claims it, one records its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, TypeVar

from qtasks.broker import ids
from qtasks.broker.core import interruptions, message_builder, rules
from qtasks.broker.core.bundle_items import USER_AGENT
from qtasks.broker.core.interruptions import Situation
from qtasks.broker.core.values import Claim, ClaimBatch, Settled, Settlement
from qtasks.broker.events import EventWatchers, MessageEvent
from qtasks.broker.loops.host_limits import HostLimits
from qtasks.broker.loops.key_ring import KeyRing
from qtasks.broker.ports import DeliveryRequest, Failure, Transport
from qtasks.broker.settings import DeliveryLimits
from qtasks.broker.store.interface import Store
from qtasks.broker.store.verbs import settle
from qtasks.clock import Clock
from qtasks.errors import StoreError
from qtasks.protocol import signing
from qtasks.protocol.messages import Headers, Message, Response, SigningKeys, State
from qtasks.randomness import Random

T = TypeVar("T")

log = logging.getLogger("qtasks.broker")

CLAIM_BATCH: Final = 64
"""Messages that are claimed at once."""
MAX_PREFIXES: Final = 4_096
"""URL prefixes whose last answer is remembered."""
_STORE_PAUSE_MS: Final = 1_000
"""Wait between two tries while the store raises errors, for example because the disk is full."""
_STORE_LOG_S: Final = 60.0
"""While the store raises errors, one operation logs them at most this often."""


class Deliverer:
    """Claims due messages and makes their attempts, as many concurrently as the limits allow."""

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
        self._limits = HostLimits(limits or DeliveryLimits(), clock)
        self._region = region
        self._attempts: set[asyncio.Task[None]] = set()
        """Attempts whose end is not stored yet."""
        self._answered: dict[str, float] = {}
        """When a dispatcher last answered, in monotonic seconds, by URL prefix; the latest at the end."""
        self._wake = asyncio.Event()
        self._next_due_ms: int | None = None
        """When the loop claims again although nothing wakes it; None: not before something does."""
        self._claiming = asyncio.Lock()
        self._draining = False

    @property
    def in_flight(self) -> int:
        """Attempts in flight."""
        return self._limits.in_flight

    @property
    def draining(self) -> bool:
        """True once `drain` was called: no further attempt starts."""
        return self._draining

    def wake(self) -> None:
        """Claim again, in the transaction of the next write: a message may be due, or a slot may be free."""
        self._wake.set()

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
            count += len(self._attempts)
            await asyncio.gather(*self._attempts)

    async def drain(self, timeout_s: float) -> bool:
        """Start no further attempt and wait for those in flight; True if all ended within `timeout_s`.

        The others are cancelled. Their messages stay claimed, so the next start of the broker delivers them again.
        """
        self._draining = True
        self.wake()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                async with self._claiming:  # a claim in progress will start attempts, which count as well
                    pass
                if self._attempts:
                    await asyncio.wait(self._attempts)
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
            room = self._limits.room
            if room <= 0:
                return None, False  # the end of an attempt wakes the loop
            batch = await self.claim(min(room, CLAIM_BATCH))
            for claim in batch.claims:
                self.start(claim)
        probe_ms = self._limits.next_probe_ms()
        next_ms = min((time_ms for time_ms in (batch.next_due_ms, probe_ms) if time_ms is not None), default=None)
        return next_ms, batch.has_more and self._limits.room > 0

    async def claim(self, limit: int) -> ClaimBatch:
        """Claim due messages that may start, earliest first. The caller must `start` each of them."""
        return await self._store.claim(now_ms=self._clock.now_ms(), limit=limit, rooms=self._limits.rooms())

    def start(self, claim: Claim) -> asyncio.Task[None]:
        """Start an attempt. The returned task ends when the outcome is stored."""
        self._limits.start(claim.lot)
        attempt = asyncio.create_task(self._attempt(claim))
        self._attempts.add(attempt)
        attempt.add_done_callback(self._ended)
        return attempt

    def _free_slot(self, lot: str, outcome: Response | Failure | None, started_s: float) -> None:
        self._limits.end(lot, outcome, started_s=started_s)
        self.wake()

    def _ended(self, attempt: asyncio.Task[None]) -> None:
        self._attempts.discard(attempt)
        if not attempt.cancelled() and (error := attempt.exception()) is not None:
            log.error("an attempt ended in an error of the broker itself", exc_info=error)

    async def _attempt(self, claim: Claim) -> None:
        message = claim.message
        started = self._clock.monotonic()
        outcome: Response | Failure | None = None
        try:
            keys = await self._retry_until_success(
                lambda: self._keys.of(message.account), f"read the signing keys for {message.id}"
            )
            if not claim.quiet:
                self._notify(State.ACTIVE, message)
            started = self._clock.monotonic()
            outcome = await self._send(message, keys)
        finally:
            self._free_slot(claim.lot, outcome, started)
        duration_ms = (self._clock.monotonic() - started) * 1000
        now_ms = self._clock.now_ms()
        evaluation = rules.evaluate(
            message,
            outcome,
            now_ms=now_ms,
            offset_ms=self._clock.offset_ms(),
            situation=self._situation(claim, outcome, started),
        )
        settlement = Settlement(claim, outcome, evaluation, self._callback_ids(message, now_ms))
        try:
            settled = await self._settle(settlement, now_ms)
        except Exception as error:
            # A response that cannot be stored must not stop its message: settle with the same evaluation, without it.
            log.exception("the response to message %s cannot be recorded", message.id)
            lost = Failure("bad_response", f"the response could not be recorded: {type(error).__name__}")
            settled = await self._settle(replace(settlement, outcome=lost), now_ms)
        if settled is None:
            log.warning("message %s was settled by another claim; this outcome is dropped", message.id)
            return
        if settled.quiet:
            return
        self._notify(
            settled.state,
            message,
            outcome=outcome,
            error=evaluation.error,
            next_delivery_ms=settled.next_ms,
            duration_ms=duration_ms,
        )
        self._watchers.notify_created(settled.created, now_ms=now_ms)

    def _situation(self, claim: Claim, outcome: Response | Failure, started: float) -> Situation:
        """The situation of an attempt at its end: what its prefix has answered to others meanwhile counts."""
        if (prefix := claim.prefix) is None:
            return claim.situation
        answered = self._answered.get(prefix)
        if interruptions.has_dispatcher(outcome):
            self._answered.pop(prefix, None)
            self._answered[prefix] = self._clock.monotonic()
            if len(self._answered) > MAX_PREFIXES:
                del self._answered[next(iter(self._answered))]
        if answered is None:
            return claim.situation
        is_probe = claim.situation.is_probe and answered < started
        if (claim.situation.has_dispatcher, claim.situation.is_probe) == (True, is_probe):
            return claim.situation
        return replace(claim.situation, has_dispatcher=True, is_probe=is_probe)

    def _callback_ids(self, message: Message, now_ms: int) -> tuple[str, str] | None:
        if not message_builder.has_callbacks(message):
            return None
        return ids.message_id(self._random, now_ms), ids.message_id(self._random, now_ms)

    async def _settle(self, settlement: Settlement, now_ms: int) -> Settled | None:
        """Record the end of an attempt. Repeat it until the store accepts it, because the endpoint has done its work.

        None if another claim has settled the message.
        """
        lacks_room = self._store.lacks_room.is_set

        def record() -> Awaitable[Settled | None]:
            self.wake()
            return self._store.write(settle.settle, settlement, now_ms=now_ms, lacks_room=lacks_room)

        return await self._retry_until_success(record, f"record the end of an attempt of {settlement.claim.message.id}")

    async def _send(self, message: Message, keys: SigningKeys) -> Response | Failure:
        """Send the attempt and return its outcome. Any error fails only this attempt; the message is kept."""
        try:
            request = signed_request(
                message,
                keys,
                now_s=self._clock.wall_ms() // 1000,
                jti=ids.jwt_id(self._random),
                region=self._region,
            )
            return await self._transport.send(request)
        except asyncio.CancelledError:
            attempt = asyncio.current_task()
            if attempt is None or attempt.cancelling():
                raise
            # The transport was cancelled, not this attempt: for example, the application's event loop has ended.
            return Failure("connection_lost", "the attempt was cancelled by the other side")
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise  # the broker itself ends
        except BaseException as error:
            log.exception("message %s could not be sent", message.id)
            return Failure("connection_lost", f"the attempt failed inside the broker: {type(error).__name__}")

    async def _retry_until_success(self, operation: Callable[[], Awaitable[T]], purpose: str) -> T:
        """The result of a store operation, repeated every second until it succeeds.

        It gives up only if the store is broken: the next start makes the attempt again. It logs errors once a minute.
        """
        next_log_s = self._clock.monotonic()
        while True:
            try:
                return await operation()
            except StoreError as error:
                if self._store.broken.is_set():
                    raise asyncio.CancelledError from error
                if self._clock.monotonic() >= next_log_s:
                    log.error("cannot %s: %s", purpose, error)
                    next_log_s = self._clock.monotonic() + _STORE_LOG_S
                await self._clock.wait(asyncio.Event().wait(), self._clock.now_ms() + _STORE_PAUSE_MS)

    def _notify(
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
            self._watchers.notify(
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

    The broker's own headers come last, each once: publish has dropped forwarded headers of the same names.
    """
    headers: Headers = (
        *(() if _has_header(message.headers, "user-agent") else (("User-Agent", USER_AGENT),)),
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


def _has_header(headers: Headers, name: str) -> bool:
    return any(line[0].lower() == name for line in headers)
