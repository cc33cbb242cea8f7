"""One attempt of one message, in a request of its own: sign, send, and record what came of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from qtasks.broker.core import interruptions, slot_offers
from qtasks.broker.core.delivery_requests import address_of, signed_request
from qtasks.broker.core.values import Claim
from qtasks.broker.loops.attempt_parts import AttemptParts
from qtasks.broker.loops.outcome_recorder import Ended
from qtasks.broker.ports import Failure, Stopwatch, Transport
from qtasks.protocol.messages import Message, Response, SigningKeys

log = logging.getLogger("qtasks.broker")


class SingleAttempts:
    """Makes attempts over `transport`. `offer_room` is called when the slot of one is free."""

    def __init__(self, parts: AttemptParts, transport: Transport, *, offer_room: Callable[[], None]) -> None:
        self._parts = parts
        self._transport = transport
        self._offer_room = offer_room

    async def make(self, claim: Claim, begun: int) -> None:
        """Make an attempt that the limits count already, as number `begun`. It ends when its outcome is stored."""
        message, clock = claim.message, self._parts.clock
        stopwatch = Stopwatch(clock.monotonic)
        started_s = clock.monotonic()
        outcome: Response | Failure | None = None
        try:
            keys = await self._parts.keys_of(message.account, message.id)
            self._parts.recorder.note_started(claim)
            started_s = clock.monotonic()
            outcome = await self._send(message, keys, stopwatch)
            timing = stopwatch.timing()
        finally:
            self._parts.limits.end(claim.lot, outcome, started_s=started_s)
            self._offer_room()
        if begun and isinstance(outcome, Response):
            self._note_slots(claim, outcome, begun)
        await self._parts.recorder.record_with_others(Ended(claim, outcome, started_s, timing))

    def _note_slots(self, claim: Claim, response: Response, begun: int) -> None:
        """A dispatcher that takes bundles says so in its answers."""
        if interruptions.has_dispatcher(response) and (address := address_of(claim.message.url)) is not None:
            slots = slot_offers.slots_of(response.headers)
            self._parts.limits.note_slots(claim.lot, address.folder, slots, begun=begun)

    async def _send(self, message: Message, keys: SigningKeys, stopwatch: Stopwatch) -> Response | Failure:
        """Send the attempt and return its outcome. Any error fails only this attempt; the message is kept."""
        parts = self._parts
        try:
            request = signed_request(
                message,
                keys,
                now_s=parts.signing_time_s(),
                jti=parts.token_id(),
                region=parts.region,
                stopwatch=stopwatch,
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
