"""A broker on a file, on a machine whose clock a test sets; it may be stopped, killed and started again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from qtasks.broker.broker import Broker
from qtasks.broker.core.values import Retention
from qtasks.broker.ports import DeliveryRequest
from qtasks.broker.settings import BrokerSettings
from qtasks.protocol.messages import Response
from tests.support.api import HOOK, Service, header
from tests.support.broker import START_MS, ScriptedTransport, SeededRandom, VirtualClock

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
DECADE_MS = 3650 * DAY_MS


class Attempt(NamedTuple):
    """One request to an endpoint: its body, when it came by the time that has passed, and by the machine's clock."""

    body: str
    elapsed_ms: int
    wall_ms: int
    schedule: str | None


class ClockWorld:
    """The machine, its clock, and the broker on it."""

    def __init__(self, path: Path) -> None:
        self.clock = VirtualClock()
        self.attempts: list[Attempt] = []
        self.failures: dict[str, int] = {}
        """How many attempts of the message with that body still fail."""
        self._path = str(path)
        self._random = SeededRandom()
        self._transport = ScriptedTransport(self._answer)

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path) -> AsyncIterator[ClockWorld]:
        world = cls(path)
        await world.start()
        yield world
        await world.service.close()

    async def start(self) -> None:
        broker = await Broker.open(
            BrokerSettings(path=self._path), transport=self._transport, clock=self.clock, random=self._random
        )
        self.service = Service(broker, self.clock, self._transport)

    async def stop(self, *, killed: bool = False) -> None:
        """Stop the broker; `killed`: it has no chance to store anything any more."""
        await (self.service.broker.store.close() if killed else self.service.close())

    async def restart(self, *, killed: bool = False) -> None:
        await self.stop(killed=killed)
        await self.start()

    async def set_clock(self, span_ms: int) -> None:
        """Set the machine's clock; the broker looks at it within a second."""
        self.clock.jump(span_ms)
        await self.look()

    async def look(self) -> None:
        await self.service.broker.clock_watch.run_once()

    async def live(self, span_ms: int, *, step_ms: int = 10 * SECOND_MS) -> None:
        """Let time pass, with all that becomes due in it."""
        await self.service.run()
        while span_ms > 0:
            step = min(step_ms, span_ms)
            self.clock.advance(step)
            await self.look()
            await self.service.run()
            span_ms -= step

    @property
    def elapsed_ms(self) -> int:
        """The time that has passed since the beginning."""
        return self.clock.elapsed_ms() - START_MS

    def times(self, body: str) -> list[int]:
        """When attempts of the message with that body were made, by the time that has passed."""
        return [attempt.elapsed_ms for attempt in self.attempts if attempt.body == body]

    def runs(self, schedule: str) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.schedule == schedule]

    async def publish(self, body: str, **headers: str) -> str:
        return await self.service.publish(HOOK, body, **headers)

    async def enqueue(self, queue: str, body: str, **headers: str) -> None:
        lines = {f"Upstash-{name.replace('_', '-')}": value for name, value in headers.items()}
        await self.service.post(f"/v2/enqueue/{queue}/{HOOK}", lines, body)

    async def schedule(self, name: str, cron: str) -> None:
        await self.service.post(f"/v2/schedules/{HOOK}", {"Upstash-Cron": cron, "Upstash-Schedule-Id": name})

    async def fired_ticks(self, schedule: str) -> list[int]:
        """The ticks of a schedule that were fired, as far as they are still stored."""
        return await self.service.broker.store.read(
            lambda db: [
                tick
                for (tick,) in db.execute(
                    "SELECT tick_ms FROM ticks WHERE schedule = ? AND outcome = 'FIRED' ORDER BY tick_ms", (schedule,)
                )
            ]
        )

    def _answer(self, request: DeliveryRequest) -> Response:
        body = request.body.decode()
        self.attempts.append(
            Attempt(body, self.elapsed_ms, self.clock.now_ms(), header(request, "Upstash-Schedule-Id"))
        )
        if self.failures.get(body, 0) > 0:
            self.failures[body] -= 1
            return Response(status=500)
        return Response(status=200)


KEEP_A_WEEK = Retention(delivered_ms=7 * DAY_MS, failed_ms=7 * DAY_MS)
