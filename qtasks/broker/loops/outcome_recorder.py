"""What follows from the outcomes of attempts: each is assessed, stored with its claim token, and told to watchers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple, TypeVar

from qtasks.broker import ids
from qtasks.broker.core import interruptions, message_rows, rules
from qtasks.broker.core.interruptions import Situation
from qtasks.broker.core.values import Claim, Settled, Settlement
from qtasks.broker.events import EventWatchers, MessageEvent
from qtasks.broker.loops.delivery_log import DeliveryLog
from qtasks.broker.ports import Failure, Timing
from qtasks.broker.store.interface import Store
from qtasks.broker.store.verbs import settle
from qtasks.clock import Clock
from qtasks.errors import StoreError
from qtasks.protocol.messages import Message, Response, State
from qtasks.randomness import Random

T = TypeVar("T")

log = logging.getLogger("qtasks.broker")

MAX_PREFIXES: Final = 4_096
"""URL prefixes whose last answer is remembered."""
_STORE_PAUSE_MS: Final = 1_000
"""Wait between two tries while the store raises errors, for example because the disk is full."""
_STORE_LOG_S: Final = 60.0
"""While the store raises errors, one operation logs them at most this often."""


class Ended(NamedTuple):
    """An attempt that has an outcome."""

    claim: Claim
    outcome: Response | Failure
    started_s: float
    """When it began, in monotonic seconds."""
    timing: Timing


class OutcomeRecorder:
    """Records the outcomes of attempts. `wake` lets a claim join the transaction of those that may let others start.

    `delivery_log` gets every end that is stored; None: no line is logged about them.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        random: Random,
        watchers: EventWatchers,
        *,
        wake: Callable[[], None],
        delivery_log: DeliveryLog | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._random = random
        self._watchers = watchers
        self._wake = wake
        self._delivery_log = delivery_log
        self._of_this_turn: list[Ended] = []
        """What waits for `_recording`, which the event loop starts in its next turn."""
        self._recording: asyncio.Task[None] | None = None
        self._answered: dict[str, float] = {}
        """When a dispatcher last answered, in monotonic seconds, by URL prefix; the latest at the end."""

    def note_started(self, claim: Claim) -> None:
        """Tell the watchers that an attempt begins."""
        if self._watchers and not claim.quiet:
            self._notify(State.ACTIVE, claim.message)

    async def record_with_others(self, ended: Ended) -> None:
        """As `record`, together with the attempts that end in the same turn of the event loop.

        To cancel one of them cancels the recording for all.
        """
        self._of_this_turn.append(ended)
        if self._recording is None or self._recording.done():  # done: it was cancelled before it began
            self._recording = asyncio.create_task(self._record_turn())
        await self._recording

    async def _record_turn(self) -> None:
        ended, self._of_this_turn, self._recording = self._of_this_turn, [], None
        await self.record(ended)

    async def record(self, ended: Sequence[Ended]) -> None:
        """Store the outcomes of attempts in one transaction, and tell the watchers.

        It is repeated until the store accepts it, because the endpoint has done its work.
        """
        now_s, now_ms = self._clock.monotonic(), self._clock.now_ms()
        offset_ms = self._clock.offset_ms()
        settlements: list[Settlement] = []
        for claim, outcome, started_s, timing in ended:
            situation = self._situation(claim, outcome, started_s, now_s)
            evaluation = rules.success_in(outcome, may_wait=claim.row.interrupted_for_ms is not None)
            if evaluation is None:
                evaluation = rules.evaluate(
                    claim.message, outcome, now_ms=now_ms, offset_ms=offset_ms, situation=situation
                )
            settlements.append(Settlement(claim, outcome, evaluation, self._callback_ids(claim, now_ms), timing))
        all_settled = await self._settle_all(settlements, now_ms)
        if None in all_settled:  # a damaged message may have been set aside: what it occupied is free
            self._wake()
        for settlement, settled, (_, _, started_s, _) in zip(settlements, all_settled, ended, strict=True):
            if settled is None:
                log.warning("message %s was settled by another claim; this outcome is dropped", settlement.claim.row.id)
            elif not settled.quiet:
                spent_ms = (now_s - started_s) * 1000
                if self._delivery_log is not None:
                    self._delivery_log.note(settlement, settled, now_ms=now_ms, spent_ms=spent_ms)
                if self._watchers:
                    self._tell(settlement, settled, duration_ms=spent_ms)
                    self._watchers.notify_created(settled.created, now_ms=now_ms)

    async def _settle_all(self, settlements: Sequence[Settlement], now_ms: int) -> Sequence[Settled | None]:
        try:
            return await self._write(settlements, now_ms)
        except Exception as error:
            if len(settlements) > 1:  # one of them is the reason; it must not stop the others
                return [(await self._settle_all((settlement,), now_ms))[0] for settlement in settlements]
            # A response that cannot be stored must not stop its message: settle with the same evaluation, without it.
            [settlement] = settlements
            log.exception("the response to message %s cannot be recorded", settlement.claim.row.id)
            lost = Failure("bad_response", f"the response could not be recorded: {type(error).__name__}")
            return await self._write((replace(settlement, outcome=lost),), now_ms)

    async def _write(self, settlements: Sequence[Settlement], now_ms: int) -> Sequence[Settled | None]:
        """Write the settlements in one transaction. None in place of those that another claim has settled."""
        lacks_room = self._store.lacks_room.is_set
        are_plain = all(map(settle.is_plain, settlements))
        store = self._store.write_patiently if are_plain else self._store.write

        async def write() -> Sequence[Settled | None]:
            if not are_plain:
                self._wake()
            if len(settlements) == 1:
                return (await store(settle.settle, settlements[0], now_ms=now_ms, lacks_room=lacks_room),)
            return await store(settle.settle_all, settlements, now_ms=now_ms, lacks_room=lacks_room)

        others = f" and {len(settlements) - 1} others" if len(settlements) > 1 else ""
        return await self.until_stored(write, f"record the end of an attempt of {settlements[0].claim.row.id}{others}")

    async def until_stored(self, operation: Callable[[], Awaitable[T]], purpose: str) -> T:
        """The result of a store operation, repeated every second until it succeeds.

        It gives up only if the store is broken: the next start makes the attempt again. It logs errors once a minute.
        """
        next_log_s: float | None = None
        while True:
            try:
                return await operation()
            except StoreError as error:
                if self._store.broken.is_set():
                    raise asyncio.CancelledError from error
                now_s = self._clock.monotonic()
                if next_log_s is None or now_s >= next_log_s:
                    log.error("cannot %s: %s", purpose, error)
                    next_log_s = now_s + _STORE_LOG_S
                await self._clock.wait(asyncio.Event().wait(), self._clock.now_ms() + _STORE_PAUSE_MS)

    def _situation(self, claim: Claim, outcome: Response | Failure, started_s: float, now_s: float) -> Situation:
        """The situation of an attempt at its end: what its prefix has answered to others meanwhile counts."""
        if (prefix := claim.prefix) is None:
            return claim.situation
        answered_s = self._answered.get(prefix)
        if answered_s != now_s and interruptions.has_dispatcher(outcome):
            self._answered.pop(prefix, None)
            self._answered[prefix] = now_s
            if len(self._answered) > MAX_PREFIXES:
                del self._answered[next(iter(self._answered))]
        if answered_s is None:
            return claim.situation
        is_probe = claim.situation.is_probe and answered_s < started_s
        if (claim.situation.has_dispatcher, claim.situation.is_probe) == (True, is_probe):
            return claim.situation
        return replace(claim.situation, has_dispatcher=True, is_probe=is_probe)

    def _callback_ids(self, claim: Claim, now_ms: int) -> tuple[str, str] | None:
        if not message_rows.has_callbacks(claim.row):
            return None
        return ids.message_id(self._random, now_ms), ids.message_id(self._random, now_ms)

    def _tell(self, settlement: Settlement, settled: Settled, *, duration_ms: float) -> None:
        self._notify(
            settled.state,
            settlement.claim.message,
            outcome=settlement.outcome,
            error=settlement.evaluation.error,
            next_delivery_ms=settled.next_ms,
            duration_ms=duration_ms,
        )

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
