"""Attempts of several messages in one exchange with a dispatcher (docs/protocol.md 5.16).

Each delivery has an outcome of its own, which is recorded as its line arrives. However the exchange ends, every
delivery does: with its line, at its own deadline, as interrupted, or in a request of its own.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from typing import Final

from qtasks.broker.core import interruptions, slot_offers
from qtasks.broker.core.bundle_lines import BundleLines
from qtasks.broker.core.bundle_plan import Bundle
from qtasks.broker.core.delivery_requests import signed_bundle
from qtasks.broker.core.values import Claim
from qtasks.broker.loops.attempt_parts import AttemptParts
from qtasks.broker.loops.outcome_recorder import Ended
from qtasks.broker.loops.single_attempts import SingleAttempts
from qtasks.broker.ports import (
    DeliveryRequest,
    Failure,
    ResponseStream,
    Stopwatch,
    StreamBroken,
    StreamingTransport,
    Timing,
)
from qtasks.protocol.bundles import CONTENT_TYPE, HEARTBEAT_S, ItemOutcome
from qtasks.protocol.messages import MAX_BODY, Headers, Response

log = logging.getLogger("qtasks.broker")

MARGIN_S: Final = 1.0
"""How much later than the deadline of a delivery its line may come: the dispatcher itself reports the timeout."""
SILENCE_S: Final = 3 * HEARTBEAT_S
"""After lines have come, a connection without any for this long is dead. It leaves out several reports in a row."""
END_S: Final = 1.0
"""Longest wait for the end of a response whose outcomes are all known."""
MAX_REFUSAL: Final = 64 * 1024
"""Bytes that are read of an answer that refuses a bundle."""

_LAG_S: Final = 1.0
"""A look that comes so late shows that this process was held up: nothing is called silent for as long again."""
_NOT_SENT: Final = frozenset({"unsendable", "destination_blocked"})
"""Failures of the bundle's own URL. The URLs of its deliveries may be usable."""


class BundleAttempts:
    """Makes the attempts of bundles over `transport`, and those of `singles` where a bundle is refused.

    `offer_room` is called when slots are free, and when a lot need not wait for a response any more.
    """

    def __init__(
        self,
        parts: AttemptParts,
        transport: StreamingTransport,
        singles: SingleAttempts,
        *,
        offer_room: Callable[[], None],
    ) -> None:
        self._parts = parts
        self._transport = transport
        self._singles = singles
        self._offer_room = offer_room

    async def make(self, bundle: Bundle, begun: int) -> None:
        """Make attempts that the limits count already, the last one as number `begun`. It ends when all are stored."""
        exchange = _BundleExchange(self._parts, bundle, begun, offer_room=self._offer_room)
        await exchange.run(self._transport)
        if exchange.refused:
            await asyncio.gather(exchange.recorded(), *(self._singles.make(claim, begun) for claim in exchange.refused))
        else:
            await exchange.recorded()


class _BundleExchange:
    """One request with several deliveries, and its response."""

    def __init__(self, parts: AttemptParts, bundle: Bundle, begun: int, *, offer_room: Callable[[], None]) -> None:
        self._parts = parts
        self._bundle = bundle
        self._begun = begun
        self._offer_room = offer_room
        self._open: dict[int, Claim] = dict(enumerate(bundle.claims))
        """The deliveries without an outcome, by their places."""
        self.refused: list[Claim] = []
        """Deliveries of which nothing has run: each is to be made singly."""
        self._lines = BundleLines(len(bundle.claims))
        self._reading = asyncio.timeout(None)
        self._started_s = self._heard_s = parts.clock.monotonic()
        self._stopwatch = Stopwatch(parts.clock.monotonic)
        self._states_slots = False
        self._is_answered = False
        self._unrecorded: list[Ended] = []
        self._recording: asyncio.Task[None] | None = None

    async def run(self, transport: StreamingTransport) -> None:
        """Send the bundle, and record the outcomes as they come, until every delivery has one or is `refused`."""
        watch: asyncio.Task[None] | None = None
        try:
            request = await self._request()
            self._started_s = self._heard_s = self._parts.clock.monotonic()
            watch = asyncio.create_task(self._watch())
            async with self._reading:
                await self._exchange(transport, request)
        except TimeoutError:
            if not self._reading.expired():
                raise
        except asyncio.CancelledError:
            if self._recording is not None:
                self._recording.cancel()
            raise
        finally:
            if watch is not None:
                watch.cancel()
            self._note_answer()
            if self._open:  # the broker gives up
                self._parts.limits.end(self._bundle.key.lot, None, started_s=self._started_s, count=len(self._open))
                self._offer_room()

    async def recorded(self) -> None:
        """Return when the outcomes are stored. Deliveries that are `refused` do not wait for that."""
        if self._recording is not None:
            await self._recording

    async def _request(self) -> DeliveryRequest:
        parts, claims, key = self._parts, self._bundle.claims, self._bundle.key
        keys = await parts.keys_of(key.account, f"{claims[0].row.id} and {len(claims) - 1} others")
        for claim in claims:
            parts.recorder.note_started(claim)
        longest_s = max(claim.row.timeout_ms for claim in claims) / 1000
        return signed_bundle(
            key.folder,
            self._bundle.lines,
            keys,
            now_s=parts.signing_time_s(),
            jti=parts.token_id(),
            timeout_ms=round((longest_s + 2 * MARGIN_S) * 1000),
            stopwatch=self._stopwatch,
        )

    # -- the response

    async def _exchange(self, transport: StreamingTransport, request: DeliveryRequest) -> None:
        try:
            opened = await transport.open(request)
            self._note_answer()
            if isinstance(opened, Failure):
                self._fail_to_open(opened)
                return
            try:
                await self._take(opened)
            finally:
                await opened.close()
        except asyncio.CancelledError:
            attempt = asyncio.current_task()
            if attempt is None or attempt.cancelling():
                raise
            self._end_open(Failure("connection_lost", "the attempt was cancelled by the other side"))
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise  # the broker itself ends
        except BaseException as error:
            log.exception("a bundle of %s messages could not be sent", len(self._bundle.claims))
            reason = f"the attempt failed inside the broker: {type(error).__name__}"
            self._end_open(Failure("connection_lost", reason))

    def _note_answer(self) -> None:
        """What has waited for the round trip may leave."""
        if not self._is_answered:
            self._is_answered = True
            self._parts.limits.answer_bundle(self._bundle.key.lot)
            self._offer_room()

    def _fail_to_open(self, failure: Failure) -> None:
        if failure.code in _NOT_SENT:
            self._refuse()
            return
        if failure.code == "bad_response":
            self._parts.limits.refuse_bundles(self._bundle.key.lot)
        self._end_open(failure)

    async def _take(self, opened: ResponseStream) -> None:
        if opened.status == 200 and _value(opened.headers, "content-type") == CONTENT_TYPE:
            self._note_slots(opened.headers, self._begun)
            await self._read(opened)
        elif interruptions.is_handed_back(opened.headers):
            self._note_slots(opened.headers, self._begun)
            self._end_open(Response(status=opened.status, headers=opened.headers, body=await _beginning(opened)))
        else:
            self._refuse()

    async def _read(self, opened: ResponseStream) -> None:
        """Read the lines to the end of the response. Every delivery has an outcome afterwards."""
        host = self._bundle.claims[0].host
        reason = f"connection lost: {host} ended the response to several deliveries before the line of this one"
        try:
            async for piece in opened.chunks:
                self._heard_s = self._parts.clock.monotonic()
                if outcomes := self._lines.feed(piece, self._heard_s):
                    self._take_outcomes(outcomes)
                if self._lines.fault is not None:
                    self._parts.limits.refuse_bundles(self._bundle.key.lot)
                    reason = f"unusable response from {host} to several deliveries: {self._lines.fault}"
                    self._end_open(Failure("bad_response", reason))
                    return
                if not self._open:
                    self._reading.reschedule(asyncio.get_running_loop().time() + END_S)
        except StreamBroken as broken:
            if broken.failure.code == "bad_response":
                self._parts.limits.refuse_bundles(self._bundle.key.lot)
                self._end_open(broken.failure)
            reason = broken.failure.error
        self._end_open(Failure("connection_lost", reason, interrupted=True, mid_run=True))
        if self._lines.is_held_back():
            self._parts.limits.refuse_bundles(self._bundle.key.lot)
        elif not self._states_slots:
            self._parts.limits.note_slots(self._bundle.key.lot, self._bundle.key.folder, None, begun=self._begun)

    def _take_outcomes(self, outcomes: list[ItemOutcome]) -> None:
        timing = self._timing()
        ended = [
            Ended(claim, _response(outcome), self._started_s, timing)
            for outcome in outcomes
            if (claim := self._open.pop(outcome.place, None)) is not None  # else it has ended at its deadline
        ]
        self._end(ended)
        self._note_slots(outcomes[-1].headers, self._begun)

    def _note_slots(self, headers: Headers, begun: int) -> None:
        if (slots := slot_offers.slots_of(headers)) is not None:
            key = self._bundle.key
            self._parts.limits.note_slots(key.lot, key.folder, slots, begun=begun)
            self._states_slots = True

    # -- the ends of deliveries

    def _refuse(self) -> None:
        """Nothing has run: the deliveries are made singly, and the prefix gets no bundle for a while."""
        self._parts.limits.refuse_bundles(self._bundle.key.lot)
        self.refused = list(self._open.values())
        self._open.clear()

    def _end_open(self, outcome: Response | Failure) -> None:
        """Every delivery without an outcome has this one."""
        timing = self._timing()
        ended = [Ended(claim, outcome, self._started_s, timing) for claim in self._open.values()]
        self._open.clear()
        self._end(ended)

    def _timing(self) -> Timing:
        """Of a delivery that ends now."""
        return self._stopwatch.timing(bundled=len(self._bundle.claims))

    def _end(self, ended: Iterable[Ended]) -> None:
        """Free the slots of deliveries, and record their outcomes as soon as earlier ones are recorded."""
        before = len(self._unrecorded)
        self._unrecorded += ended
        if not (count := len(self._unrecorded) - before):
            return
        self._parts.limits.end(
            self._bundle.key.lot, self._unrecorded[-1].outcome, started_s=self._started_s, count=count
        )
        self._offer_room()
        if self._recording is None or self._recording.done():
            self._recording = asyncio.create_task(self._record())

    async def _record(self) -> None:
        """Record outcomes. Those that arrive meanwhile are recorded together afterwards."""
        while self._unrecorded:
            ended, self._unrecorded = self._unrecorded, []
            await self._parts.recorder.record(ended)

    # -- deadlines and silence

    async def _watch(self) -> None:
        """End deliveries at their deadlines, and all of them when the connection is dead."""
        clock = self._parts.clock
        planned_s = self._started_s
        while True:
            now_s = clock.monotonic()
            planned_s = self._look(now_s, is_late=now_s > planned_s + _LAG_S)
            if not self._open:
                self._reading.reschedule(asyncio.get_running_loop().time())
                return
            wait_ms = math.ceil((planned_s - clock.monotonic()) * 1000)
            await clock.wait(asyncio.Event().wait(), clock.now_ms() + max(1, wait_ms))

    def _look(self, now_s: float, *, is_late: bool) -> float:
        """End what is overdue at the time `now_s`. Return when to look again.

        `is_late`: this process was held up, and reports may have arrived that it has not read.
        """
        for place, claim in list(self._open.items()):
            if self._deadline_s(claim) <= now_s:
                del self._open[place]
                self._end((Ended(claim, _timed_out(claim), self._started_s, self._timing()),))
        silent_from_s = max(self._heard_s + SILENCE_S, now_s + _LAG_S if is_late else 0.0)
        if silent_from_s <= now_s:
            # A proxy that holds lines back for a while is indistinguishable from here: no more bundles through it.
            self._parts.limits.refuse_bundles(self._bundle.key.lot)
            if self._lines.has_begun:
                reason = f"connection lost: nothing came from {self._bundle.claims[0].host} for {SILENCE_S:g}s"
                self._end_open(Failure("connection_lost", reason, interrupted=True, mid_run=True))
            silent_from_s = math.inf
        return min((*map(self._deadline_s, self._open.values()), silent_from_s))

    def _deadline_s(self, claim: Claim) -> float:
        return self._started_s + claim.row.timeout_ms / 1000 + MARGIN_S


def _timed_out(claim: Claim) -> Failure:
    return Failure("timeout", f"no answer from {claim.host} within {claim.row.timeout_ms / 1000:g}s (Upstash-Timeout)")


def _response(outcome: ItemOutcome) -> Response:
    body = outcome.body
    if len(body) > MAX_BODY:
        return Response(status=outcome.status, headers=outcome.headers, body=body[:MAX_BODY], truncated=True)
    return Response(status=outcome.status, headers=outcome.headers, body=body)


async def _beginning(opened: ResponseStream) -> bytes:
    """The first bytes of a body, as far as they arrive."""
    body = bytearray()
    try:
        async for piece in opened.chunks:
            body += piece
            if len(body) >= MAX_REFUSAL:
                break
    except StreamBroken:
        pass
    return bytes(body[:MAX_REFUSAL])


def _value(headers: Headers, name: str) -> str | None:
    return next((value.partition(";")[0].strip().lower() for line, value in headers if line.lower() == name), None)
