"""A delivery loop over the real store in memory, with applications that go away and come back on a virtual clock."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self, cast

from qtasks.broker.core.rules import Stage
from qtasks.broker.core.values import AccountCredentials, DeadLetterCriteria, LogCriteria
from qtasks.broker.events import EventWatchers
from qtasks.broker.loops.deliverer import Deliverer
from qtasks.broker.loops.key_ring import KeyRing
from qtasks.broker.ports import DeliveryRequest, Failure, Transport
from qtasks.broker.settings import DeliveryLimits
from qtasks.broker.store.sqlite import SqliteStore
from qtasks.broker.store.verbs import accounts, settle
from qtasks.broker.store.verbs.reads import queries
from qtasks.protocol.headers import DISPATCHER_HEADER
from qtasks.protocol.messages import DeadLetter, LogEntry, PublishOptions, Response, SigningKeys
from qtasks.testing.fakes.bundling import BundlingTransport
from tests.support.broker import ACCOUNT, SeededRandom, VirtualClock, publication

KEYS = SigningKeys("sig_" + "a" * 28, "sig_" + "b" * 28)
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
ALLOWED = PublishOptions(interrupted_for_ms=DAY_MS)

DONE = Response(status=200, headers=((DISPATCHER_HEADER, "true"),))
REFUSED = Failure("connection_refused", "connection refused", interrupted=True)
CUT = Failure("connection_lost", "the connection was closed", interrupted=True, mid_run=True)
BAD_GATEWAY = Response(status=502, body=b"<html>")

Outcome = Response | Failure
Answer = Callable[[DeliveryRequest], Outcome | Awaitable[Outcome]]


class ClockWithAlarm(VirtualClock):
    """A virtual clock that says for when it was last asked to wake somebody."""

    alarm_ms: int | None = None

    async def wait(self, event: Awaitable[object], until_ms: int | None) -> None:
        """See `Clock.wait`."""
        self.alarm_ms = until_ms
        await super().wait(event, until_ms)


@dataclass(frozen=True)
class Delivery:
    """One request to an application."""

    message_id: str
    time_ms: int
    retried: int
    url: str


class World:
    """A broker and the applications that `answer` stands for."""

    def __init__(self, store: SqliteStore, limits: DeliveryLimits) -> None:
        self.store = store
        self.limits = limits
        self.transport: Transport = self
        self.clock = ClockWithAlarm()
        self.answer: Answer = lambda request: DONE
        self.sent: list[Delivery] = []
        self.in_flight = 0
        self._number = 0

    @classmethod
    async def opened(cls, limits: DeliveryLimits | None = None, *, in_bundles: bool = False) -> Self:
        """A world with two accounts, whose delivery loop runs."""
        store, _ = await SqliteStore.open(":memory:", VirtualClock())
        for name in ("me", "other"):
            await store.write(accounts.ensure_account, AccountCredentials(name, name, KEYS), KEYS)
        world = cls(store, limits or DeliveryLimits())
        if in_bundles:
            world.transport = BundlingTransport(world, world.clock)
        world.start()
        return world

    def start(self) -> None:
        """Start the delivery loop, as a new process would."""
        self.watchers = EventWatchers()
        self.deliverer = Deliverer(
            self.store,
            self.transport,
            self.clock,
            SeededRandom(),
            keys=KeyRing(self.store),
            watchers=self.watchers,
            limits=self.limits,
        )
        self._loop = asyncio.create_task(self.deliverer.run())

    async def kill(self) -> None:
        """End the delivery loop wherever it stands: its attempts stay unfinished."""
        self._loop.cancel()
        attempts = list(self.deliverer._attempts)
        for attempt in attempts:
            attempt.cancel()
        await asyncio.gather(self._loop, *attempts, return_exceptions=True)

    async def crash(self) -> None:
        """The process dies, and another one takes over its file."""
        await self.kill()
        await self.store.write(lambda db: settle.recover(db, now_ms=self.clock.now_ms()))
        self.start()

    async def close(self) -> None:
        """End of the test. Also the end of the transport, which holds nothing."""
        if not self._loop.done():
            await self.kill()
        with contextlib.suppress(Exception):
            await self.store.close()

    # -- the transport

    async def send(self, request: DeliveryRequest) -> Outcome:
        """Deliver one request to `answer`."""
        headers = dict(request.headers)
        delivery = Delivery(
            headers["Upstash-Message-Id"], self.clock.now_ms(), int(headers["Upstash-Retried"]), request.url
        )
        self.sent.append(delivery)
        self.in_flight += 1
        try:
            outcome = self.answer(request)
            return outcome if isinstance(outcome, Response | Failure) else await outcome
        finally:
            self.in_flight -= 1

    # -- what a test does

    async def publish(self, count: int = 1, **changes: Any) -> list[str]:
        """Publish messages with an allowance of 24 h for interruptions; return their ids."""
        numbers = range(self._number, self._number + count)
        self._number += count
        changes.setdefault("options", ALLOWED)
        now_ms = self.clock.now_ms()
        publications = [
            publication(number, now_ms=now_ms, **{"not_before_ms": now_ms, **changes}) for number in numbers
        ]
        accepted = await self.store.accept(publications, now_ms=now_ms)
        self.deliverer.wake()
        await self.settle()
        return [one.message_id for one in accepted]

    async def settle(self) -> None:
        """Let everything happen that needs no time."""
        quiet_turns, before = 0, None
        while quiet_turns < 15:
            await asyncio.sleep(0)
            now = (len(self.sent), self.in_flight, len(self.deliverer._attempts))
            quiet_turns = quiet_turns + 1 if now == before else 0
            before = now

    async def pass_time(self, span_ms: int) -> None:
        """Let `span_ms` milliseconds pass, moment by moment as the loop asks to be woken."""
        end_ms = self.clock.now_ms() + span_ms
        await self.settle()
        while (now_ms := self.clock.now_ms()) < end_ms:
            alarm_ms = self.clock.alarm_ms
            next_ms = end_ms if alarm_ms is None or alarm_ms <= now_ms else min(alarm_ms, end_ms)
            self.clock.move_to(next_ms)
            await self.settle()

    # -- what a test sees

    def sent_since(self, time_ms: int) -> list[Delivery]:
        return [delivery for delivery in self.sent if delivery.time_ms >= time_ms]

    async def dead(self) -> list[DeadLetter]:
        page = await self.store.read(queries.dead_letters, ACCOUNT, DeadLetterCriteria(), cursor=None, count=100_000)
        return list(page.items)

    async def dead_ids(self) -> list[str]:
        return sorted(letter.message.id for letter in await self.dead())

    async def log(self, message_id: str) -> list[LogEntry]:
        criteria = LogCriteria(message_ids=(message_id,), oldest_first=True)
        page = await self.store.read(queries.log, ACCOUNT, criteria, cursor=None, count=100_000)
        return list(page.items)

    async def stage(self, message_id: str) -> Stage:
        stage = await self.store.write(
            lambda db: db.execute("SELECT stage FROM messages WHERE id = ?", (message_id,)).get
        )
        return Stage(cast("int", stage))

    async def count(self, stage: Stage) -> int:
        number = await self.store.write(
            lambda db: db.execute("SELECT count(*) FROM messages WHERE stage = ?", (stage.value,)).get
        )
        return cast("int", number)
