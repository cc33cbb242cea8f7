"""The machine's clock is set: nothing waits longer or shorter, overtakes, fires twice or falls silent."""

from __future__ import annotations

import base64
import json
import logging
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import pytest

from qtasks.broker.loops.clock_watch import NOTE_EVERY_MS, ClockWatch
from qtasks.broker.steady_clock import TOLERANCE_MS
from qtasks.broker.store.verbs import retention
from qtasks.protocol.messages import Response
from tests.support.api import HOOK
from tests.support.broker import START_MS
from tests.support.clock_world import (
    DAY_MS,
    DECADE_MS,
    HOUR_MS,
    KEEP_A_WEEK,
    MINUTE_MS,
    SECOND_MS,
    ClockWorld,
)

pytestmark = pytest.mark.anyio

RESTARTS = {
    "no restart": (None, None),
    "a restart while it is wrong": (False, None),
    "a restart when it is right": (None, False),
    "a restart in both": (False, False),
    "a kill while it is wrong": (True, None),
    "a kill when it is right": (None, True),
    "a kill in both": (True, True),
}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[ClockWorld]:
    async with ClockWorld.open(tmp_path / "broker.db") as opened:
        yield opened


def shown(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")


@pytest.mark.parametrize("restarts", RESTARTS.values(), ids=RESTARTS.keys())
@pytest.mark.parametrize(
    "span_ms", [DAY_MS, -HOUR_MS, DECADE_MS], ids=["a day ahead", "an hour back", "ten years ahead"]
)
async def test_a_clock_that_is_wrong_for_a_minute_changes_no_delay_and_no_order(
    world: ClockWorld, span_ms: int, restarts: tuple[bool | None, bool | None]
) -> None:
    while_wrong, when_right = restarts
    world.failures = {"retried": 1, "first": 1}
    await world.schedule("cron", "*/5 * * * *")
    await world.schedule("interval", "@every 5m")
    await world.publish("delayed", Delay="10m")
    await world.publish("retried", Retry_Delay="300000")
    await world.enqueue("q", "first", Retry_Delay="300000")
    await world.enqueue("q", "second")
    await world.live(MINUTE_MS)

    await world.set_clock(span_ms)
    if while_wrong is not None:
        await world.restart(killed=while_wrong)
    await world.publish("new")
    await world.publish("new and delayed", Delay="5m")
    await world.enqueue("q", "third")
    await world.live(MINUTE_MS)

    await world.set_clock(-span_ms)
    if when_right is not None:
        await world.restart(killed=when_right)
    await world.enqueue("q", "fourth")
    await world.live(30 * MINUTE_MS)

    assert world.times("delayed") == [10 * MINUTE_MS]
    assert world.times("retried") == [0, 5 * MINUTE_MS]
    assert world.times("new") == [MINUTE_MS]
    assert world.times("new and delayed") == [6 * MINUTE_MS]
    queue = [attempt.body for attempt in world.attempts if attempt.body in ("first", "second", "third", "fourth")]
    assert queue == ["first", "first", "second", "third", "fourth"]
    assert world.times("fourth") == [5 * MINUTE_MS]
    assert [run.elapsed_ms for run in world.runs("interval")] == [n * 5 * MINUTE_MS for n in range(1, 7)]
    since_right = [run.elapsed_ms for run in world.runs("cron") if run.elapsed_ms > 2 * MINUTE_MS]
    assert since_right == [n * 5 * MINUTE_MS for n in range(1, 7)]
    assert len(world.runs("cron")) == len(await world.fired_ticks("cron"))


@pytest.mark.parametrize("order", ["schedules first", "watch first"])
@pytest.mark.parametrize(("span_ms", "left"), [(DAY_MS, 12), (HOUR_MS, 11)])
async def test_a_clock_that_was_ahead_leaves_no_schedule_silent(
    world: ClockWorld, order: str, span_ms: int, left: int
) -> None:
    await world.schedule("cron", "*/5 * * * *")
    await world.schedule("daily", "3 * * * *")
    world.clock.jump(span_ms)
    for step in (world.service.run, world.look) if order == "schedules first" else (world.look, world.service.run):
        await step()
    await world.live(MINUTE_MS)
    assert len(world.runs("cron")) == 1, "the latest of the ticks that this clock has passed"
    error = (await world.service.get("/v2/schedules/cron"))["error"]
    assert "runs were missed while the broker did not run, or because its clock was set" in error

    world.clock.jump(-span_ms)
    await world.live(HOUR_MS)
    assert len(world.runs("cron")) == 1 + left, "also the ticks that the wrong clock has left out"
    assert len(await world.fired_ticks("cron")) == 1 + left


async def test_a_clock_that_is_set_back_repeats_no_tick(world: ClockWorld) -> None:
    await world.schedule("cron", "* * * * *")
    await world.live(10 * MINUTE_MS)
    await world.set_clock(-5 * MINUTE_MS)
    await world.live(5 * MINUTE_MS)
    assert len(world.runs("cron")) == 10
    await world.live(5 * MINUTE_MS)
    assert len(world.runs("cron")) == 15


async def test_runs_that_a_clock_shows_twice_are_not_reported_as_missed(world: ClockWorld) -> None:
    await world.schedule("cron", "* * * * *")
    await world.live(10 * MINUTE_MS)
    await world.set_clock(-5 * MINUTE_MS)
    await world.live(MINUTE_MS)
    await world.set_clock(5 * MINUTE_MS)
    await world.live(SECOND_MS)
    assert len(world.runs("cron")) == 11
    assert "error" not in await world.service.get("/v2/schedules/cron")


async def test_a_start_with_a_clock_that_is_ahead_silences_nothing_once_it_is_right(world: ClockWorld) -> None:
    """Nobody can tell it from a day without the broker: what waited for less than a day is due."""
    await world.schedule("cron", "*/5 * * * *")
    await world.schedule("interval", "@every 5m")
    await world.publish("delayed", Delay="10m")
    await world.live(MINUTE_MS)
    await world.stop()
    world.clock.jump(DAY_MS)
    await world.start()
    await world.live(MINUTE_MS)
    assert world.times("delayed") == [MINUTE_MS]
    await world.publish("later", Delay="10m")
    await world.set_clock(-DAY_MS)
    for _ in range(2):
        before = len(world.runs("cron")), len(world.runs("interval"))
        await world.live(30 * MINUTE_MS)
        assert (len(world.runs("cron")), len(world.runs("interval"))) == (before[0] + 6, before[1] + 6)
        await world.restart()
    assert world.times("later") == [12 * MINUTE_MS]


async def test_no_run_of_a_day_begins_on_the_day_before(world: ClockWorld) -> None:
    """A small difference is followed slowly, so the broker's time may be ahead of the clock for a while."""
    await world.schedule("cron", "* * * * *")
    await world.set_clock(-TOLERANCE_MS)
    await world.live(10 * MINUTE_MS, step_ms=250)
    assert len(world.runs("cron")) == 10
    for run in world.runs("cron"):
        assert 0 <= run.wall_ms % MINUTE_MS <= SECOND_MS


@pytest.mark.parametrize("span_ms", [-HOUR_MS, -DECADE_MS])
@pytest.mark.parametrize("right_again", ["while it runs", "while it is stopped"])
async def test_a_clock_that_is_set_back_while_the_broker_is_stopped_delays_nothing(
    world: ClockWorld, span_ms: int, right_again: str
) -> None:
    await world.schedule("cron", "*/5 * * * *")
    await world.schedule("interval", "@every 5m")
    await world.publish("delayed", Delay="10m")
    world.failures = {"first": 1}
    await world.enqueue("q", "first", Retry_Delay="300000")
    await world.live(MINUTE_MS)
    await world.stop()
    world.clock.jump(span_ms)
    await world.start()
    await world.enqueue("q", "second")
    await world.live(MINUTE_MS)
    if right_again == "while it runs":
        await world.set_clock(-span_ms)
    else:
        await world.stop()
        world.clock.jump(-span_ms)
        await world.start()
    await world.enqueue("q", "third")
    await world.live(30 * MINUTE_MS)
    assert world.times("delayed") == [10 * MINUTE_MS]
    line = [attempt for attempt in world.attempts if attempt.body in ("first", "second", "third")]
    assert [attempt.body for attempt in line] == ["first", "first", "second", "third"]
    assert line[-1].elapsed_ms == 5 * MINUTE_MS
    assert [run.elapsed_ms for run in world.runs("interval")] == [n * 5 * MINUTE_MS for n in range(1, 7)]
    since_right = [run.elapsed_ms for run in world.runs("cron") if run.elapsed_ms > 2 * MINUTE_MS]
    assert since_right == [n * 5 * MINUTE_MS for n in range(1, 7)]


async def test_a_time_that_the_user_gave_follows_the_clock(world: ClockWorld) -> None:
    in_an_hour_s = (START_MS + HOUR_MS) // 1000
    await world.publish("appointment", Not_Before=str(in_an_hour_s))
    await world.publish("past", Not_Before="1000")
    await world.live(SECOND_MS)
    assert (world.times("past"), world.times("appointment")) == ([0], [])
    await world.set_clock(-HOUR_MS)
    await world.restart()
    await world.live(90 * MINUTE_MS)
    assert world.times("appointment") == []
    await world.set_clock(29 * MINUTE_MS)
    await world.live(SECOND_MS)
    assert world.times("appointment") == []
    await world.set_clock(2 * MINUTE_MS)
    await world.live(SECOND_MS)
    assert len(world.times("appointment")) == 1


async def test_a_time_that_the_user_gave_follows_a_clock_that_was_set_while_the_broker_was_away(
    world: ClockWorld,
) -> None:
    await world.publish("appointment", Not_Before=str((START_MS + HOUR_MS) // 1000))
    await world.stop()
    world.clock.jump(-DAY_MS)
    await world.start()
    await world.live(2 * HOUR_MS, step_ms=MINUTE_MS)
    assert world.times("appointment") == []
    await world.set_clock(DAY_MS)
    await world.live(SECOND_MS)
    assert len(world.times("appointment")) == 1


async def test_the_api_shows_and_takes_the_times_of_the_machines_clock(world: ClockWorld) -> None:
    await world.set_clock(DAY_MS)
    wall_ms = START_MS + DAY_MS
    at_s = (wall_ms + HOUR_MS) // 1000
    delayed, fixed = await world.publish("", Delay="10m"), await world.publish("", Not_Before=str(at_s))
    await world.schedule("cron", "0 0 1 1 *")
    await world.schedule("interval", "@every 1h")
    await world.enqueue("q", "")

    service = world.service
    message = await service.get(f"/v2/messages/{delayed}")
    assert (message["createdAt"], message["notBefore"]) == (wall_ms, wall_ms + 10 * MINUTE_MS)
    assert message["nextDeliveryTime"] == wall_ms + 10 * MINUTE_MS
    message = await service.get(f"/v2/messages/{fixed}")
    assert (message["createdAt"], message["notBefore"], message["nextDeliveryTime"]) == (
        wall_ms,
        at_s * 1000,
        at_s * 1000,
    )
    [entry] = (await service.get(f"/v2/logs?messageId={delayed}&fromDate={wall_ms}&toDate={wall_ms}"))["logs"]
    assert (entry["time"], entry["nextDeliveryTime"]) == (wall_ms, wall_ms + 10 * MINUTE_MS)
    assert (await service.get(f"/v2/logs?toDate={wall_ms - 1}"))["logs"] == []
    schedule = await service.get("/v2/schedules/interval")
    assert (schedule["createdAt"], schedule["nextScheduleTime"]) == (wall_ms, wall_ms + HOUR_MS)
    assert (await service.get("/v2/schedules/cron"))["nextScheduleTime"] > wall_ms
    assert (await service.get("/v2/queues/q"))["createdAt"] == wall_ms
    assert json.loads((await service.broker.ready()).body)["clockOffsetMs"] == DAY_MS
    refused = await service.call("POST", f"/v2/publish/{HOOK}", {"Upstash-Not-Before": str(at_s + 366 * 86_400)})
    assert refused.status == 412
    cancelled = await service.call("DELETE", f"/v2/messages?fromDate={wall_ms}&toDate={wall_ms}")
    assert cancelled.json == {"cancelled": 3}


async def test_what_leaves_for_others_has_the_machines_time(world: ClockWorld) -> None:
    await world.set_clock(DAY_MS)
    wall_ms = START_MS + DAY_MS
    until = format_datetime(datetime.fromtimestamp(wall_ms / 1000 + 90, UTC), usegmt=True)
    answers = [Response(status=503, headers=(("Retry-After", until),)), Response(status=500)]
    sent = world.service.transport.sent
    world.service.transport.answer = lambda request: answers.pop(0) if answers else Response(status=200)
    await world.publish("", Retries="1", Failure_Callback="http://127.0.0.1:8000/failed")
    await world.live(2 * MINUTE_MS)
    assert len(sent) == 3, "two attempts and the failure callback"
    claims = dict(sent[0].headers)["Upstash-Signature"].split(".")[1]
    issued_s = json.loads(base64.urlsafe_b64decode(claims + "=="))["iat"]
    assert abs(issued_s - wall_ms // 1000) <= 5
    body = json.loads(sent[2].body)
    assert (body["createdAt"], body["notBefore"]) == (str(wall_ms), str(wall_ms))
    [letter] = (await world.service.get(f"/v2/dlq?fromDate={wall_ms + 90_000}&toDate={wall_ms + 90_000}"))["messages"]
    assert letter["createdAt"] == wall_ms


@pytest.mark.parametrize("killed", [False, True])
async def test_a_leap_of_ten_years_removes_nothing(world: ClockWorld, killed: bool) -> None:
    await world.publish("delivered")
    await world.live(SECOND_MS)

    async def prune() -> int:
        broker = world.service.broker
        return await broker.store.write(retention.prune_messages, KEEP_A_WEEK, now_ms=broker.clock.now_ms())

    await world.set_clock(DECADE_MS)
    assert await prune() == 0
    await world.set_clock(-DECADE_MS)
    assert await prune() == 0
    for span_ms in (DECADE_MS, -DECADE_MS, DECADE_MS):
        await world.stop(killed=killed)
        world.clock.jump(span_ms)
        await world.start()
        assert await prune() == 0
    await world.set_clock(-DECADE_MS)
    assert await prune() == 0
    assert len((await world.service.get("/v2/logs"))["logs"]) == 3
    for _ in range(6):
        assert not await prune()
        world.clock.advance(DAY_MS)
    assert await prune() == 1, "the leap counts as one day of the seven"


@pytest.mark.parametrize(
    "damage",
    ["UPDATE log SET time_ms = time_ms + (1 << 41)", "UPDATE clock SET time_ms = time_ms + (1 << 50)"],
)
async def test_a_damaged_time_in_the_store_does_not_move_the_broker_into_the_next_century(
    world: ClockWorld, damage: str
) -> None:
    await world.publish("delayed", Delay="10m")
    await world.service.broker.store.write(lambda db: db.execute(damage).fetchall())
    await world.restart(killed=True)
    await world.live(20 * MINUTE_MS)
    [time_ms] = world.times("delayed")
    assert time_ms in (0, 10 * MINUTE_MS), "at most a day too early"
    await world.publish("new")


async def test_a_jump_is_reported_once_with_both_times(world: ClockWorld, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    await world.set_clock(-HOUR_MS)
    await world.live(10 * SECOND_MS, step_ms=SECOND_MS)
    [record] = caplog.records
    assert "set back by 1:00:00" in record.getMessage()
    assert f"from {shown(START_MS)} to {shown(START_MS - HOUR_MS)}" in record.getMessage()


async def test_a_start_with_a_clock_that_is_behind_says_so(world: ClockWorld, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    await world.stop()
    world.clock.jump(-HOUR_MS)
    await world.start()
    world.service.broker.start()
    await world.service.get("/v2/queues")
    [record] = caplog.records
    assert f"shows {shown(START_MS - HOUR_MS)}" in record.getMessage()
    assert f"own time it is {shown(START_MS)}" in record.getMessage()


async def test_after_the_machine_has_slept_everything_is_looked_at_again(world: ClockWorld) -> None:
    """The timers of a process do not count the time in which the machine sleeps."""
    woken: list[str] = []
    watch = ClockWatch(
        world.service.broker.store, wake=lambda: woken.append("deliver"), look_again=lambda: woken.append("schedule")
    )
    world.clock.advance(SECOND_MS)
    assert not await watch.run_once()
    assert woken == []
    world.clock.advance(8 * HOUR_MS)
    assert not await watch.run_once()
    assert woken == ["schedule", "deliver"]


LONGEST_S = 1_200
"""The longest delay in a random life."""


class Life:
    """A random life: messages, schedules, jumps of the clock, restarts and kills."""

    def __init__(self, world: ClockWorld, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.due: dict[str, int] = {}
        self.appointments: dict[str, int] = {}
        self.queued: list[str] = []
        self.fired: set[int] = set()
        self.kills = 0

    async def go_on(self) -> None:
        world, chance = self.world, self.random
        name = f"{len(self.due) + len(self.appointments) + len(self.queued)}"
        match chance.choice(
            ("delayed", "delayed", "appointment", "queued", "queued", "jump", "restart", "kill", "live", "live")
        ):
            case "delayed":
                delay_s = chance.randrange(LONGEST_S)
                self.due[f"d{name}"] = world.elapsed_ms + delay_s * 1000
                await world.publish(f"d{name}", Delay=f"{delay_s}s")
            case "appointment":
                at_s = world.clock.now_ms() // 1000 + chance.randrange(600)
                self.appointments[f"a{name}"] = at_s * 1000
                await world.publish(f"a{name}", Not_Before=str(at_s))
            case "queued":
                self.queued.append(f"q{name}")
                world.failures[f"q{name}"] = chance.choice((0, 0, 1))
                await world.enqueue("q", f"q{name}", Retry_Delay="30000")
            case "jump":
                span_ms = chance.choice((1, 3, 60, 3600, 86_400, 315_360_000)) * SECOND_MS * chance.choice((-1, 1))
                await world.set_clock(span_ms + chance.randrange(1000))
            case "restart":
                await world.restart()
            case "kill":
                self.kills += 1
                await world.restart(killed=True)
            case _:
                await world.live(chance.randrange(1, 300) * SECOND_MS, step_ms=SECOND_MS * chance.choice((1, 7, 30)))
        await self.look_at_ticks()

    async def look_at_ticks(self) -> None:
        self.fired |= {*await self.world.fired_ticks("cron")}
        assert len(self.fired) == len(self.world.runs("cron")), "a tick fired twice"

    def check(self) -> None:
        # The time of a killed broker is known to the minute.
        slack_ms = 30 * SECOND_MS + self.kills * NOTE_EVERY_MS
        for body, due_ms in self.due.items():
            [time_ms] = self.world.times(body)
            followed_ms = TOLERANCE_MS + LONGEST_S * 10  # small differences are followed: one part in a hundred
            assert due_ms - followed_ms <= time_ms <= due_ms + followed_ms + slack_ms, (body, due_ms, time_ms)
        first = {attempt.body: attempt for attempt in reversed(self.world.attempts)}
        for body, wall_ms in self.appointments.items():
            if body in first:
                assert first[body].wall_ms >= wall_ms - TOLERANCE_MS
        order = [attempt.body for attempt in self.world.attempts if attempt.body in self.queued]
        assert list(dict.fromkeys(order)) == self.queued
        assert order == sorted(order, key=self.queued.index), "a message has overtaken another"


async def _live(path: Path, seed: int, steps: int) -> None:
    async with ClockWorld.open(path) as world:
        life = Life(world, seed)
        await world.schedule("cron", "*/2 * * * *")
        for _ in range(steps):
            await life.go_on()
        await world.live(HOUR_MS, step_ms=30 * SECOND_MS)
        await life.look_at_ticks()
        life.check()


@pytest.mark.parametrize("seed", range(6))
async def test_no_random_jumps_change_a_delay_an_order_or_fire_twice(tmp_path: Path, seed: int) -> None:
    await _live(tmp_path / "broker.db", seed, 40)


@pytest.mark.release
@pytest.mark.parametrize("seed", range(100, 300))
async def test_no_random_jumps_change_a_delay_an_order_or_fire_twice_in_long_lives(tmp_path: Path, seed: int) -> None:
    await _live(tmp_path / "broker.db", seed, 200)
