"""The loop that counts the log for the console: it sleeps, it makes way for others, and it mends its tables."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import apsw
import pytest

from qtasks.broker.loops import indexer
from qtasks.broker.loops.indexer import Indexer
from qtasks.broker.store.sqlite import SqliteStore
from qtasks.broker.store.verbs.insight import index
from qtasks.errors import StoreError
from tests.support.broker import VirtualClock, publication
from tests.support.insight import add_account, counted

pytestmark = pytest.mark.anyio


class TimedClock(VirtualClock):
    """A virtual clock on which each reading of the monotonic time takes a while, as the work between two does."""

    step_s = 0.0
    _passed_s = 0.0

    def monotonic(self) -> float:
        self._passed_s += self.step_s
        return self._passed_s


class Running:
    """The loop, running in a store. `slices` has the number of entries that each slice was to count at most."""

    def __init__(self, store: SqliteStore, clock: TimedClock) -> None:
        self.store = store
        self.clock = clock
        self.slices: list[int] = []
        self.counted_last: int | None = None
        self.number = 0
        self.task = asyncio.create_task(Indexer(store, clock).run())

    async def accept(self, count: int) -> None:
        made = [publication(self.number + number, now_ms=self.clock.now_ms()) for number in range(1, count + 1)]
        self.number += count
        await self.store.accept(made, now_ms=self.clock.now_ms())

    async def until_counted(self, waiting: int) -> None:
        """Let time pass until so many messages are counted."""
        async with asyncio.timeout(10):
            while (await self.store.read(counted))["waiting"] != waiting:
                self.clock.advance(50)

    async def until_asleep(self) -> None:
        """Let time pass until a slice has found nothing to count."""
        async with asyncio.timeout(10):
            while self.counted_last != 0:
                self.clock.advance(50)
                await self.store.read(counted)

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture(params=["file", "memory"])
async def running(
    request: pytest.FixtureRequest, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Running]:
    clock = TimedClock()
    store, _ = await SqliteStore.open(":memory:" if request.param == "memory" else str(tmp_path / "a.db"), clock)
    await store.write(add_account)
    loop = Running(store, clock)
    real = index.count_log

    def count_log(db: apsw.Connection, *, now_ms: int, most: int) -> index.Counted:
        loop.slices.append(most)
        progress = real(db, now_ms=now_ms, most=most)
        loop.counted_last = progress.counted
        return progress

    monkeypatch.setattr(index, "count_log", count_log)
    yield loop
    await loop.end()
    await store.close()


async def test_the_loop_counts_what_is_written_and_sleeps_while_nothing_is(running: Running) -> None:
    await running.accept(3)
    await running.until_counted(3)
    await running.until_asleep()
    asleep = len(running.slices)
    for _ in range(50):
        running.clock.advance(60_000)
        await running.store.read(counted)
    assert len(running.slices) == asleep
    await running.accept(2)
    await running.until_counted(5)
    assert asleep < len(running.slices) <= asleep + 4


async def test_slices_become_smaller_while_they_take_long(running: Running) -> None:
    await running.accept(100)
    running.clock.step_s = indexer.SLICE_S * 2
    await running.accept(100)
    await running.until_counted(200)
    assert min(running.slices) < running.slices[0]
    assert min(running.slices) >= indexer.FEWEST


async def test_missing_tables_are_made_again(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    await running.accept(3)
    await running.until_counted(3)

    def drop(db: apsw.Connection) -> None:
        db.execute("DROP TRIGGER insight_dead_letter_gone")
        db.execute("DROP TABLE insight_destinations")

    await running.store.write(drop)
    await running.accept(2)
    await running.until_counted(5)
    assert "the figures of the console are damaged, and counted again from the log" in caplog.text


async def test_a_message_whose_destination_is_missing_is_counted_again(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    await running.accept(3)
    await running.until_counted(3)

    def lose_and_go_on(db: apsw.Connection) -> None:
        db.execute("DELETE FROM insight_destinations")
        db.execute(
            "INSERT INTO log (seq, account, time_ms, state) SELECT seq, account, ?, 'ACTIVE' FROM messages LIMIT 1",
            (running.clock.now_ms(),),
        )

    await running.store.write(lose_and_go_on)
    await running.until_counted(2)
    assert "the figures of the console are damaged, and counted again from the log" in caplog.text


async def test_the_loop_goes_on_after_whatever_goes_wrong(
    running: Running, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = index.count_log

    def failing(db: apsw.Connection, **kwargs: Any) -> index.Counted:
        if not caplog.records:
            raise StoreError("no space")
        if len(caplog.records) == 1:
            raise RuntimeError("a bug")
        return real(db, **kwargs)

    monkeypatch.setattr(index, "count_log", failing)
    while len(caplog.records) < 2:
        await running.accept(1)
        running.clock.advance(indexer.LOOK_EVERY_MS)
    await running.until_counted(running.number)
    assert [record.getMessage() for record in caplog.records] == [
        "cannot count the log: no space",
        "cannot count the log: a bug",
    ]


async def test_a_view_waits_only_so_long_for_what_is_not_counted(running: Running) -> None:
    await running.end()
    await running.accept(500)
    running.clock.step_s = indexer.VIEW_S / 4
    await Indexer(running.store, running.clock).catch_up()
    assert 0 < (await running.store.read(counted))["waiting"] < 500
    running.clock.step_s = 0.0
    await Indexer(running.store, running.clock).catch_up()
    assert (await running.store.read(counted))["waiting"] == 500
