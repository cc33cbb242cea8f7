"""Random lives of queues and flow-control keys against a model that knows only the promises."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import pytest

from qtasks.broker.core.interruptions import max_open_claims
from qtasks.broker.core.rules import Stage, Trigger
from qtasks.broker.core.values import Claim
from qtasks.broker.store.verbs import flow_control, queues
from qtasks.protocol.messages import FlowControl, Message, PublishOptions
from tests.support.broker import ACCOUNT
from tests.support.store import InlineStore

RETRIES = 2

QUEUES = ("q1", "q2")
KEYS = ("k1", "k2")


@dataclass
class QueueModel:
    """A queue as the model sees it: who holds a slot, and who has started."""

    parallelism: int = 1
    paused: bool = False
    holders: set[str] = field(default_factory=set)
    started: list[int] = field(default_factory=list)


@dataclass
class FlowControlKeyModel:
    """A flow-control key as the model sees it."""

    parallelism: int | None = None
    rate: int | None = None
    period_s: int = 1
    pinned_parallelism: bool = False
    paused: bool = False
    running: set[str] = field(default_factory=set)
    window: list[int] = field(default_factory=list)


class Simulation:
    """Performs random actions, and checks each start against the promises of queues and keys."""

    def __init__(self, store: InlineStore, seed: int) -> None:
        self.store = store
        self.chance = random.Random(seed)
        self.queues: dict[str, QueueModel] = defaultdict(QueueModel)
        self.keys: dict[str, FlowControlKeyModel] = defaultdict(FlowControlKeyModel)
        self.active: dict[str, Claim] = {}
        self.open: set[str] = set()
        self.calls: dict[str, set[str]] = defaultdict(set)
        self.queued: dict[str, str] = {}
        self.delayed: set[str] = set()
        self.cancelling: set[str] = set()
        self.crashes: Counter[str] = Counter()
        """How often the broker ended during an attempt of a message, since the last outcome of one."""
        self.number = 0

    def step(self) -> None:
        """One thing that can happen."""
        act = self.chance.choices(
            [
                self.accept,
                self.claim,
                self.settle,
                self.advance,
                self.cancel,
                self.pause,
                self.change,
                self.drop,
                self.crash,
            ],
            [30, 30, 40, 10, 4, 4, 6, 0.5, 1],
        )[0]
        act()

    def accept(self) -> None:
        self.number += 1
        queue = self.chance.choice([None, *QUEUES])
        flow = None
        if self.chance.random() < 0.5:
            name = self.chance.choice(KEYS)
            parallelism, rate = self.chance.choice([(1, None), (2, None), (None, 2), (2, 3)])
            flow = FlowControl(name, parallelism, rate, self.chance.choice([1, 5]))
            key = self.keys[name]
            key.rate, key.period_s = flow.rate, flow.period_s
            if not key.pinned_parallelism:
                key.parallelism = flow.parallelism
        called = "http://c.example/" if self.chance.random() < 0.3 else None
        delay_ms = self.chance.choice([0, 0, 0, 700])
        message_id = f"msg_{self.number}"
        self.store.accept(
            self.number,
            queue=queue,
            not_before_ms=self.store.now_ms + delay_ms,
            max_retries=RETRIES,
            options=PublishOptions(flow_control=flow, callback=called),
        )
        self.open.add(message_id)
        if queue is not None:
            self.queued[message_id] = queue
            _ = self.queues[queue]
        if delay_ms:
            self.delayed.add(message_id)

    def claim(self) -> None:
        self.claimed(self.store.claims(limit=self.chance.choice([1, 3, 50])))

    def claimed(self, claims: list[Claim]) -> None:
        """Messages were claimed. Those that the broker did not survive have become dead letters."""
        for message_id in sorted(self.open):
            if self.crashes[message_id] == max_open_claims(RETRIES) and self.store.stage(message_id) is Stage.FAILED:
                self.finished(message_id)
        for claim in claims:
            self.started(claim)

    def started(self, claim: Claim) -> None:
        message = claim.message
        assert message.id in self.open
        assert message.id not in self.active
        self.active[message.id] = claim
        if message.queue is not None:
            self.started_in_queue(self.queues[message.queue], message.id, in_order=message.options.flow_control is None)
        if message.options.flow_control is not None:
            self.started_under_key(self.keys[message.options.flow_control.key], message.id)

    def started_in_queue(self, line: QueueModel, message_id: str, *, in_order: bool) -> None:
        assert not line.paused, f"{message_id} started in a paused queue"
        if message_id not in line.holders:
            assert len(line.holders) < line.parallelism, f"{message_id} started beside {line.holders}"
            line.holders.add(message_id)
            # With several slots, one that its key holds back lets the next one start; delayed ones join late.
            if in_order and message_id not in self.delayed:
                number = int(message_id.removeprefix("msg_"))
                assert not line.started or line.started[-1] < number, f"{message_id} was overtaken"
                line.started.append(number)

    def started_under_key(self, key: FlowControlKeyModel, message_id: str) -> None:
        assert not key.paused, f"{message_id} started under a paused key"
        if key.parallelism is not None:
            assert len(key.running) < key.parallelism, f"{message_id} started beside {key.running}"
        key.running.add(message_id)
        if key.rate is not None:
            now_ms = self.store.now_ms
            if key.window and now_ms >= key.window[0] + key.period_s * 1000:
                key.window.clear()
            assert len(key.window) < key.rate, f"{message_id} is start {len(key.window) + 1} of its window"
            key.window.append(now_ms)

    def settle(self) -> None:
        if not self.active:
            return
        message_id = self.chance.choice(sorted(self.active))
        claim = self.active.pop(message_id)
        del self.crashes[message_id]
        event = self.chance.choice([Trigger.SUCCEED, Trigger.SUCCEED, Trigger.RETRY, Trigger.INTERRUPT, Trigger.FAIL])
        if event is Trigger.RETRY and claim.message.retried >= 2:
            event = Trigger.FAIL
        settled = self.store.end(claim, event, after_ms=self.chance.choice([0, 500, 3000]))
        self.left_key(claim)
        self.called(message_id, settled.created)
        if event not in (Trigger.RETRY, Trigger.INTERRUPT) or message_id in self.cancelling:
            self.finished(message_id)

    def left_key(self, claim: Claim) -> None:
        if claim.message.options.flow_control is not None:
            self.keys[claim.message.options.flow_control.key].running.discard(claim.message.id)

    def finished(self, message_id: str) -> None:
        self.open.discard(message_id)
        for source in [one for one, calls in self.calls.items() if message_id in calls]:
            self.calls[source].discard(message_id)
            self.let_go(source)
        self.let_go(message_id)

    def let_go(self, message_id: str) -> None:
        """A slot is free once its message is finished and all its callbacks are."""
        if message_id in self.queued and message_id not in self.open and not self.calls[message_id]:
            self.queues[self.queued[message_id]].holders.discard(message_id)

    def advance(self) -> None:
        self.store.now_ms += self.chance.choice([1, 400, 1000, 5000])

    def cancel(self) -> None:
        if self.open:
            self.cancelled(self.chance.choice(sorted(self.open)))

    def cancelled(self, message_id: str) -> None:
        if message_id in self.cancelling:
            assert self.store.cancel(message_id) == 0
            return
        assert self.store.cancel(message_id) == 1
        if message_id in self.active:
            self.cancelling.add(message_id)
        else:
            self.finished(message_id)

    def pause(self) -> None:
        paused = self.chance.random() < 0.4
        if self.chance.random() < 0.5:
            name = self.chance.choice(KEYS)
            flow_control.pause_flow_key(self.store.db, ACCOUNT, name, paused=paused, now_ms=self.store.now_ms)
            self.keys[name].paused = paused
        else:
            name = self.chance.choice(QUEUES)
            if queues.pause_queue(self.store.db, ACCOUNT, name, paused=paused, now_ms=self.store.now_ms):
                self.queues[name].paused = paused

    def change(self) -> None:
        name, parallelism = self.chance.choice(QUEUES), self.chance.choice([1, 1, 2, 4])
        queues.upsert_queue(
            self.store.db, ACCOUNT, name, parallelism=parallelism, paused=None, now_ms=self.store.now_ms
        )
        self.queues[name].parallelism = parallelism
        key, pin = self.chance.choice(KEYS), self.chance.random() < 0.5
        if pin:
            flow_control.pin_flow_key(
                self.store.db, ACCOUNT, key, parallelism=1, rate=None, period_s=None, now_ms=self.store.now_ms
            )
            self.keys[key].parallelism = 1
        else:
            flow_control.unpin_flow_key(
                self.store.db, ACCOUNT, key, parallelism=True, rate=False, now_ms=self.store.now_ms
            )
        self.keys[key].pinned_parallelism = pin

    def drop(self) -> None:
        name = self.chance.choice(QUEUES)
        while queues.drop_queue(self.store.db, ACCOUNT, name, limit=2, now_ms=self.store.now_ms).last is not None:
            pass
        for message_id in sorted(self.open & {one for one, queue in self.queued.items() if queue == name}):
            if message_id in self.active:
                self.cancelling.add(message_id)
            elif message_id not in self.delayed or self.store.stage(message_id) >= 10:
                self.finished(message_id)
        started = self.queues[name].started
        self.queues[name] = QueueModel(started=started)

    def crash(self) -> None:
        self.store.crash()
        for message_id, claim in sorted(self.active.items()):
            self.left_key(claim)
            self.crashes[message_id] += 1
            if message_id in self.cancelling:
                self.finished(message_id)
        self.active.clear()

    def drain(self) -> None:
        """Resume everything and let every attempt succeed: all open messages must end."""
        for name in QUEUES:
            if queues.pause_queue(self.store.db, ACCOUNT, name, paused=False, now_ms=self.store.now_ms):
                self.queues[name].paused = False
        for name in KEYS:
            flow_control.pause_flow_key(self.store.db, ACCOUNT, name, paused=False, now_ms=self.store.now_ms)
            self.keys[name].paused = False
        for _ in range(10 * len(self.open) + 10):
            self.succeed()
            if not self.open:
                return
            wait_ms = self.store.next_due()
            if wait_ms is not None:
                self.store.now_ms += wait_ms
        stuck = {one: self.store.stage(one).name for one in sorted(self.open)}
        raise AssertionError(f"stuck for ever: {stuck}")

    def succeed(self) -> None:
        """Start all messages that may start, and end all that run."""
        self.claimed(self.store.claims())
        for message_id, claim in sorted(self.active.items()):
            created = self.store.end(claim).created
            self.left_key(claim)
            self.called(message_id, created)
            self.finished(message_id)
        self.active.clear()

    def called(self, message_id: str, created: tuple[Message, ...]) -> None:
        for callback in created:
            self.open.add(callback.id)
            if message_id in self.queued:
                self.calls[message_id].add(callback.id)


def live(seed: int, steps: int) -> None:
    store = InlineStore()
    try:
        simulation = Simulation(store, seed)
        for _ in range(steps):
            simulation.step()
        simulation.drain()
        left = store.db.execute(
            "SELECT count(*) FROM messages WHERE finished_ms IS NULL OR slot = 1 OR open_callbacks > 0"
        )
        assert left.get == 0
    finally:
        store.close()


@pytest.mark.parametrize("block", range(4))
def test_no_life_breaks_a_promise_and_none_gets_stuck(block: int) -> None:
    for seed in range(block * 15, block * 15 + 15):
        try:
            live(seed, 300)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@pytest.mark.release
def test_no_life_of_a_thousand_breaks_a_promise() -> None:
    for seed in range(1_000, 2_000):
        try:
            live(seed, 600)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
