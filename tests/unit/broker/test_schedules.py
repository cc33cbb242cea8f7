"""Schedules: stored, shown, fired once per tick even if the clock jumps (docs/protocol.md 2.7, 5.8)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from qtasks.broker.loops.scheduler import plan
from qtasks.broker.store.verbs.schedules import due_schedules
from qtasks.protocol import cron
from qtasks.protocol.messages import PublishOptions, Schedule
from tests.support.api import HOOK, Service, header
from tests.support.broker import START_MS

pytestmark = pytest.mark.anyio

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS


async def create(service: Service, destination: str = HOOK, body: str = "", **headers: str) -> str:
    lines = {f"Upstash-{name.replace('_', '-')}": value for name, value in {"Cron": "* * * * *", **headers}.items()}
    answered = await service.call("POST", f"/v2/schedules/{destination}", lines, body)
    assert answered.status == 200, answered.body
    return str(answered.json["scheduleId"])


# -- kept and shown


async def test_a_schedule_is_shown_with_everything_it_was_made_with(service: Service) -> None:
    """docs/protocol.md B20."""
    lines = {
        "Upstash-Cron": "*/10 * * * * ",
        "Upstash-Schedule-Id": "mine",
        "Upstash-Delay": "10s",
        "Upstash-Queue-Name": "q",
        "Upstash-Retries": "5",
        "Upstash-Retry-Delay": "1000",
        "Upstash-Timeout": "30s",
        "Upstash-Callback": "https://cb.example/?a=b",
        "Upstash-Callback-Forward-X": "1",
        "Upstash-Failure-Callback": "https://fcb.example/",
        "Upstash-Label": "a,b",
        "Upstash-Flow-Control-Key": "k",
        "Upstash-Flow-Control-Value": "parallelism=2",
        "Upstash-Forward-Test-Header": "test-value",
        "Upstash-Forward-Bypass-Tunnel-Reminder": "client-test",
        "Content-Type": "application/json",
    }
    answered = await service.call("POST", f"/v2/schedules/{HOOK}", lines, '{"a":1}')
    assert answered.json == {"scheduleId": "mine"}
    shown = await service.get("/v2/schedules/mine")
    assert shown == {
        "scheduleId": "mine",
        "destination": HOOK,
        "cron": "*/10 * * * *",
        "method": "POST",
        "createdAt": START_MS,
        "isPaused": False,
        "retries": 5,
        "body": '{"a":1}',
        "header": {
            "Bypass-Tunnel-Reminder": ["client-test"],
            "Content-Type": ["application/json"],
            "Test-Header": ["test-value"],
        },
        "delay": 10,
        "timeout": 30,
        "retryDelayExpression": "1000",
        "callback": "https://cb.example/?a=b",
        "callbackHeader": {"X": ["1"]},
        "failureCallback": "https://fcb.example/",
        "queueName": "q",
        "callerIP": "203.0.113.7",
        "callerIp": "203.0.113.7",
        "label": "a",
        "labels": ["a", "b"],
        "flowControlKey": "k",
        "parallelism": 2,
        "period": 1,
        "nextScheduleTime": START_MS + 10 * MINUTE_MS,
    }
    assert await service.get("/v2/schedules") == [shown]


async def test_a_schedule_is_paused_resumed_and_deleted(service: Service) -> None:
    """docs/protocol.md B19; docs/compatibility.md A22, A31."""
    schedule = await create(service)
    assert schedule.startswith("scd_")
    for method in ("PATCH", "POST"):
        for verb, paused in (("pause", True), ("pause", True), ("resume", False), ("resume", False)):
            assert (await service.call(method, f"/v2/schedules/{schedule}/{verb}")).status == 200
            assert (await service.get(f"/v2/schedules/{schedule}"))["isPaused"] is paused
    assert (await service.call("DELETE", f"/v2/schedules/{schedule}")).status == 200
    for method, path in (("GET", ""), ("DELETE", ""), ("PATCH", "/pause"), ("POST", "/resume")):
        assert (await service.call(method, f"/v2/schedules/{schedule}{path}")).status == 404


async def test_an_overwrite_replaces_all_but_pause_and_creation(service: Service) -> None:
    """docs/protocol.md B21; docs/compatibility.md A18."""
    await create(service, body="x", Schedule_Id="s", Callback="http://c.example/", Retries="9")
    await service.call("PATCH", "/v2/schedules/s/pause")
    service.clock.advance(MINUTE_MS)
    await create(service, "http://other.example/", Schedule_Id="s", Cron="0 0 * * *")
    [shown] = await service.get("/v2/schedules")
    assert shown["destination"] == "http://other.example/"
    assert (shown["createdAt"], shown["isPaused"], shown["retries"]) == (START_MS, True, 3)
    assert not {"body", "callback"} & set(shown)
    assert shown["nextScheduleTime"] == START_MS + 16 * HOUR_MS


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ({}, "Invalid cron expression empty spec string"),
        ({"Upstash-Cron": "* * * *"}, "expected exactly 5 fields"),
        ({"Upstash-Cron": "61 * * * *"}, "^^"),
        ({"Upstash-Cron": "0 0 30 2 *"}, "never a day 30 in FEB"),
        ({"Upstash-Cron": "CRON_TZ=Nowhere/Land * * * * *"}, "unknown time zone"),
        ({"Upstash-Cron": "* * * * *", "Upstash-Schedule-Id": "a b"}, "schedule id"),
        ({"Upstash-Cron": "* * * * *", "Upstash-Queue-Name": "a b"}, "queue name"),
        ({"Upstash-Cron": "* * * * *", "Upstash-Callback": "http://169.254.169.254/"}, "169.254.169.254"),
    ],
)
async def test_a_bad_schedule_is_refused(service: Service, lines: dict[str, str], text: str) -> None:
    answered = await service.call("POST", f"/v2/schedules/{HOOK}", lines)
    assert answered.status == 400
    assert text in answered.error
    assert await service.get("/v2/schedules") == []


async def test_a_schedule_for_nobody_is_refused(service: Service) -> None:
    assert (await service.call("POST", "/v2/schedules/missing", {"Upstash-Cron": "* * * * *"})).status == 400


async def test_a_publish_with_a_cron_makes_a_schedule(service: Service) -> None:
    answered = await service.call("POST", f"/v2/publish/{HOOK}", {"Upstash-Cron": "* * * * *"}, "x")
    assert (answered.status, list(answered.json)) == (200, ["scheduleId"])
    by_query = await service.call("POST", f"/v2/publish/{HOOK}?upstash-cron=*%20*%20*%20*%20*")
    assert list(by_query.json) == ["scheduleId"]
    queued = await service.call("POST", f"/v2/enqueue/q/{HOOK}", {"Upstash-Cron": "* * * * *"})
    assert (await service.get(f"/v2/schedules/{queued.json['scheduleId']}"))["queueName"] == "q"
    assert await service.run() == []


# -- fired


async def test_a_schedule_for_a_queue_that_cannot_be_is_refused_and_poisons_no_list(service: Service) -> None:
    answered = await service.call("POST", f"/v2/enqueue/bad%20name/{HOOK}", {"Upstash-Cron": "* * * * *"})
    assert (answered.status, "invalid queue name" in answered.error) == (400, True)
    assert await service.get("/v2/schedules") == []


async def test_a_cron_is_asked_for_by_the_publish_and_not_by_its_destinations_query(service: Service) -> None:
    made = await service.post(f"/v2/publish/{HOOK}?a=1&upstash%2Dcron=0+*+*+*+*")
    assert (await service.get(f"/v2/schedules/{made['scheduleId']}"))["destination"] == f"{HOOK}?a=1"
    sent = await service.post(f"/v2/publish/{HOOK}?my-upstash-cron=1")
    assert sent["url"] == f"{HOOK}?my-upstash-cron=1"


async def test_a_run_is_a_message_of_the_schedule(service: Service) -> None:
    schedule = await create(service, body="tick", Forward_A="1", Label="l")
    assert await service.run() == []
    service.clock.advance(MINUTE_MS)
    service.answer(200, 500)
    [request] = await service.run()
    assert (request.body, header(request, "A"), header(request, "Upstash-Schedule-Id")) == (b"tick", "1", schedule)
    assert header(request, "Upstash-Caller-Ip") == "203.0.113.7"
    shown = await service.get(f"/v2/schedules/{schedule}")
    assert (shown["lastScheduleTime"], shown["nextScheduleTime"]) == (START_MS + MINUTE_MS, START_MS + 2 * MINUTE_MS)
    message_id = header(request, "Upstash-Message-Id")
    assert shown["lastScheduleStates"] == {message_id: "SUCCESS"}
    message = await service.get(f"/v2/messages/{message_id}")
    assert (message["scheduleId"], message["label"]) == (schedule, "l")
    assert [event.state for event in service.events if event.message.id == message_id] == [
        "CREATED",
        "ACTIVE",
        "DELIVERED",
    ]
    service.clock.advance(MINUTE_MS)
    await service.run()
    assert list((await service.get(f"/v2/schedules/{schedule}"))["lastScheduleStates"].values()) == ["IN_PROGRESS"]


async def test_a_failed_run_is_shown_as_failed_and_the_schedule_goes_on(service: Service) -> None:
    schedule = await create(service, Retries="0")
    service.answer(500)
    for _ in range(2):
        service.clock.advance(MINUTE_MS)
        await service.run()
    assert list((await service.get(f"/v2/schedules/{schedule}"))["lastScheduleStates"].values()) == ["FAIL"]
    assert len((await service.get(f"/v2/dlq?scheduleId={schedule}"))["messages"]) == 2


async def test_a_run_waits_its_delay_and_then_joins_its_queue(service: Service) -> None:
    await create(service, Queue_Name="q", Delay="10s", Cron="@hourly")
    service.clock.advance(HOUR_MS)
    assert await service.run() == []
    service.clock.advance(10_000)
    [request] = await service.run()
    assert (await service.get(f"/v2/messages/{header(request, 'Upstash-Message-Id')}"))["queueName"] == "q"


async def test_a_scheduled_enqueue_does_not_reset_the_parallelism_of_its_queue(service: Service) -> None:
    await service.call("POST", "/v2/queues", json_body={"queueName": "q", "parallelism": 5})
    await create(service, Queue_Name="q")
    service.clock.advance(MINUTE_MS)
    await service.run()
    assert (await service.get("/v2/queues/q"))["parallelism"] == 5


async def test_the_members_of_a_group_are_those_of_the_moment(service: Service) -> None:
    async def members(*urls: str) -> None:
        await service.call("DELETE", "/v2/topics/g")
        if urls:
            body = {"endpoints": [{"url": url} for url in urls]}
            await service.call("POST", "/v2/topics/g/endpoints", json_body=body)

    await members("http://a.example/")
    schedule = await create(service, "g", Schedule_Id="s")
    await members("http://b.example/", "http://c.example/")
    await service.call("PATCH", "/v2/topics/g", json_body={"headers": {"Upstash-Method": "PUT"}})
    service.clock.advance(MINUTE_MS)
    sent = await service.run()
    assert [(request.url, request.method) for request in sent] == [
        ("http://b.example/", "PUT"),
        ("http://c.example/", "PUT"),
    ]
    assert len((await service.get(f"/v2/schedules/{schedule}"))["lastScheduleStates"]) == 2
    await members()
    service.clock.advance(MINUTE_MS)
    assert await service.run() == []
    shown = await service.get(f"/v2/schedules/{schedule}")
    assert "no URL group named 'g'" in shown["error"]
    await members("http://d.example/")
    service.clock.advance(MINUTE_MS)
    assert len(await service.run()) == 1
    assert "error" not in await service.get(f"/v2/schedules/{schedule}")


async def test_runs_are_nobodys_duplicates(service: Service) -> None:
    await create(service, Deduplication_Id="x", Content_Based_Deduplication="true")
    for _ in range(2):
        service.clock.advance(MINUTE_MS)
        assert len(await service.run()) == 1


async def test_a_paused_schedule_collects_nothing(service: Service) -> None:
    schedule = await create(service)
    await service.call("PATCH", f"/v2/schedules/{schedule}/pause")
    service.clock.advance(10 * MINUTE_MS + 1)
    assert await service.run() == []
    assert (await service.get(f"/v2/schedules/{schedule}"))["nextScheduleTime"] == START_MS + 11 * MINUTE_MS
    await service.call("PATCH", f"/v2/schedules/{schedule}/resume")
    assert await service.run() == []
    service.clock.advance(MINUTE_MS)
    assert len(await service.run()) == 1


async def test_the_loop_waits_for_the_next_tick_and_for_a_new_schedule(service: Service) -> None:
    loop = asyncio.create_task(service.broker.scheduler.run())

    async def runs() -> int:
        for _ in range(50):
            await asyncio.sleep(0)
        return len((await service.get("/v2/events?state=CREATED"))["events"])

    await create(service)
    assert await runs() == 0
    for number in (1, 2):
        service.clock.advance(MINUTE_MS)
        assert await runs() == number
    loop.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await loop


async def test_a_schedule_with_a_damaged_row_does_not_keep_the_others_from_running(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """The row is found by its time, but its id is not text any more: no statement finds it by its id."""
    damaged = await create(service)
    await service.broker.store.write(
        lambda db: db.execute("UPDATE schedules SET id = CAST(x'6180' AS TEXT) WHERE id = ?", (damaged,)).fetchall()
    )
    sound = await create(service)
    for _ in range(3):
        service.clock.advance(MINUTE_MS)
        async with asyncio.timeout(10):
            assert await service.broker.scheduler.run_once() == 1
    assert (await service.get(f"/v2/schedules/{sound}"))["lastScheduleTime"] == service.clock.now_ms()
    service.clock.advance(1_000)
    async with asyncio.timeout(10):
        for _ in range(3):
            assert await service.broker.scheduler.run_once() == 0
    assert caplog.text.count("their rows are damaged") == 1


async def test_a_clock_that_goes_back_fires_nothing_again(service: Service) -> None:
    await create(service, Schedule_Id="s")
    for _ in range(5):
        service.clock.advance(MINUTE_MS)
        assert len(await service.run()) == 1
    service.clock.jump(-3 * MINUTE_MS)
    assert await service.run() == []
    await create(service, Schedule_Id="s")
    for _ in range(3):
        service.clock.advance(MINUTE_MS)
        assert await service.run() == []
    service.clock.advance(MINUTE_MS)
    assert len(await service.run()) == 1


async def test_runs_missed_while_the_broker_was_away_are_made_up_for_by_one(tmp_path: Path) -> None:
    service = await Service.open(str(tmp_path / "b.db"))
    schedule = await create(service, Cron="0 * * * *")
    await service.close()
    service.clock.advance(5 * HOUR_MS + 7)
    again = await Service.open(str(tmp_path / "b.db"), clock=service.clock)
    assert len(await again.run()) == 1
    assert await again.run() == []
    shown = await again.get(f"/v2/schedules/{schedule}")
    assert shown["lastScheduleTime"] == START_MS + 5 * HOUR_MS
    assert "runs were missed" in shown["error"]
    assert shown["error"].count("2027-01-15T") == 4
    await again.close()


# -- which tick


def scheduled(text: str, next_ms: int) -> Schedule:
    return Schedule(
        id="s",
        account=1,
        destination=HOOK,
        cron=text,
        options=PublishOptions(),
        body=b"",
        caller_ip="",
        created_ms=START_MS,
        next_ms=next_ms,
    )


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def test_a_tick_in_time_fires_and_nothing_was_missed() -> None:
    due = scheduled("0 9 * * *", at("2027-01-16T09:00"))
    firing = plan(due, at("2027-01-16T09:00") + 12)
    assert (firing.tick_ms, firing.missed, firing.error) == (due.next_ms, (), None)
    assert firing.next_ms == at("2027-01-17T09:00")


def test_a_run_older_than_a_day_is_not_made_up_for() -> None:
    weekly = scheduled("0 9 * * 1", at("2027-01-18T09:00"))
    assert plan(weekly, at("2027-01-19T09:00")).tick_ms == weekly.next_ms
    late = plan(weekly, at("2027-01-19T09:00") + 1)
    assert (late.tick_ms, late.missed, late.next_ms) == (None, (weekly.next_ms,), at("2027-01-25T09:00"))
    assert "2027-01-18T09:00:00Z" in (late.error or "")


def test_a_year_of_minutes_is_one_run_and_a_short_list() -> None:
    firing = plan(scheduled("* * * * *", START_MS), START_MS + 365 * DAY_MS)
    assert firing.tick_ms == START_MS + 365 * DAY_MS
    assert len(firing.missed) == 100
    assert len(firing.error or "") < 400


def test_an_interval_keeps_its_rhythm_through_an_absence() -> None:
    firing = plan(scheduled("@every 7h", START_MS), START_MS + 3 * DAY_MS)
    assert firing.tick_ms == START_MS + 70 * HOUR_MS
    assert firing.next_ms == START_MS + 77 * HOUR_MS


def test_an_interval_counts_no_ticks_of_years_one_by_one() -> None:
    """The clock of a machine without a battery may be wrong by years at the start."""
    firing = plan(scheduled("@every 1m", START_MS), START_MS + 3650 * DAY_MS + 7)
    assert firing.tick_ms == START_MS + 3650 * DAY_MS
    assert len(firing.missed) == 100
    every_week = plan(scheduled("@every 168h", START_MS), START_MS + 3650 * DAY_MS)
    assert every_week.next_ms == START_MS + 522 * 7 * DAY_MS
    assert plan(scheduled("@every 168h", START_MS), START_MS + 2 * DAY_MS).missed == (START_MS,)


async def test_a_refused_store_is_tried_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [RuntimeError("boom")]
    real = service.broker.store.read

    async def read(query: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if query is due_schedules and failures:
            raise failures.pop()
        return await real(query, *arguments, **named)

    monkeypatch.setattr(service.broker.store, "read", read)
    loop = asyncio.create_task(service.broker.scheduler.run())
    await create(service)
    for _ in range(3):
        for _ in range(50):
            await asyncio.sleep(0)
        service.clock.advance(MINUTE_MS)
    for _ in range(50):
        await asyncio.sleep(0)
    assert (await service.get("/v2/schedules"))[0]["lastScheduleTime"] > START_MS
    loop.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await loop


async def test_a_schedule_that_cannot_be_read_any_more_says_so_and_stops_no_other(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = await create(service, Cron="CRON_TZ=US/Pacific * * * * *")
    other = await create(service)
    real = cron.parse

    def parse(text: str) -> cron.Cron:
        if "US/Pacific" in text:
            raise ValueError("unknown time zone")
        return real(text)

    monkeypatch.setattr(cron, "parse", parse)
    service.clock.advance(MINUTE_MS)
    [request] = await service.run()
    assert header(request, "Upstash-Schedule-Id") == other
    assert (await service.get(f"/v2/schedules/{lost}"))["error"] == "it cannot run: unknown time zone"
    for verb in ("pause", "resume"):
        await service.post(f"/v2/schedules/{lost}/{verb}")
        assert (await service.get(f"/v2/schedules/{lost}"))["nextScheduleTime"] >= service.clock.now_ms()
