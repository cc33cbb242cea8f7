"""What the API answers about messages of which the store no longer has what was accepted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from qtasks.broker.loops.scrubber import INTERVAL_MS, PAUSE_MS, Scrubber
from qtasks.broker.store.interface import Store
from qtasks.broker.store.verbs.damage import scrub
from qtasks.broker.store.verbs.stored import Fault
from qtasks.errors import StoreError
from tests.support import damage
from tests.support.api import HOOK, Service

pytestmark = pytest.mark.anyio

END = "http://127.0.0.1:8000/end"
FOREVER_MS = 7_258_118_400_000
"""In the year 2200."""


def put(column: str, value: damage.Value, *, seq: int = 1) -> Callable[[apsw.Connection], None]:
    """A verb that damages one value."""
    return lambda db: damage.put(db, column, value, seq=seq, table="stored_bodies" if column == "body" else "messages")


async def hurt(service: Service, column: str, value: damage.Value, *, seq: int = 1) -> None:
    await service.broker.store.write(put(column, value, seq=seq))


async def letters(service: Service) -> list[dict[str, Any]]:
    page = await service.get("/v2/dlq")
    listed: list[dict[str, Any]] = page["messages"]
    return listed


@contextlib.asynccontextmanager
async def opened(**settings: Any) -> AsyncIterator[Service]:
    service = await Service.open(**settings)
    service.answer(200)
    try:
        yield service
    finally:
        await service.close()


CELLS: list[tuple[str, damage.Value]] = [
    ("method", b"PUST"),
    ("headers", b"[["),
    ("headers", b'[["a",1]]'),
    ("options", b'[["Upstash-Retries","many"]]'),
    ("options", b"\xff"),
    ("url", None),
    ("url", b"\xc3("),
    ("id", None),
    ("account", 7),
    ("timeout_ms", None),
    ("timeout_ms", -1),
    ("created_ms", "x"),
    ("created_ms", 1 << 62),
    ("not_before_ms", None),
    ("checksum", None),
    ("body", None),
    ("body", b""),
    ("queue", b"\xff"),
    ("schedule_id", b""),
    ("stage", 7),
    ("stage", 10),
    ("due_ms", FOREVER_MS),
    ("due_ms", None),
    ("retried", -1),
    ("claim_token", b""),
    ("finished_ms", 5),
    ("lot", None),
    ("state_sum", None),
]


@pytest.mark.parametrize(("column", "value"), CELLS, ids=lambda cell: repr(cell))
async def test_every_list_can_be_read_before_and_after_the_damage_is_found(column: str, value: damage.Value) -> None:
    async with opened() as service:
        damaged, sound = [await service.publish(body="{}", Callback=END, Label="night") for _ in range(2)]
        await hurt(service, column, value)
        for _ in range(2):
            for target in ("/v2/dlq", "/v2/logs", "/v2/events?label=night", f"/v2/logs?messageId={sound}"):
                await service.get(target)
            assert (await service.call("GET", f"/v2/messages/{damaged}")).status in (200, 404)
            assert f"{sound}" not in str(await letters(service))
            await service.run()
            await service.broker.scrubber.run_once()
        sent = [request for request in service.transport.sent if request.url != END]
        assert [(request.method, request.url, request.body) for request in sent] == [("POST", HOOK, b"{}")]
        [letter] = await letters(service)
        assert letter["error"].startswith("corrupt")
        assert (await service.call("DELETE", f"/v2/dlq/{letter['dlqId']}")).status == 200
        assert await letters(service) == []


async def test_a_dead_letter_whose_content_is_damaged_is_not_sent_again() -> None:
    async with opened() as service:
        await service.publish(body="pay 10")
        await hurt(service, "body", b"pay 90")
        await service.run()
        [letter] = await letters(service)
        refused = await service.call("POST", f"/v2/dlq/retry/{letter['dlqId']}")
        assert refused.status == 409
        assert "publish the message again" in refused.error
        assert (await service.post("/v2/dlq/retry"))["responses"] == []
        assert (await service.post(f"/v2/dlq/retry?dlqIds={letter['dlqId']}"))["responses"] == []
        assert await service.run() == []


async def test_a_dead_letter_that_was_damaged_after_it_had_failed_is_not_sent_again_either() -> None:
    async with opened() as service:
        service.answer(500)
        await service.publish(body="pay 10", Retries="0")
        await service.run()
        await hurt(service, "body", b"pay 90")
        [letter] = await letters(service)
        assert "it failed with: the destination answered 500" in letter["error"]
        assert (await service.call("POST", f"/v2/dlq/retry/{letter['dlqId']}")).status == 409


async def test_a_dead_letter_whose_content_is_sound_can_be_sent_again() -> None:
    async with opened() as service:
        await service.publish(body="pay 10")
        await hurt(service, "due_ms", FOREVER_MS)
        assert await service.run() == []
        assert await service.broker.scrubber.run_once() == 1
        [letter] = await letters(service)
        assert letter["error"] == Fault.STATE
        await service.post(f"/v2/dlq/retry/{letter['dlqId']}")
        assert [request.body for request in await service.run()] == [b"pay 10"]


async def test_a_message_without_its_options_shows_nothing_that_they_may_have_hidden() -> None:
    async with opened() as service:
        await service.publish(body="secret", Redact_Fields="body", Forward_Authorization="Bearer secret")
        await hurt(service, "options", b"[[")
        await service.run()
        assert "secret" not in str(await letters(service)) + str(await service.get("/v2/logs"))


async def test_a_damaged_message_says_so_while_it_waits() -> None:
    async with opened() as service:
        message_id = await service.publish(Delay="1h")
        await hurt(service, "timeout_ms", 1)
        shown = await service.get(f"/v2/messages/{message_id}")
        assert shown["lastError"].startswith("corrupt")
        assert "waitsFor" not in shown


async def test_a_damaged_schedule_says_so_and_the_others_run() -> None:
    async with opened() as service:
        for name in ("one", "other"):
            lines = {"Upstash-Cron": "* * * * *", "Upstash-Schedule-Id": name, "Upstash-Retries": "1"}
            await service.post(f"/v2/schedules/{HOOK}", lines, name)
        await service.broker.store.write(
            lambda db: db.execute("UPDATE schedules SET options = '[[' WHERE id = 'one'").fetchall()
        )
        service.clock.advance(60_000)
        assert [request.body for request in await service.run()] == [b"other"]
        [one, _] = await service.get("/v2/schedules")
        assert "is damaged: create it again" in one["error"]


# -- the loop


class Failing:
    """A store whose first two reads fail; `walked` counts its reads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._errors: list[Exception] = [StoreError("the disk is busy"), RuntimeError("a fault of our own")]
        self.walked = asyncio.Semaphore(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def read(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        self.walked.release()
        if self._errors:
            raise self._errors.pop(0)
        return await self._store.read(query, *args, **kwargs)


async def test_the_walk_makes_way_between_pieces_and_wakes_what_waits_behind_a_damaged_message() -> None:
    async with opened() as service:
        for number in range(scrub.ROWS + 2):
            await service.post(f"/v2/enqueue/q/{HOOK}", body=str(number))
        await hurt(service, "due_ms", FOREVER_MS)
        await hurt(service, "queue", b"\xffq", seq=scrub.ROWS + 1)
        woken: list[None] = []
        scrubber = Scrubber(service.broker.store, service.clock, wake_deliverer=lambda: woken.append(None))
        walk = asyncio.create_task(scrubber.run_once())
        while not walk.done():
            await asyncio.sleep(0)
            service.clock.advance(PAUSE_MS)
        assert (await walk, len(woken)) == (2, 2)
        assert [request.body for request in await service.run()] == [
            str(number).encode() for number in range(1, scrub.ROWS + 2) if number != scrub.ROWS
        ]


async def test_the_walk_begins_again_every_hour_whatever_went_wrong_before(caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as service:
        store = service.broker.store
        failing = Failing(store)
        scrubber = Scrubber(failing, service.clock, wake_deliverer=service.broker.deliverer.wake)
        loop = asyncio.create_task(scrubber.run())
        await service.publish(Delay="1d")
        await hurt(service, "due_ms", FOREVER_MS)
        for _ in range(2):
            await failing.walked.acquire()
            assert await letters(service) == []
            service.clock.advance(INTERVAL_MS)
        await failing.walked.acquire()
        listed = [await letters(service) for _ in range(5)]  # behind what the walk writes
        assert listed[-1][0]["error"] == Fault.STATE
        loop.cancel()
    assert [record.getMessage() for record in caplog.records][:2] == [
        "cannot look for damaged messages: the disk is busy",
        "cannot look for damaged messages: a fault of our own",
    ]


async def test_damage_in_a_file_is_found_by_the_next_start(tmp_path: Path) -> None:
    path = str(tmp_path / "broker.db")
    async with opened(path=path) as service:
        for number in range(4):
            await service.post(f"/v2/enqueue/q/{HOOK}", body=str(number))
        batch = await service.broker.deliverer.claim(1)
        assert [claim.seq for claim in batch.claims] == [1]
    db = apsw.Connection(path)
    damage.put(db, "queue", b"\xff", seq=1)
    damage.put(db, "stage", 5, seq=3)
    db.close()
    async with opened(path=path) as service:
        sent = [request.body for request in await service.run()]
        assert await service.broker.scrubber.run_once() == 1
        assert sent + [request.body for request in await service.run()] == [b"1", b"3"]
        assert [letter["error"] for letter in await letters(service)] == [Fault.CONTENT, Fault.STATE]
