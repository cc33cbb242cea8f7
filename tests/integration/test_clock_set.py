"""The clock of a real broker is set: a day ahead, then right; an hour back; with kills and stops."""

from __future__ import annotations

import itertools
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qtasks.broker.store.connection import connect_read_only
from qtasks.broker.store.verbs import broker_time
from tests.support.faketime import FakeClock
from tests.support.process import PATIENCE_S, soon
from tests.support.running import Answer, Endpoint, Received
from tests.support.servers import TOKEN, BrokerServer

DAY_S, HOUR_S, MINUTE_S = 86_400, 3_600, 60
LATE_S = 30.0
"""How late a delivery may be on a busy machine. A clock that matters would make it late by an hour."""
EARLY_S = 3.0
"""How early: small differences of the clocks are followed, and the times here are taken before the publish."""


class Arrivals:
    """An endpoint that notes when requests come, by the machine's monotonic clock; `failing` bodies fail once."""

    def __init__(self) -> None:
        self.failing: set[str] = set()
        self.times: list[tuple[str, float]] = []
        self._lock = threading.Lock()
        self.endpoint = Endpoint(self._answer)
        self.url = self.endpoint.url + "/hook"

    def _answer(self, received: Received) -> Answer:
        body = received.body.decode()
        with self._lock:
            self.times.append((body, time.monotonic()))
            if body in self.failing:
                self.failing.discard(body)
                return 500, {}, b""
        return 200, {}, b""

    def of(self, body: str) -> list[float]:
        with self._lock:
            return [time_s for name, time_s in self.times if name == body]

    def order(self) -> list[str]:
        with self._lock:
            return [name for name, _ in self.times]


@pytest.fixture
def arrivals() -> Iterator[Arrivals]:
    made = Arrivals()
    yield made
    made.endpoint.close()


def start(folder: Path, clock: FakeClock) -> BrokerServer:
    return BrokerServer(folder, "--db", "broker.db", token=TOKEN, secrets=True, **clock.variables)


def offset_ms(broker: BrokerServer) -> int:
    return int(broker.ask("GET", "/readyz").json.get("clockOffsetMs", 0))


def set_clock(broker: BrokerServer, clock: FakeClock, ahead_s: int) -> None:
    """Set the clock and wait until the broker has noticed and stored that."""
    expected_ms = offset_ms(broker) + (ahead_s - clock.ahead_s) * 1000
    clock.set(ahead_s)
    database = connect_read_only(str(broker.folder / "broker.db"))

    def is_stored() -> bool:
        offset_ms(broker)
        return abs(broker_time.stored_offset_ms(database) - expected_ms) < 2_500

    soon(is_stored, "the broker has stored its new offset")
    database.close()


def enqueue(broker: BrokerServer, arrivals: Arrivals, body: str) -> None:
    headers = {"Upstash_Retry_Delay": "200"}
    assert broker.ask("POST", f"/v2/enqueue/line/{arrivals.url}", body.encode(), **headers).status == 201


def test_a_clock_that_is_a_day_ahead_and_then_right_delays_nothing_and_silences_no_schedule(
    tmp_path: Path, arrivals: Arrivals
) -> None:
    clock = FakeClock(tmp_path, seconds_of_minute=50)
    arrivals.failing = {"first"}
    with start(tmp_path, clock) as broker:
        broker.started()
        headers = {"Upstash_Cron": "* * * * *"}
        assert broker.ask("POST", f"/v2/schedules/{arrivals.url}", b"tick", **headers).status == 200
        published_s = time.monotonic()
        broker.publish(arrivals.url, b"delayed", Upstash_Delay="3s")
        enqueue(broker, arrivals, "first")
        ticks = len(arrivals.of("tick"))
        set_clock(broker, clock, DAY_S)
        soon(lambda: len(arrivals.of("tick")) > ticks, "the tick of tomorrow, which this clock says is now")
        enqueue(broker, arrivals, "second")
        meanwhile_s = time.monotonic()
        meanwhile = broker.publish(arrivals.url, b"meanwhile", Upstash_Delay="2s")
        assert abs(broker.log(meanwhile)[0]["time"] - clock.now_ms()) < 3_000, "shown as the machine's clock has it"
        set_clock(broker, clock, 0)
        enqueue(broker, arrivals, "third")

        ticks = len(arrivals.of("tick"))
        soon(
            lambda: len(arrivals.of("tick")) > ticks, "the next tick of the right clock", within_s=MINUTE_S + PATIENCE_S
        )
        soon(lambda: {"delayed", "meanwhile", "third"} <= {*arrivals.order()}, "every message")
        assert 3 <= arrivals.of("delayed")[0] - published_s < 3 + LATE_S
        assert 2 <= arrivals.of("meanwhile")[0] - meanwhile_s < 2 + LATE_S
        assert [name for name in arrivals.order() if name in ("first", "second", "third")] == [
            *("first", "first"),
            *("second", "third"),
        ]
        assert broker.stop(signal.SIGTERM) == 0
        assert sum("the machine's clock was set" in line for line in broker.lines) == 2


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.release)])
def test_a_clock_that_is_set_back_by_an_hour_delays_nothing_also_after_a_restart(
    tmp_path: Path, arrivals: Arrivals, how: signal.Signals
) -> None:
    clock = FakeClock(tmp_path, seconds_of_minute=5)
    with start(tmp_path, clock) as broker:
        broker.started()
        published_s = time.monotonic()
        broker.publish(arrivals.url, b"delayed", Upstash_Delay="3s")
        set_clock(broker, clock, -HOUR_S)
        broker.publish(arrivals.url, b"new")
        broker.stop(how)
    with start(tmp_path, clock) as broker:
        broker.started()
        assert abs(offset_ms(broker) + HOUR_S * 1000) < 60_000
        soon(lambda: bool(arrivals.of("delayed")), "the delayed message")
        # The time of the stop may count as nothing: the clock says that it was an hour ago.
        assert 3 <= arrivals.of("delayed")[0] - published_s < 3 + LATE_S
        soon(lambda: bool(arrivals.of("new")), "the new message")
        broker.stop(signal.SIGTERM)


@pytest.mark.release
@pytest.mark.parametrize("seed", range(3))
def test_messages_keep_their_delays_and_their_order_on_a_clock_that_is_set_all_the_time(
    tmp_path: Path, arrivals: Arrivals, seed: int
) -> None:
    """A minute of jumps, with stops and kills: each message arrives once per attempt, in time and in order."""
    chance = random.Random(seed)
    clock = FakeClock(tmp_path, seconds_of_minute=0)
    due_s: dict[str, float] = {}
    queued: list[str] = []
    numbers = itertools.count()
    away_s = 0.0
    end_s = time.monotonic() + MINUTE_S
    broker = start(tmp_path, clock).started()
    try:
        while time.monotonic() < end_s:
            for _ in range(chance.randrange(1, 5)):
                name, delay_s = f"d{next(numbers)}", chance.randrange(1, 20)
                due_s[name] = time.monotonic() + delay_s
                broker.publish(arrivals.url, name.encode(), Upstash_Delay=f"{delay_s}s")
                queued.append(f"q{next(numbers)}")
                if chance.random() < 0.3:
                    arrivals.failing.add(queued[-1])
                enqueue(broker, arrivals, queued[-1])
            span_s = chance.choice((3, 60, HOUR_S, DAY_S, 3650 * DAY_S)) * chance.choice((-1, 0, 1))
            set_clock(broker, clock, span_s)
            if chance.random() < 0.3:
                began_s = time.monotonic()
                broker.stop(chance.choice((signal.SIGTERM, signal.SIGKILL)))
                broker = start(tmp_path, clock).started()
                away_s += time.monotonic() - began_s
        soon(lambda: {*due_s, *queued} <= {*arrivals.order()}, "every message", within_s=2 * MINUTE_S)
    finally:
        broker.__exit__()
    for name, time_s in due_s.items():
        assert time_s - EARLY_S <= arrivals.of(name)[0] < time_s + LATE_S + away_s + MINUTE_S, name
    line = [name for name in arrivals.order() if name in set(queued)]
    assert list(dict.fromkeys(line)) == queued
    assert line == sorted(line, key=queued.index), "a message has overtaken another"
