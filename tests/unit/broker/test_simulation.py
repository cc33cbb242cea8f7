"""Lives of many messages, lived in a moment: publishes, delays, cancels, failures and crashes at random, from a seed.

The delivery loop, the rules and the SQL are the real ones; clock, chance and endpoints are virtual, so that a seed
always gives the same life. When a seed fails, run it alone: `asyncio.run(live(seed))`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import cast

import pytest

from qtasks.broker.core.interruptions import STOPPED
from qtasks.broker.core.message_builder import END_CALLBACK_RETRIES
from qtasks.broker.core.rules import Stage
from qtasks.broker.core.values import AccountCredentials, DeadLetterCriteria, LogCriteria
from qtasks.broker.events import EventWatchers
from qtasks.broker.loops.deliverer import Deliverer
from qtasks.broker.loops.key_ring import KeyRing
from qtasks.broker.ports import DeliveryRequest, Failure
from qtasks.broker.settings import DeliveryLimits
from qtasks.broker.store.sqlite import SqliteStore
from qtasks.broker.store.verbs import accounts, cancel, claim, settle
from qtasks.broker.store.verbs.reads import queries
from qtasks.protocol.messages import LogEntry, PublishOptions, Response, SigningKeys, State
from qtasks.testing.fakes.bundling import BundlingTransport
from tests.support.broker import ACCOUNT, SeededRandom, VirtualClock, publication
from tests.support.legal_moves import assert_legal
from tests.support.outage import BAD_GATEWAY, CUT, DONE, REFUSED

SEEDS = 300
STEPS = 40
KEYS = SigningKeys("sig_" + "a" * 28, "sig_" + "b" * 28)
LIMITS = DeliveryLimits(in_flight=6, per_host=3)
DAY_MS = 86_400_000
ENOUGH_ROUNDS = 200
"""Rounds in which everything must have come to its end once the faults have stopped."""


@dataclass
class Sent:
    message_id: str
    retried: int
    time_ms: int
    status: int | None = None
    """None: no response, or one that is no success; 0: the broker could not even try."""


@dataclass
class World:
    """Everything one seed decides, and what came of it."""

    chance: random.Random
    store: SqliteStore
    in_bundles: bool = False
    """True: the endpoints that are dispatchers take bundles."""
    clock: VirtualClock = field(default_factory=VirtualClock)
    faults: bool = True
    sent: list[Sent] = field(default_factory=list)
    running: Counter[str] = field(default_factory=Counter)
    hanging: list[asyncio.Future[None]] = field(default_factory=list)
    accepted: dict[str, int] = field(default_factory=dict)
    """Ids of the published messages, with their retries."""
    allowed: set[str] = field(default_factory=set)
    """Those with an allowance for interruptions."""
    reporting: set[str] = field(default_factory=set)
    """The published messages with an end callback."""
    crashes: int = 0
    made: int = 0

    bundles: list[int] = field(default_factory=list)
    """How many deliveries each bundle had."""

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        taking = BundlingTransport(self, self.clock, slots=lambda: self.chance.choice((2, 64, 64)))
        taking.sizes = self.bundles
        self.deliverer = Deliverer(
            self.store,
            taking if self.in_bundles else self,
            self.clock,
            SeededRandom(),
            keys=KeyRing(self.store),
            watchers=EventWatchers(),
            limits=LIMITS,
        )
        self.loop = asyncio.create_task(self.deliverer.run())

    # -- the endpoints

    async def send(self, request: DeliveryRequest) -> Response | Failure:
        headers = dict(request.headers)
        sent = Sent(headers["Upstash-Message-Id"], int(headers["Upstash-Retried"]), self.clock.now_ms())
        self.sent.append(sent)
        host = request.url.split("/")[2]
        self.running[host] += 1
        assert self.deliverer.in_flight <= LIMITS.in_flight
        if not self.in_bundles:  # in a bundle, an endpoint may go on with what the broker has given up at its deadline
            assert self.running[host] <= LIMITS.largest_host
            assert self.running.total() <= LIMITS.in_flight
        try:
            await turns(self.chance.randrange(8))
            if self.faults and self.chance.random() < 0.1:
                never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self.hanging.append(never)
                await never
                return Failure("timeout", "no answer")
            return self._answer(sent)
        finally:
            self.running[host] -= 1

    def _answer(self, sent: Sent) -> Response | Failure:
        dice = self.chance.random() if self.faults else 0.0
        if dice < 0.5:
            sent.status = 200
            return DONE
        if dice < 0.54:
            return REFUSED
        if dice < 0.57:
            return CUT
        if dice < 0.59:
            return BAD_GATEWAY
        if dice < 0.6:
            sent.status = 0
            return Failure("connection_lost", "no file descriptor is free", attempted=False)
        if dice < 0.65:
            return Response(status=489, headers=(("Upstash-NonRetryable-Error", "true"),))
        if dice < 0.7:
            return Response(status=429, headers=(("Retry-After", str(self.chance.randrange(100))),))
        return Response(status=500, body=b"oops")

    async def close(self) -> None: ...

    # -- what can happen

    async def step(self) -> None:
        action = self.chance.choices(
            (self.publish, self.cancel, self.wait, self.pass_time, self.crash, self.answer_hanging),
            weights=(30, 8, 30, 25, 4, 8),
        )[0]
        await action()

    async def publish(self) -> None:
        made = []
        hosts = 1 if self.in_bundles else 3
        allowances = (DAY_MS if self.in_bundles else None, None, 30_000, DAY_MS)
        for _ in range(self.chance.randrange(1, 5)):
            self.made += 1
            delay_ms = self.chance.choice((0, 0, 0, 1, 1_000, 3_600_000))
            retries = self.chance.randrange(4)
            made.append(
                publication(
                    self.made,
                    now_ms=self.clock.now_ms(),
                    url=f"http://h{self.chance.randrange(hosts)}.example/{self.chance.choice(('', 'jobs/'))}add",
                    not_before_ms=self.clock.now_ms() + delay_ms,
                    max_retries=retries,
                    options=PublishOptions(
                        retry_delay=self.chance.choice((None, "0", "1000 * (1 + retried)")),
                        end_callback=self.chance.choice((None, "http://h0.example/_end")),
                        interrupted_for_ms=self.chance.choice(allowances),
                    ),
                    deduplication_key=self.chance.choice((None, None, f"id:{self.chance.randrange(5)}")),
                )
            )
        for entry, answer in zip(made, await self.store.accept(made, now_ms=self.clock.now_ms()), strict=True):
            if answer.deduplicated:
                assert answer.message_id in self.accepted
            else:
                self.accepted[answer.message_id] = entry.message.max_retries
                if entry.message.options.interrupted_for_ms is not None:
                    self.allowed.add(answer.message_id)
                if entry.message.options.end_callback is not None:
                    self.reporting.add(answer.message_id)
        self.deliverer.wake()

    async def cancel(self) -> None:
        if self.accepted:
            chosen = self.chance.sample(sorted(self.accepted), k=min(2, len(self.accepted)))
            await self.store.write(cancel.cancel, ACCOUNT, chosen, now_ms=self.clock.now_ms())
            self.deliverer.wake()

    async def wait(self) -> None:
        await turns(self.chance.randrange(30))

    async def pass_time(self) -> None:
        self.clock.advance(self.chance.choice((1, 500, 12_000, 148_000, 3_600_000)))

    async def answer_hanging(self) -> None:
        for never in self.hanging:
            if not never.done():
                never.set_result(None)
        self.hanging.clear()

    async def crash(self) -> None:
        """The process dies wherever it stands and another one takes over the file."""
        self.crashes += 1
        await self.stop()
        await self.store.write(lambda db: settle.recover(db, now_ms=self.clock.now_ms()))
        self.start()

    async def stop(self) -> None:
        self.loop.cancel()
        await self.deliverer.drain(0)
        with contextlib.suppress(asyncio.CancelledError):
            await self.loop

    async def come_to_an_end(self) -> None:
        """No more faults: time passes until nothing is unfinished to do. Nothing here wakes the loop but the clock."""
        self.faults = False
        for _ in range(ENOUGH_ROUNDS):
            await self.answer_hanging()
            await turns(50)
            unfinished, due_ms = await self._unfinished()
            if not unfinished:
                return
            if due_ms is not None and due_ms > self.clock.now_ms():
                self.clock.advance(due_ms - self.clock.now_ms())
            elif self.in_bundles:
                self.clock.advance(60_000)  # a delivery of a bundle ends at its deadline
        pytest.fail(f"{unfinished} messages never came to an end")

    async def log(self) -> tuple[LogEntry, ...]:
        page = await self.store.read(queries.log, ACCOUNT, LogCriteria(oldest_first=True), cursor=None, count=100_000)
        return page.items

    async def stages(self) -> dict[str, Stage]:
        rows = await self.store.write(lambda db: db.execute("SELECT id, stage FROM messages").fetchall())
        return {str(message_id): Stage(cast("int", stage)) for message_id, stage in rows}

    async def _unfinished(self) -> tuple[int, int | None]:
        """The number of unfinished messages, and when the next of them is due or the next probe of a prefix."""
        now_ms = self.clock.now_ms()
        unfinished = await self.store.write(lambda db: db.execute("SELECT count(*) FROM messages WHERE stage < 10").get)
        next_ms = await self.store.write(lambda db: db.execute(claim._NEXT_DUE, (now_ms, now_ms, now_ms)).get)
        return cast("int", unfinished), cast("int | None", next_ms)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def a_life(seed: int, *, in_bundles: bool = False) -> AsyncIterator[World]:
    """The world after everything `seed` decides has happened and come to its end."""
    store, _ = await SqliteStore.open(":memory:", VirtualClock())
    await store.write(accounts.ensure_account, AccountCredentials("me", "token", KEYS), KEYS)
    world = World(random.Random(seed), store, in_bundles)
    try:
        for _ in range(STEPS):
            await world.step()
        await world.come_to_an_end()
        yield world
    finally:
        await world.stop()
        await store.close()


async def live(seed: int, *, in_bundles: bool = False) -> str:
    """One life. Raises AssertionError if any promise was broken; a digest of everything that happened."""
    async with a_life(seed, in_bundles=in_bundles) as world:
        return await judge(world)


# -- the invariants


async def judge(world: World) -> str:
    entries = await world.log()
    logs: dict[str, list[LogEntry]] = defaultdict(list)
    for entry in entries:
        logs[entry.message.id].append(entry)
    sent: dict[str, list[Sent]] = defaultdict(list)
    for attempt in world.sent:
        sent[attempt.message_id].append(attempt)
    dead = await world.store.read(queries.dead_letters, ACCOUNT, DeadLetterCriteria(), cursor=None, count=100_000)
    dead_ids = [letter.message.id for letter in dead.items]

    stages = await world.stages()
    end_callbacks = {
        f"{message_id}_end": END_CALLBACK_RETRIES
        for message_id in world.reporting
        if stages[message_id] in (Stage.FAILED, Stage.CANCELED)
    }
    expected = {**world.accepted, **end_callbacks}
    assert set(logs) == set(expected), "what is stored is what was accepted, and one report of each bad end"
    assert set(sent) <= set(expected), "nothing is sent that was not accepted"
    assert len(dead_ids) == len(set(dead_ids)), "a message is buried once"
    for message_id, retries in expected.items():
        log, attempts, stage = logs[message_id], sent[message_id], stages[message_id]
        check_log(log, stage)
        interruptions = sum(entry.error == STOPPED for entry in log)
        assert interruptions <= world.crashes
        # In a bundle the broker itself keeps the deadline: what a delivery answers later is not waited for.
        late = sum("(Upstash-Timeout)" in (entry.error or "") for entry in log if entry.state is State.ERROR)
        made = sum(attempt.status != 0 for attempt in attempts)
        assert made <= retries + 1 + interruptions or message_id in world.allowed, f"{message_id}: too many attempts"
        assert all(attempt.retried <= retries for attempt in attempts)
        assert [attempt.retried for attempt in attempts] == sorted(attempt.retried for attempt in attempts)
        successes = sum(attempt.status == 200 for attempt in attempts)
        assert successes <= 1 + interruptions + late, f"{message_id}: delivered twice without a crash"
        assert (stage is Stage.DELIVERED) <= (successes > 0), f"{message_id}: called delivered, but never was"
        assert (stage is Stage.FAILED) == (message_id in dead_ids)
        assert successes == 0 or stage is Stage.DELIVERED or interruptions or late, (
            f"{message_id}: a success was forgotten"
        )
        assert stage is not Stage.CANCELED or any(entry.state is State.CANCEL_REQUESTED for entry in log)
        assert all(attempt.time_ms >= log[0].message.not_before_ms for attempt in attempts), (
            f"{message_id}: sent too early"
        )
    trace = [(attempt.message_id, attempt.retried, attempt.time_ms, attempt.status) for attempt in world.sent]
    trace_of_log = [(entry.message.id, str(entry.state), entry.time_ms, entry.error) for entry in entries]
    return hashlib.sha256(repr((trace, trace_of_log)).encode()).hexdigest()


def check_log(log: list[LogEntry], stage: Stage) -> None:
    """The log follows the table of transitions and ends at the message's state; no attempt was made too early."""
    assert_legal([entry.state for entry in log], stage)
    due_ms = log[0].next_delivery_ms or 0
    was_interrupted = False
    for entry in log:
        if entry.state is State.ERROR:
            was_interrupted = (entry.error or "").startswith("interrupted")
        if entry.state is State.RETRY:
            assert entry.next_delivery_ms is not None
            if not was_interrupted:  # else it is the time of the next probe: earlier if another message's is answered
                due_ms = entry.next_delivery_ms
        assert entry.state is not State.ACTIVE or entry.time_ms >= due_ms, "claimed before it was due"


@pytest.mark.parametrize(
    ("in_bundles", "first"),
    [*((False, first) for first in range(0, SEEDS, SEEDS // 10)), *((True, first) for first in (30, 60, 90))],
)
def test_every_life_keeps_every_promise(in_bundles: bool, first: int) -> None:
    for seed in range(first, first + SEEDS // 10):
        try:
            asyncio.run(live(seed, in_bundles=in_bundles))
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


def test_the_same_seed_lives_the_same_life() -> None:
    assert asyncio.run(live(7)) == asyncio.run(live(7))
    assert asyncio.run(live(7)) != asyncio.run(live(8))
    assert asyncio.run(live(7, in_bundles=True)) == asyncio.run(live(7, in_bundles=True))


def test_the_lives_meet_every_kind_of_end_and_every_kind_of_trouble() -> None:
    """A simulation that never crashes or never fails would prove nothing."""
    seen: Counter[str] = Counter()

    async def watch(seed: int) -> None:
        async with a_life(seed, in_bundles=True) as world:
            entries = await world.log()
            seen.update(str(entry.state) for entry in entries)
            seen["reports"] += sum(entry.message.id.endswith("_end") for entry in entries)
            seen["interrupted"] += sum(entry.error == STOPPED for entry in entries)
            seen["no retry spent"] += sum("interrupted, no retry" in (entry.error or "") for entry in entries)
            seen["bundled"] += sum(world.bundles)
            seen["deduplicated"] += world.made - len(world.accepted)

    for seed in range(10):
        asyncio.run(watch(seed))
    expected = [*map(str, State), "interrupted", "deduplicated", "reports", "bundled"]
    assert all(seen[kind] >= 5 for kind in expected), seen
