"""What the broker knows of its store: how large it was, when it was checked and copied, what retention removes next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path

import apsw
import pytest
from prometheus_client.parser import text_string_to_metric_families

from qtasks.broker.console.views import growth, metrics, system
from qtasks.broker.console.views.growth import bytes_per_day, reached_first
from qtasks.broker.core.values import DAY_MS, Retention
from qtasks.broker.loops.page_checker import PageChecker
from qtasks.broker.loops.pruner import Pruner
from qtasks.broker.loops.scrubber import Scrubber
from qtasks.broker.store.connection import connect
from qtasks.broker.store.integrity import backup_note
from qtasks.broker.store.integrity.backup_note import BackupNote
from qtasks.broker.store.verbs.upkeep import check_notes, removals, store_sizes
from qtasks.broker.store.verbs.upkeep.check_notes import Checked, StoreCheck
from qtasks.broker.store.verbs.upkeep.store_sizes import HOUR_MS, KEPT_HOURS, StoreSize
from qtasks.errors import StoreFull
from qtasks.protocol.messages import Response
from tests.support.api import Service
from tests.support.broker import START_MS, VirtualClock
from tests.support.view_caller import Console

pytestmark = pytest.mark.anyio
GONE = Response(status=489, headers=(("Upstash-NonRetryable-Error", "true"),))


@pytest.fixture
def db() -> Iterator[apsw.Connection]:
    connection = connect(":memory:")
    yield connection
    connection.close()


@pytest.fixture
async def stored(tmp_path: Path) -> AsyncIterator[Service]:
    """A broker whose database is a file."""
    made = await Service.open(str(tmp_path / "qtasks.db"))
    yield made
    await made.close()


# -- sizes


def test_the_size_is_kept_by_the_hour_for_a_month(db: apsw.Connection) -> None:
    for hour in range(KEPT_HOURS + 5):
        store_sizes.note(db, now_ms=START_MS + hour * HOUR_MS)
        store_sizes.note(db, now_ms=START_MS + hour * HOUR_MS + 60_000)
    sizes = store_sizes.series(db)
    assert len(sizes) == KEPT_HOURS
    assert sizes[-1] == (START_MS // HOUR_MS + KEPT_HOURS + 4, *store_sizes.current(db))


def test_sizes_of_a_clock_that_was_ahead_are_forgotten(db: apsw.Connection) -> None:
    store_sizes.note(db, now_ms=START_MS + 10 * DAY_MS)
    store_sizes.note(db, now_ms=START_MS)
    assert [size.hour for size in store_sizes.series(db)] == [START_MS // HOUR_MS]


class HurriedClock(VirtualClock):
    """A clock that moves to whatever is waited for, up to `end_ms`."""

    end_ms = START_MS

    async def wait(self, event: Awaitable[object], until_ms: int | None) -> None:
        asyncio.ensure_future(event).cancel()
        if until_ms is None or until_ms > self.end_ms:
            raise asyncio.CancelledError
        self.move_to(until_ms)


async def test_the_pruner_notes_the_size_once_an_hour(service: Service) -> None:
    clock, store = HurriedClock(), service.broker.store
    clock.end_ms = START_MS + 130 * 60_000
    with pytest.raises(asyncio.CancelledError):
        await Pruner(store, clock, Retention()).run()
    first = START_MS // HOUR_MS
    assert [size.hour for size in await store.read(store_sizes.series)] == [first, first + 1, first + 2]


def test_the_growth_is_that_of_the_last_week_and_needs_some_hours() -> None:
    sizes = [StoreSize(hour, 1_000 * hour, 0) for hour in range(400)]
    assert bytes_per_day(sizes) == 24_000
    assert bytes_per_day(sizes[:6]) is None
    assert bytes_per_day([StoreSize(0, 5_000_000, 0), *sizes[240:]]) == 24_000
    assert bytes_per_day([StoreSize(0, 9_000, 0), StoreSize(24, 1_000, 0)]) == -8_000


@pytest.mark.parametrize(
    ("per_day", "limit", "free", "what"),
    [
        (100, 10_000, None, ("limit", 90)),
        (100, 10_000, 2_000, ("disk", 25)),  # 500 of the file are free
        (100, 10_000, 50_000, ("limit", 90)),
        (100, None, 1_500, ("disk", 20)),
        (100, 500, 50_000, ("limit", 0)),
        (100, None, None, None),
        (1, 10_000, 50_000, None),  # in more than a year
        (0, 10_000, 50_000, None),
        (-5, 10_000, 50_000, None),
        (None, 10_000, 50_000, None),
    ],
)
def test_what_the_growth_reaches_first_is_told_with_its_day(
    per_day: int | None, limit: int | None, free: int | None, what: tuple[str, int] | None
) -> None:
    reached = reached_first(per_day, used=1_000, file=1_500, limit=limit, free=free, wall_ms=START_MS)
    assert reached == (None if what is None else {"what": what[0], "timeMs": START_MS + what[1] * DAY_MS})


# -- what retention removes


async def test_what_comes_of_age_is_counted_by_the_hour(service: Service) -> None:
    keep = Retention(delivered_ms=DAY_MS, failed_ms=2 * DAY_MS, max_bytes=None)
    for _ in range(3):
        await service.publish()
    await service.run()
    service.clock.advance(5 * HOUR_MS)
    service.answer(GONE)
    for _ in range(2):
        await service.publish()
    await service.run()

    async def forecast() -> tuple[dict[int, int], dict[int, int]]:
        hours = await service.broker.store.read(removals.forecast, keep, now_ms=service.clock.now_ms())
        assert len(hours) == removals.HOURS
        finished = {at: hour.finished for at, hour in enumerate(hours) if hour.finished}
        return finished, {at: hour.failed for at, hour in enumerate(hours) if hour.failed}

    assert await forecast() == ({19: 3}, {48: 2})
    service.clock.advance(30 * HOUR_MS)
    assert await forecast() == ({0: 3}, {18: 2})  # what is due already is in the first hour


async def test_the_view_tells_sizes_growth_and_removals_of_wall_time(service: Service) -> None:
    store, clock = service.broker.store, service.clock
    for _ in range(300):
        await store.write(store_sizes.note, now_ms=clock.now_ms())
        clock.advance(HOUR_MS)
    await service.publish(body=b"x" * 300_000)
    await service.run()
    seen = await Console(service).see(growth.show)
    sizes = seen["sizes"]
    assert (sizes["stepMs"], sizes["fromMs"]) == (3 * HOUR_MS, START_MS // HOUR_MS * HOUR_MS)
    assert len(sizes["used"]) == len(sizes["file"]) == 101
    assert sizes["used"][-1] == seen["usedBytes"] > sizes["used"][0] + 290_000
    assert seen["perDayBytes"] == (seen["usedBytes"] - sizes["used"][0]) * 24 // 167
    assert seen["full"] is None  # it is far ahead
    assert sum(seen["removals"]["finished"]) == 0  # it is kept for exactly as long as the forecast goes
    assert 300_000 < seen["removals"]["bytesEach"] < 400_000


# -- checks


async def test_checks_of_pages_and_messages_are_noted_when_they_have_ended(stored: Service) -> None:
    broker, clock = stored.broker, stored.clock
    checks = (await Console(stored).see(system.show))["checks"]
    assert [checks[name]["timeMs"] for name in ("pages", "messages")] == [None, None]
    await stored.publish()
    await PageChecker(broker.store, clock).run_once()
    clock.advance(1_000)
    await Scrubber(broker.store, clock, wake_deliverer=lambda: None).run_once()
    checks = (await Console(stored).see(system.show))["checks"]
    assert checks["pages"] == {"everyMs": 6 * HOUR_MS, "timeMs": START_MS, "damagedMs": None, "damaged": 0}
    assert checks["messages"] == {"everyMs": HOUR_MS, "timeMs": START_MS + 1_000, "damagedMs": None, "damaged": 0}


async def test_a_small_database_counts_as_checked_at_the_start(stored: Service) -> None:
    with pytest.raises(asyncio.CancelledError):
        await PageChecker(stored.broker.store, HurriedClock()).run()
    last = await stored.broker.store.read(check_notes.last)
    assert last == {"pages": StoreCheck(START_MS, None, 0)}


async def test_messages_that_were_set_aside_are_told_until_the_next_ones(stored: Service) -> None:
    await stored.publish()
    store, clock = stored.broker.store, stored.clock
    scrubber = Scrubber(store, clock, wake_deliverer=lambda: None)
    await store.write(_damage)
    await scrubber.run_once()
    clock.advance(HOUR_MS)
    await scrubber.run_once()
    check = (await store.read(check_notes.last))[Checked.MESSAGES]
    assert check == (START_MS + HOUR_MS, START_MS, 1)


def _damage(db: apsw.Connection) -> None:
    db.execute("UPDATE messages SET url = 'http://damaged.example/'")


async def test_a_database_in_memory_has_no_checks_and_no_backup(service: Service) -> None:
    seen = await Console(service).see(system.show)
    assert (seen["checks"], seen["backup"]) == ({}, None)


# -- the note of a backup


async def test_the_last_backup_is_told(stored: Service, tmp_path: Path) -> None:
    backup_note.write(str(tmp_path / "qtasks.db"), BackupNote(START_MS, 4_096, "/backups/<b>.db"))
    backup_note.write(str(tmp_path / "qtasks.db"), BackupNote(START_MS + 1, 8_192, "/backups/<b>.db"))
    seen = await Console(stored).see(system.show)
    assert seen["backup"] == {"timeMs": START_MS + 1, "bytes": 8_192, "target": "/backups/<b>.db"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"time_ms": "1", "bytes": 1, "target": ""}',
        b'{"time_ms": 99999999999999999999, "bytes": 1, "target": ""}',
        b'{"time_ms": 1, "bytes": -1, "target": ""}',
        b"[" * 9_000,
    ],
)
def test_a_note_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "qtasks.db.last-backup").write_bytes(content)
    assert backup_note.read(str(tmp_path / "qtasks.db")) is None


async def test_a_size_that_cannot_be_noted_is_noted_a_minute_later(service: Service) -> None:
    class Full:
        """A store that refuses the first note."""

        notes = 0

        async def write(self, verb: object, *arguments: object, now_ms: int) -> int:
            if verb is store_sizes.note:
                self.notes += 1
                if self.notes == 1:
                    raise StoreFull("the disk is full")
            return 0

    clock, store = HurriedClock(), Full()
    clock.end_ms = START_MS + 5 * 60_000
    with pytest.raises(asyncio.CancelledError):
        await Pruner(store, clock, Retention()).run()  # type: ignore[arg-type]
    assert store.notes == 2


async def test_a_monitoring_system_reads_the_size_and_the_times_for_its_alerts(stored: Service, tmp_path: Path) -> None:
    backup_note.write(str(tmp_path / "qtasks.db"), BackupNote(START_MS - 60_000, 4_096, "/backups/monday.db"))
    await PageChecker(stored.broker.store, stored.clock).run_once()
    text = await Console(stored).text(metrics.show)
    samples = {
        (sample.name, sample.labels.get("what")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    used, file = await stored.broker.store.read(store_sizes.current)
    assert (samples["qtasks_store_bytes", "used"], samples["qtasks_store_bytes", "file"]) == (used, file)
    assert samples["qtasks_last_check_timestamp_seconds", "pages"] == START_MS / 1000
    assert ("qtasks_last_check_timestamp_seconds", "messages") not in samples
    assert samples["qtasks_last_backup_timestamp_seconds", None] == START_MS / 1000 - 60
