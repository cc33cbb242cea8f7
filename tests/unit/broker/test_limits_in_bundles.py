"""Queues, flow-control keys and rates as endpoints see them: they hold for bundles and for single deliveries."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from qtasks.broker.ports import DeliveryRequest
from qtasks.broker.store.verbs import queues
from qtasks.protocol.headers import INTERRUPTED_HEADER
from qtasks.protocol.messages import FlowControl, Response
from qtasks.testing.fakes.bundling import BundlingTransport
from tests.support.broker import ACCOUNT
from tests.support.outage import ALLOWED, CUT, DONE, Outcome, World

QUEUES = {"narrow": 1, "wide": 3}
"""Queues, and how many of their messages may be under way at once."""
KEYS = {
    "one": FlowControl("one", parallelism=1),
    "few": FlowControl("few", parallelism=4),
    "rate": FlowControl("rate", rate=5, period_s=2),
    "both": FlowControl("both", parallelism=2, rate=6, period_s=3),
}
FREE, BURSTS = "", 40
pytestmark = pytest.mark.anyio
OUTCOMES: tuple[Outcome, ...] = (
    *[DONE] * 12,
    CUT,
    Response(status=500, headers=DONE.headers),
    Response(status=503, headers=(*DONE.headers, (INTERRUPTED_HEADER, "busy"))),
    Response(status=489, headers=(*DONE.headers, ("Upstash-NonRetryable-Error", "true"))),
)


@dataclass
class Endpoint:
    """Answers at random, and checks each start against what the other deliveries allow."""

    world: World
    chance: random.Random
    running: Counter[str] = field(default_factory=Counter)
    windows: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    in_narrow: list[str] = field(default_factory=list)
    """The messages of the queue with one slot, by their starts, each once."""
    is_calm: bool = False
    """True: everything succeeds."""
    faults: list[str] = field(default_factory=list)
    bound_together: int = 0
    """The most deliveries of one key that ran at once."""

    async def answer(self, request: DeliveryRequest) -> Outcome:
        place = request.url.rpartition("/")[2]
        message_id = dict(request.headers)["Upstash-Message-Id"]
        self.running[place] += 1
        self.bound_together = max(self.bound_together, *self.running.values())
        self._check(place, message_id)
        try:
            for _ in range(self.chance.randrange(12)):
                await asyncio.sleep(0)
            return DONE if self.is_calm else self.chance.choice(OUTCOMES)
        finally:
            self.running[place] -= 1

    def _check(self, place: str, message_id: str) -> None:
        allowed = QUEUES.get(place) or (KEYS[place].parallelism if place in KEYS else None)
        if allowed is not None and self.running[place] > allowed:
            self.faults.append(f"{self.running[place]} of {place} run")
        if place in KEYS and (rate := KEYS[place].rate) is not None:
            window, now_ms = self.windows[place], self.world.clock.now_ms()
            if window and now_ms >= window[0] + KEYS[place].period_s * 1000:
                window.clear()
            window.append(now_ms)
            if len(window) > rate:
                self.faults.append(f"start {len(window)} of a window of {place}")
        if place == "narrow" and message_id not in self.in_narrow[-1:]:
            self.in_narrow.append(message_id)


async def publish(world: World, place: str, count: int = 1) -> None:
    options = replace(ALLOWED, flow_control=KEYS.get(place), retry_delay="500")
    changes: dict[str, Any] = {"url": f"http://app.example/qtasks/{place}", "options": options, "max_retries": 2}
    await world.publish(count, **changes, queue=place if place in QUEUES else None)


async def life(seed: int, *, in_bundles: bool) -> tuple[Endpoint, list[int]]:
    world = await World.opened(in_bundles=True)
    taking = cast("BundlingTransport", world.transport)
    if not in_bundles:
        world.transport = world
        await world.crash()
    chance = random.Random(seed)
    endpoint = Endpoint(world, chance)
    for name, parallelism in QUEUES.items():
        changes: dict[str, Any] = {"parallelism": parallelism, "paused": None, "now_ms": world.clock.now_ms()}
        await world.store.write(queues.upsert_queue, ACCOUNT, name, **changes)
    await publish(world, FREE)  # its answer states the slots
    world.answer = endpoint.answer
    for burst in range(BURSTS):
        await publish(world, chance.choice([FREE, *QUEUES, *KEYS]), chance.randrange(1, 9))
        if burst % 13 == 12:
            await world.crash()
        if burst % 3 == 2:
            await world.pass_time(chance.choice([0, 100, 700, 2500]))
    endpoint.is_calm = True
    await world.pass_time(3_600_000)
    open_messages = await world.store.write(
        lambda db: db.execute("SELECT count(*) FROM messages WHERE finished_ms IS NULL").get
    )
    assert open_messages == 0
    await world.close()
    return endpoint, taking.sizes


@pytest.mark.parametrize("in_bundles", [False, True])
@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(n, marks=pytest.mark.release) for n in range(3, 100))])
async def test_no_endpoint_sees_a_limit_or_an_order_broken(seed: int, in_bundles: bool) -> None:
    endpoint, sizes = await life(seed, in_bundles=in_bundles)
    assert endpoint.faults == []
    numbers = [int(message_id.removeprefix("msg_")) for message_id in endpoint.in_narrow]
    assert numbers == sorted(numbers), "a message started before the one in front of it had ended"
    assert endpoint.bound_together > 1
    assert bool(sizes) is in_bundles
