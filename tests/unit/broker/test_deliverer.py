"""The delivery loop on a virtual clock, over the real store in memory: days pass in milliseconds, nothing sleeps."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import apsw
import pytest

from qtasks.broker.broker import Broker
from qtasks.broker.core.bundle_items import USER_AGENT
from qtasks.broker.core.delivery_requests import signed_request
from qtasks.broker.core.values import AccountCredentials, ClaimBatch, DeadLetterCriteria, LogCriteria
from qtasks.broker.events import EventWatchers, MessageEvent
from qtasks.broker.loops.deliverer import Deliverer
from qtasks.broker.loops.key_ring import KeyRing
from qtasks.broker.ports import DeliveryRequest, Failure, Transport
from qtasks.broker.settings import BrokerSettings, DeliveryLimits
from qtasks.broker.store.interface import Store
from qtasks.broker.store.sqlite import SqliteStore
from qtasks.broker.store.verbs import accounts, cancel, settle
from qtasks.broker.store.verbs.reads import queries
from qtasks.broker.store.verbs.stored import Fault
from qtasks.errors import StoreError
from qtasks.protocol import signing
from qtasks.protocol.messages import PublishOptions, Response, SigningKeys, State
from tests.support.broker import ACCOUNT, START_MS, ScriptedTransport, SeededRandom, VirtualClock, message, publication

T = TypeVar("T")
pytestmark = pytest.mark.anyio

KEYS = SigningKeys("sig_" + "a" * 28, "sig_" + "b" * 28)
DAY_MS = 86_400_000
OK = Response(status=200)
ERROR = Response(status=500, body=b"oops")


class Bench:
    """A deliverer with everything around it under the test's control."""

    def __init__(self, store: SqliteStore) -> None:
        self.clock = VirtualClock()
        self.store = store
        self.watchers = EventWatchers()
        self.transport = ScriptedTransport()
        self.keys = KeyRing(cast("Store", store))
        self.deliverer = self.make()

    def make(
        self, transport: Transport | None = None, *, store: object = None, limits: DeliveryLimits | None = None
    ) -> Deliverer:
        self.deliverer = Deliverer(
            cast("Store", store or self.store),
            transport or self.transport,
            self.clock,
            SeededRandom(),
            keys=self.keys,
            watchers=self.watchers,
            limits=limits,
        )
        return self.deliverer

    async def publish(self, number: int = 1, **changes: Any) -> str:
        [accepted] = await self.store.accept([publication(number, **changes)], now_ms=self.clock.now_ms())
        self.deliverer.wake()
        return accepted.message_id

    async def states(self, message_id: str = "msg_1") -> list[State]:
        which = LogCriteria(message_ids=(message_id,), oldest_first=True)
        page = await self.store.read(queries.log, ACCOUNT, which, cursor=None, count=1000)
        return [entry.state for entry in page.items]

    async def dead(self) -> list[str]:
        page = await self.store.read(queries.dead_letters, ACCOUNT, DeadLetterCriteria(), cursor=None, count=1000)
        return [letter.message.id for letter in page.items]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    store, _ = await SqliteStore.open(":memory:", VirtualClock())
    assert await store.write(accounts.ensure_account, AccountCredentials("me", "token", KEYS), KEYS) == ACCOUNT
    yield Bench(store)
    await store.close()


class Gate:
    """A transport whose requests wait until the test answers them."""

    def __init__(self) -> None:
        self.arrived: asyncio.Queue[tuple[DeliveryRequest, asyncio.Future[Response | Failure]]] = asyncio.Queue()
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    async def send(self, request: DeliveryRequest) -> Response | Failure:
        host = request.url.split("/")[2]
        for key in (host, "all"):
            self.running[key] += 1
            self.most[key] = max(self.most[key], self.running[key])
        answer: asyncio.Future[Response | Failure] = asyncio.get_running_loop().create_future()
        self.arrived.put_nowait((request, answer))
        try:
            return await answer
        finally:
            self.running[host] -= 1
            self.running["all"] -= 1

    async def close(self) -> None: ...

    async def next(self) -> tuple[DeliveryRequest, asyncio.Future[Response | Failure]]:
        return await soon(self.arrived.get())


class Flaky:
    """A store whose verbs raise errors or wait, as the test sets; it announces each error first."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.broken = store.broken
        self.lacks_room = store.lacks_room
        self.errors: dict[str, list[Exception]] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.refused = asyncio.Semaphore(0)

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        real = getattr(self._store, method)

        async def ask(*arguments: Any, **named: Any) -> Any:
            verb = arguments[0].__name__ if method in ("read", "write", "write_patiently") else method
            if errors := self.errors.get(verb):
                self.refused.release()
                raise errors.pop(0)
            answer = await real(*arguments, **named)
            if verb in self.gates:
                await self.gates[verb].wait()
            return answer

        return ask


async def soon(waiting: Awaitable[T]) -> T:
    """What `waiting` gives; a test that would wait for ever fails instead."""
    async with asyncio.timeout(5):
        return await waiting


def header(request: DeliveryRequest, name: str) -> str:
    [value] = [value for line, value in request.headers if line == name]
    return value


def sequence(*answers: Response | Failure) -> Callable[[DeliveryRequest], Response | Failure]:
    """The answers in turn; the last one for ever."""
    remaining = list(answers)
    return lambda request: remaining.pop(0) if len(remaining) > 1 else remaining[0]


# -- attempts and retries


async def test_an_accepted_message_is_delivered_and_logged(bench: Bench) -> None:
    await bench.publish()
    assert await bench.deliverer.run_once() == 1
    assert await bench.states() == [State.CREATED, State.ACTIVE, State.DELIVERED]
    assert await bench.deliverer.run_once() == 0


async def test_three_days_of_retries_pass_in_a_moment_each_at_its_time(bench: Bench) -> None:
    bench.transport.answer = lambda request: ERROR
    await bench.publish(max_retries=6)
    assert await bench.deliverer.run_once() == 1
    for seconds in (12, 148, 1_808, 22_026, 86_400, 86_400):
        bench.clock.advance(seconds * 1000 - 1)
        assert await bench.deliverer.run_once() == 0
        bench.clock.advance(1)
        assert await bench.deliverer.run_once() == 1
    bench.clock.advance(10 * DAY_MS)
    assert await bench.deliverer.run_once() == 0
    assert bench.clock.now_ms() - START_MS > 12 * DAY_MS
    assert await bench.dead() == ["msg_1"]
    once = [State.ACTIVE, State.ERROR]
    assert await bench.states() == [State.CREATED, *[*once, State.RETRY] * 6, *once, State.FAILED]


async def test_retried_counts_the_retries_so_far(bench: Bench) -> None:
    bench.transport.answer = sequence(ERROR, ERROR, OK)
    await bench.publish(options=PublishOptions(retry_delay="0"))
    assert await bench.deliverer.run_once() == 3
    assert [header(sent, "Upstash-Retried") for sent in bench.transport.sent] == ["0", "1", "2"]
    assert {header(sent, "Upstash-Message-Id") for sent in bench.transport.sent} == {"msg_1"}


async def test_without_retries_the_first_failure_is_the_last(bench: Bench) -> None:
    bench.transport.answer = lambda request: Failure("connection_refused", "connection refused")
    await bench.publish(max_retries=0)
    assert await bench.deliverer.run_once() == 1
    assert await bench.states() == [State.CREATED, State.ACTIVE, State.ERROR, State.FAILED]


async def test_every_attempt_has_a_signature_of_its_own_that_verifies_at_that_time(bench: Bench) -> None:
    bench.transport.answer = sequence(ERROR, OK)
    await bench.publish(url="http://h.example/a%2Fb?x=1&y=%20", body=b"\x00\xff not text")
    await bench.deliverer.run_once()
    bench.clock.advance(12_000)
    await bench.deliverer.run_once()
    claims = [
        signing.verify(
            header(sent, "Upstash-Signature"),
            body=b"\x00\xff not text",
            url="http://h.example/a%2Fb?x=1&y=%20",
            keys=KEYS,
            now_s=now_s,
            tolerance_s=0,
        )
        for sent, now_s in zip(bench.transport.sent, (START_MS / 1000, START_MS / 1000 + 12), strict=True)
    ]
    assert [claim.key for claim in claims] == ["current", "current"]
    assert claims[0].jti != claims[1].jti
    assert claims[1].issued_s - claims[0].issued_s == 12


async def test_a_retry_is_signed_with_the_key_that_is_current_when_it_is_sent(bench: Bench) -> None:
    rolled = SigningKeys(KEYS.next, "sig_" + "c" * 28)
    bench.transport.answer = sequence(ERROR, OK)
    await bench.publish()
    await bench.deliverer.run_once()
    await bench.store.write(
        lambda db: db.execute("UPDATE signing_keys SET current = ?, next = ?", (rolled.current, rolled.next))
    )
    bench.keys.forget(ACCOUNT)
    bench.clock.advance(12_000)
    await bench.deliverer.run_once()
    first, second = (
        signing.verify(
            header(sent, "Upstash-Signature"),
            body=sent.body,
            url=sent.url,
            keys=KEYS,
            now_s=bench.clock.now_ms() / 1000,
        ).key
        for sent in bench.transport.sent
    )
    assert (first, second) == ("current", "next")


async def test_keys_that_change_while_they_are_read_are_not_kept(bench: Bench) -> None:
    flaky = Flaky(bench.store)
    flaky.gates["signing_keys"] = asyncio.Event()
    ring = KeyRing(cast("Store", flaky))
    reading = asyncio.create_task(ring.of(ACCOUNT))
    await asyncio.sleep(0)  # the old keys have been read, and are held up at the gate
    rolled = SigningKeys(KEYS.next, "sig_" + "c" * 28)
    await bench.store.write(
        lambda db: db.execute("UPDATE signing_keys SET current = ?, next = ?", (rolled.current, rolled.next))
    )
    ring.forget(ACCOUNT)
    flaky.gates["signing_keys"].set()
    await soon(reading)
    assert await ring.of(ACCOUNT) == rolled


async def test_a_delayed_message_is_never_sent_before_its_time(bench: Bench) -> None:
    await bench.publish(not_before_ms=START_MS + 60_000)
    bench.clock.advance(59_999)
    assert await bench.deliverer.run_once() == 0
    bench.clock.advance(1)
    assert await bench.deliverer.run_once() == 1


async def test_a_message_cancelled_while_its_attempt_runs_is_not_tried_again(bench: Bench) -> None:
    gate = Gate()
    bench.make(gate)
    await bench.publish()
    round_of_attempts = asyncio.create_task(bench.deliverer.run_once())
    _, answer = await gate.next()
    await bench.store.write(cancel.cancel, ACCOUNT, ["msg_1"], now_ms=bench.clock.now_ms())
    answer.set_result(ERROR)
    await soon(round_of_attempts)
    expected = [State.CREATED, State.ACTIVE, State.CANCEL_REQUESTED, State.ERROR, State.CANCELED]
    assert await bench.states() == expected
    assert await bench.dead() == []


# -- the request


@pytest.mark.parametrize(
    "url",
    [
        "http://h.example",
        "http://h.example/",
        "HTTP://H.Example:80/a/",
        "http://h.example/%7e//../x/?",
        "http://[::1]/?a=/",
    ],
)
def test_the_url_is_sent_and_signed_as_it_was_written(url: str) -> None:
    request = signed_request(message(1, url=url), KEYS, now_s=START_MS // 1000, jti="jwt_1", region="EU-CENTRAL-1")
    assert request.url == url
    token = header(request, "Upstash-Signature")
    claims = signing.verify(token, body=request.body, url=url, keys=KEYS, now_s=START_MS / 1000)
    assert claims.url == url


def test_the_request_carries_the_headers_of_the_protocol_once_each() -> None:
    sent = message(7, caller_ip="192.0.2.9", retried=2, url_group="group", schedule_id="scd_1", timeout_ms=1234)
    request = signed_request(sent, KEYS, now_s=START_MS // 1000, jti="jwt_1", region="EU-CENTRAL-1")
    assert (request.method, request.url, request.body, request.timeout_ms) == ("POST", sent.url, sent.body, 1234)
    names = [name for name, _ in request.headers]
    assert len(names) == len(set(names))
    assert {name: value for name, value in request.headers if name != "Upstash-Signature"} == {
        "User-Agent": USER_AGENT,
        "Content-Type": "application/json",
        "Upstash-Caller-Ip": "192.0.2.9",
        "Upstash-Message-Id": "msg_7",
        "Upstash-Region": "EU-CENTRAL-1",
        "Upstash-Retried": "2",
        "Upstash-Topic-Name": "group",
        "Upstash-Schedule-Id": "scd_1",
    }


def test_a_forwarded_user_agent_takes_the_place_of_the_brokers() -> None:
    sent = message(1, headers=(("User-Agent", "mine"), ("X-A", "1"), ("X-A", "2")))
    request = signed_request(sent, KEYS, now_s=0, jti="jwt_1", region="EU-CENTRAL-1")
    assert [value for name, value in request.headers if name == "User-Agent"] == ["mine"]
    assert [value for name, value in request.headers if name == "X-A"] == ["1", "2"]


# -- the loop that runs for ever


@pytest.fixture
async def running(bench: Bench) -> AsyncIterator[Callable[[], None]]:
    """Start `bench.deliverer.run()` when called; stopped after the test."""
    tasks: list[asyncio.Task[None]] = []
    yield lambda: tasks.append(asyncio.create_task(bench.deliverer.run()))
    await bench.deliverer.drain(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_an_idle_loop_delivers_what_is_accepted_without_the_clock_moving(
    bench: Bench, running: Callable[[], None]
) -> None:
    gate = Gate()
    bench.make(gate)
    running()
    for number in range(3):
        await bench.publish(number)
        request, answer = await gate.next()
        answer.set_result(OK)
        assert header(request, "Upstash-Message-Id") == f"msg_{number}"


async def test_a_sleeping_loop_wakes_at_the_earliest_time_even_if_that_came_later(
    bench: Bench, running: Callable[[], None]
) -> None:
    gate = Gate()
    bench.make(gate)
    running()
    await bench.publish(1, not_before_ms=START_MS + 3_600_000)
    await bench.publish(2, not_before_ms=START_MS + 60_000)
    for number, step_ms in ((2, 60_000), (1, 3_540_000)):
        await settled()
        assert gate.arrived.empty()
        bench.clock.advance(step_ms)
        request, answer = await gate.next()
        assert header(request, "Upstash-Message-Id") == f"msg_{number}"
        answer.set_result(OK)


async def test_a_sleeping_loop_claims_for_a_later_message_only_if_that_is_the_first_to_become_due(
    bench: Bench, running: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    claims: list[int] = []
    claim = bench.deliverer.claim

    async def counted(limit: int) -> ClaimBatch:
        claims.append(bench.clock.now_ms() - START_MS)
        return await claim(limit)

    monkeypatch.setattr(bench.deliverer, "claim", counted)
    running()
    await settled()
    for number, due_ms in enumerate((60_000, 90_000, 60_000, 30_000, 40_000)):
        await bench.store.accept([publication(number, not_before_ms=START_MS + due_ms)], now_ms=START_MS)
        bench.deliverer.wake_at(START_MS + due_ms)
        await settled()
    assert len(claims) == 3, "one at the start, and one for each that was the first"
    bench.clock.advance(30_000)
    await settled()
    assert [header(request, "Upstash-Message-Id") for request in bench.transport.sent] == ["msg_3"]


async def test_a_message_that_is_stored_during_a_claim_is_not_overslept(
    bench: Bench, running: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = bench.deliverer.claim
    is_first = True

    async def interrupted(limit: int) -> ClaimBatch:
        nonlocal is_first
        batch = await claim(limit)
        if is_first:
            is_first = False
            await bench.store.accept([publication(1, not_before_ms=START_MS + 5)], now_ms=START_MS)
            bench.deliverer.wake_at(START_MS + 5)
        return batch

    monkeypatch.setattr(bench.deliverer, "claim", interrupted)
    running()
    await settled()
    bench.clock.advance(5)
    await settled()
    assert len(bench.transport.sent) == 1


@pytest.mark.parametrize(("per_host", "claims"), [(1, 3), (8, 2)], ids=["one waits", "none waits"])
async def test_an_attempt_that_ends_during_a_claim_causes_another_if_a_message_waits_for_room(
    bench: Bench, running: Callable[[], None], monkeypatch: pytest.MonkeyPatch, per_host: int, claims: int
) -> None:
    gate = Gate()
    bench.make(gate, limits=DeliveryLimits(in_flight=16, per_host=per_host))
    claim = bench.deliverer.claim
    limits: list[int] = []

    async def interrupted(limit: int) -> ClaimBatch:
        batch = await claim(limit)
        limits.append(limit)
        if len(limits) == 2:
            answer.set_result(OK)
            await settled()
        return batch

    await bench.publish(1)
    monkeypatch.setattr(bench.deliverer, "claim", interrupted)
    running()
    _, answer = await gate.next()
    await bench.publish(2)
    request, _ = await gate.next()
    await settled()
    assert header(request, "Upstash-Message-Id") == "msg_2"
    assert len(limits) == claims


async def settled() -> None:
    """Let everything that can run without time passing run."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_the_caps_on_attempts_hold_in_all_and_per_host(bench: Bench, running: Callable[[], None]) -> None:
    gate = Gate()
    bench.make(gate, limits=DeliveryLimits(in_flight=5, per_host=2))
    for number in range(40):
        await bench.publish(number, url=f"http://h{number % 4}.example/")
    running()
    delivered: list[str] = []
    while len(delivered) < 40:
        request, answer = await gate.next()
        assert bench.deliverer.in_flight <= 5
        delivered.append(header(request, "Upstash-Message-Id"))
        if gate.arrived.empty():
            await settled()  # every message that may start has started
        answer.set_result(OK)
    assert gate.most["all"] == 5
    assert max(gate.most[f"h{n}.example"] for n in range(4)) == 2
    assert sorted(delivered) == sorted(f"msg_{n}" for n in range(40))


async def test_a_host_that_hangs_does_not_hold_up_another(bench: Bench, running: Callable[[], None]) -> None:
    gate = Gate()
    bench.make(gate, limits=DeliveryLimits(in_flight=8, per_host=3))
    for number in range(50):
        await bench.publish(number, url="http://dead.example/")
    for number in range(50, 60):
        await bench.publish(number, url="http://healthy.example/")
    running()
    healthy: list[str] = []
    while len(healthy) < 10:
        request, answer = await gate.next()
        if "healthy" in request.url:
            healthy.append(header(request, "Upstash-Message-Id"))
            answer.set_result(OK)
    assert healthy == [f"msg_{n}" for n in range(50, 60)]
    assert gate.most["dead.example"] <= 3


async def test_what_was_held_back_starts_in_order_as_soon_as_there_is_room(
    bench: Bench, running: Callable[[], None]
) -> None:
    gate = Gate()
    bench.make(gate, limits=DeliveryLimits(in_flight=8, per_host=1))
    for number in range(20):
        await bench.publish(number)
    running()
    for number in range(20):
        request, answer = await gate.next()
        assert header(request, "Upstash-Message-Id") == f"msg_{number}"
        answer.set_result(OK)


async def test_a_lone_message_costs_two_commits_one_before_its_attempt_and_one_after(tmp_path: Path) -> None:
    gate = Gate()
    broker = await Broker.open(BrokerSettings(path=str(tmp_path / "broker.db")), transport=gate)
    context = broker.api._context
    commits = 0

    def count() -> bool:
        nonlocal commits
        commits += 1
        return False

    delivered = asyncio.Event()
    broker.watchers.add(lambda event: delivered.set() if event.state is State.DELIVERED else None)
    broker.start()
    await settled()  # every loop has had its first look
    cast("SqliteStore", broker.store)._db.set_commit_hook(count)
    now_ms = broker.clock.now_ms()
    await context.accept([publication(1, now_ms=now_ms)], now_ms=now_ms)
    _, answer = await gate.next()
    assert commits == 1, "stored and leased together"
    answer.set_result(OK)
    await soon(delivered.wait())
    assert commits == 2
    await broker.stop()


# -- watchers


async def test_watchers_are_told_every_step_and_only_after_it_is_committed(tmp_path: Path) -> None:
    path = str(tmp_path / "broker.db")
    store, _ = await SqliteStore.open(path, VirtualClock())
    await store.write(accounts.ensure_account, AccountCredentials("me", "token", KEYS), KEYS)
    bench = Bench(store)
    bench.transport.answer = sequence(ERROR, OK)
    outside = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    notified: list[State] = []

    def watch(event: MessageEvent) -> None:
        kept = [row[0] for row in outside.execute("SELECT state FROM log ORDER BY n")]
        assert event.state in kept, f"{event.state} was notified before it was committed"
        notified.append(event.state)
        if event.state is State.RETRY:
            assert event.next_delivery_ms == START_MS
            assert event.outcome == ERROR
            assert event.error == "the destination answered 500"

    bench.watchers.add(watch)
    await bench.publish(options=PublishOptions(retry_delay="0"))
    await bench.deliverer.run_once()
    outside.close()
    await store.close()
    assert notified == [State.ACTIVE, State.RETRY, State.ACTIVE, State.DELIVERED]


async def test_a_watcher_that_fails_stops_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: MessageEvent) -> None:
        raise RuntimeError("the terminal is gone")

    notified: list[State] = []
    bench.watchers.add(broken)
    bench.watchers.add(lambda event: notified.append(event.state))
    await bench.publish()
    await bench.deliverer.run_once()
    assert notified == [State.ACTIVE, State.DELIVERED]
    assert "a watcher of broker events failed" in caplog.text


async def test_a_cancelled_message_is_not_told_a_next_delivery(bench: Bench) -> None:
    gate = Gate()
    bench.make(gate)
    events: list[MessageEvent] = []
    bench.watchers.add(events.append)
    await bench.publish()
    round_of_attempts = asyncio.create_task(bench.deliverer.run_once())
    _, answer = await gate.next()
    await bench.store.write(cancel.cancel, ACCOUNT, ["msg_1"], now_ms=bench.clock.now_ms())
    answer.set_result(ERROR)
    await soon(round_of_attempts)
    assert [(event.state, event.next_delivery_ms) for event in events] == [(State.ACTIVE, None), (State.CANCELED, None)]


# -- bad days


async def test_an_outcome_is_recorded_however_often_the_store_refuses(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried every second; the error is logged at once, then once a minute."""
    flaky = Flaky(bench.store)
    seconds = 121
    flaky.errors["settle"] = [StoreError("the disk is full") for _ in range(seconds)]
    bench.make(store=flaky)
    await bench.publish()
    round_of_attempts = asyncio.create_task(bench.deliverer.run_once())
    for _ in range(seconds):
        await soon(flaky.refused.acquire())
        assert not round_of_attempts.done()
        bench.clock.advance(1_000)
    await soon(round_of_attempts)
    assert len(bench.transport.sent) == 1
    assert await bench.states() == [State.CREATED, State.ACTIVE, State.DELIVERED]
    assert caplog.text.count("cannot record the end of an attempt of msg_1: the disk is full") == 3


async def test_attempts_that_end_in_one_turn_are_recorded_together_and_one_by_one_if_that_fails(bench: Bench) -> None:
    gate, flaky = Gate(), Flaky(bench.store)
    flaky.errors["settle_all"] = [ValueError("one of them cannot be stored")]
    bench.make(gate, store=flaky)
    for number in (1, 2, 3):
        await bench.publish(number)
    round_of_attempts = asyncio.create_task(bench.deliverer.run_once())
    for answer in [(await gate.next())[1] for _ in range(3)]:
        answer.set_result(OK)
    assert await soon(round_of_attempts) == 3
    assert flaky.errors == {"settle_all": []}
    for message_id in ("msg_1", "msg_2", "msg_3"):
        assert await bench.states(message_id) == [State.CREATED, State.ACTIVE, State.DELIVERED]


async def test_an_attempt_waits_for_its_keys_when_the_store_refuses_them(bench: Bench) -> None:
    flaky = Flaky(bench.store)
    flaky.errors["signing_keys"] = [StoreError("the store is busy")]
    bench.keys = KeyRing(cast("Store", flaky))
    bench.make()
    await bench.publish()
    round_of_attempts = asyncio.create_task(bench.deliverer.run_once())
    await soon(flaky.refused.acquire())
    bench.clock.advance(1_000)
    await soon(round_of_attempts)
    assert await bench.states() == [State.CREATED, State.ACTIVE, State.DELIVERED]


@pytest.mark.parametrize("error", [StoreError("the disk is full"), ValueError("a fault of our own")])
async def test_the_loop_survives_a_claim_that_fails(
    bench: Bench, running: Callable[[], None], error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    flaky = Flaky(bench.store)
    flaky.errors["claim"] = [error, error]
    bench.make(gate, store=flaky)
    await bench.publish()
    running()
    for _ in range(2):
        await soon(flaky.refused.acquire())
        await settled()
        bench.clock.advance(1_000)
    _, answer = await gate.next()
    answer.set_result(OK)
    assert caplog.text.count(f"cannot claim messages: {error}") == 2


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE messages SET headers = 'not json' WHERE seq = 1",
        "UPDATE messages SET options = 'not json' WHERE seq = 1",
        "UPDATE stored_bodies SET body = x'00' WHERE seq = 1",
    ],
)
async def test_a_damaged_message_is_set_aside_and_its_neighbours_are_delivered(bench: Bench, damage: str) -> None:
    await bench.publish(1)
    await bench.publish(2)
    await bench.store.write(lambda db: db.execute(damage))
    assert await bench.deliverer.run_once() == 1
    assert [header(sent, "Upstash-Message-Id") for sent in bench.transport.sent] == ["msg_2"]
    rows = await bench.store.write(lambda db: db.execute("SELECT error FROM dead_letters").fetchall())
    assert rows == [(Fault.CONTENT,)]


class Panic(BaseException):
    """An exception that is no `Exception`, like the panic of a Rust extension."""


@pytest.mark.parametrize("fault", [RuntimeError("a fault of our own"), Panic("index out of bounds")])
async def test_a_transport_that_raises_costs_an_attempt_and_not_the_message(
    bench: Bench, caplog: pytest.LogCaptureFixture, fault: BaseException
) -> None:
    def broken(request: DeliveryRequest) -> Response | Failure:
        bench.transport.answer = lambda request: OK
        raise fault

    bench.transport.answer = broken
    await bench.publish(options=PublishOptions(retry_delay="0"))
    with caplog.at_level(logging.CRITICAL, logger="qtasks.broker"):
        assert await bench.deliverer.run_once() == 2
    expected = [State.CREATED, State.ACTIVE, State.ERROR, State.RETRY, State.ACTIVE, State.DELIVERED]
    assert await bench.states() == expected


async def test_an_answer_that_no_store_can_keep_does_not_stop_its_message(bench: Bench) -> None:
    unstorable = Response(status=500, headers=(("X-Half", "\ud800"),))
    bench.transport.answer = lambda request: unstorable
    await bench.publish(max_retries=0)
    await bench.deliverer.run_once()
    assert await bench.dead() == ["msg_1"]


async def test_a_message_that_cannot_be_signed_ends_where_people_look(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> str:
        raise ValueError("no token today")

    monkeypatch.setattr(signing, "sign", broken)
    await bench.publish(max_retries=0)
    await bench.deliverer.run_once()
    assert await bench.dead() == ["msg_1"]


async def test_an_endpoint_whose_own_work_is_cancelled_costs_an_attempt_and_not_the_message(bench: Bench) -> None:
    """An application in this process can go away with its event loop, and takes what it was doing with it."""
    gate = Gate()
    bench.make(gate)
    await bench.publish(options=PublishOptions(retry_delay="0"))
    round_of_attempts = asyncio.create_task(bench.deliverer.run_once())
    _, answer = await gate.next()
    answer.cancel()
    _, answer = await gate.next()
    answer.set_result(OK)
    await soon(round_of_attempts)
    expected = [State.CREATED, State.ACTIVE, State.ERROR, State.RETRY, State.ACTIVE, State.DELIVERED]
    assert await bench.states() == expected


async def test_words_of_an_application_that_no_store_can_keep_do_not_stop_its_message(bench: Bench) -> None:
    bench.transport.answer = sequence(Failure("connection_lost", "the application failed: \udc80 \x00"), OK)
    await bench.publish(options=PublishOptions(retry_delay="0"))
    assert await bench.deliverer.run_once() == 2
    assert (await bench.states())[-1] is State.DELIVERED


# -- drain


async def test_a_drain_waits_for_the_attempts_under_way_and_starts_nothing_new(
    bench: Bench, running: Callable[[], None]
) -> None:
    gate = Gate()
    bench.make(gate)
    running()
    await bench.publish(1)
    _, answer = await gate.next()
    draining = asyncio.create_task(bench.deliverer.drain(5))
    await bench.publish(2)
    await settled()
    assert not draining.done()
    answer.set_result(OK)
    assert await soon(draining) is True
    assert await bench.states("msg_1") == [State.CREATED, State.ACTIVE, State.DELIVERED]
    assert await bench.states("msg_2") == [State.CREATED]


async def test_a_drain_waits_for_what_a_claim_under_way_is_about_to_start(
    bench: Bench, running: Callable[[], None]
) -> None:
    flaky = Flaky(bench.store)
    flaky.gates["claim"] = asyncio.Event()
    bench.make(store=flaky)
    await bench.publish()
    running()
    await settled()  # the claim is committed and its answer is on the way
    draining = asyncio.create_task(bench.deliverer.drain(5))
    await settled()
    flaky.gates["claim"].set()
    assert await soon(draining) is True
    assert await bench.states() == [State.CREATED, State.ACTIVE, State.DELIVERED]


async def test_a_drain_that_runs_out_of_time_leaves_the_message_to_the_next_start(
    bench: Bench, running: Callable[[], None]
) -> None:
    gate = Gate()
    bench.make(gate)
    running()
    await bench.publish()
    await gate.next()
    assert await bench.deliverer.drain(0.01) is False
    assert bench.deliverer.in_flight == 0
    recovery = await bench.store.write(lambda db: settle.recover(db, now_ms=bench.clock.now_ms()))
    assert recovery.interrupted == 1
    await bench.make().run_once()
    [again] = bench.transport.sent
    assert header(again, "Upstash-Retried") == "0"
    expected = [State.CREATED, State.ACTIVE, State.ERROR, State.RETRY, State.ACTIVE, State.DELIVERED]
    assert await bench.states() == expected


async def test_an_attempt_ends_without_its_outcome_if_the_store_is_broken(
    bench: Bench, running: Callable[[], None]
) -> None:
    gate = Gate()
    bench.make(gate)
    running()
    await bench.publish()
    _, answer = await gate.next()
    bench.store.fail("the disk is gone")
    answer.set_result(OK)
    await soon(bench.deliverer.drain(3600))
    assert bench.deliverer.in_flight == 0


async def test_an_idle_drain_is_done_at_once_and_can_be_asked_for_twice(bench: Bench) -> None:
    assert await bench.deliverer.drain(0) is True
    assert await bench.deliverer.drain(0) is True
