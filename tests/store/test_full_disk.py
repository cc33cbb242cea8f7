"""A full disk: nothing new is accepted, and what was accepted is finished, cancelled, deleted and pruned."""

from __future__ import annotations

import asyncio
import contextlib
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from qtasks.broker.core.rules import Evaluation, Trigger
from qtasks.broker.core.values import DAY_MS, Claim, DeadLetterCriteria, Retention, Rooms, Settlement
from qtasks.broker.store import ballast
from qtasks.broker.store.sqlite import SqliteStore
from qtasks.broker.store.verbs import cancel, dead_letters, queues, retention, settle
from qtasks.broker.store.verbs.reads import queries
from qtasks.errors import StoreError, StoreFull
from qtasks.protocol.messages import Response
from tests.support.api import HOOK, Service
from tests.support.broker import ACCOUNT, START_MS, VirtualClock, publication
from tests.support.full_disk import SmallDisk, small_disk

pytestmark = pytest.mark.anyio
NOW = START_MS
LARGE = bytes(100_000)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 160) as mounted:
        yield mounted


class Filled:
    """A store on a small disk. `accepted` holds the ids of all messages that it has accepted."""

    def __init__(self, store: SqliteStore, disk: SmallDisk) -> None:
        self.store = store
        self.disk = disk
        self.accepted: list[str] = []
        self.delivered: set[str] = set()

    async def accept(self, body: bytes = LARGE) -> None:
        new = publication(len(self.accepted), body=body)
        await self.store.accept([new], now_ms=NOW)
        self.accepted.append(new.message.id)

    async def accept_until_full(self, body: bytes = LARGE) -> None:
        with contextlib.suppress(StoreFull):
            while True:
                await self.accept(body)

    async def claim(self, limit: int) -> list[Claim]:
        return list((await self.store.claim(now_ms=NOW, limit=limit, rooms=Rooms(1000))).claims)

    async def end(self, claim: Claim, status: int = 200) -> None:
        trigger = Trigger.SUCCEED if status == 200 else Trigger.FAIL
        settlement = Settlement(claim, Response(status=status, body=b"answer"), Evaluation(trigger, "failed"))
        assert await self.store.write(settle.settle, settlement, now_ms=NOW) is not None
        self.delivered.add(claim.message.id)

    async def deliver_all(self) -> None:
        while claims := await self.claim(50):
            for claim in claims:
                await self.end(claim)


async def opened(disk: SmallDisk) -> Filled:
    store, _ = await SqliteStore.open(str(disk.folder / "store.db"), VirtualClock())
    return Filled(store, disk)


# -- the ballast


async def test_the_ballast_takes_real_room_and_goes_with_an_orderly_end(tmp_path: Path) -> None:
    store, _ = await SqliteStore.open(str(tmp_path / "store.db"), VirtualClock())
    found = (tmp_path / "store.db.ballast").stat()
    assert found.st_blocks * 512 >= ballast.BALLAST_BYTES
    assert stat.S_IMODE(found.st_mode) == 0o600
    await store.close()
    assert not (tmp_path / "store.db.ballast").exists()


async def test_a_folder_in_which_no_ballast_can_be_made_is_no_reason_to_refuse_messages(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "store.db.ballast").mkdir()
    store, _ = await SqliteStore.open(str(tmp_path / "store.db"), VirtualClock())
    await store.accept([publication(1)], now_ms=NOW)
    assert "no ballast" in caplog.text
    await store.close()


# -- a disk that another program has filled


@pytest.mark.parametrize("cycles", [3, pytest.param(50, marks=pytest.mark.release)])
async def test_on_a_full_disk_all_goes_on_but_new_messages_and_nothing_accepted_is_lost(
    disk: SmallDisk, cycles: int
) -> None:
    filled = await opened(disk)
    store = filled.store
    for cycle in range(cycles):
        for _ in range(40):
            await filled.accept(b"small")
        disk.fill(leave=cycle * 40_000 % 1_000_000)
        await filled.accept_until_full()
        assert store.shortage is not None
        first, second, *others = await filled.claim(30)
        await filled.end(first, status=500)
        await filled.end(second)
        waiting = filled.accepted[-1]
        assert (await store.write(cancel.cancel, ACCOUNT, [waiting], now_ms=NOW)).count == 1
        filled.delivered.add(waiting)
        await store.write(queues.upsert_queue, ACCOUNT, "q", parallelism=2, paused=True, now_ms=NOW)
        letters = await store.write(
            dead_letters.delete_dead_letters, ACCOUNT, DeadLetterCriteria(), cursor=None, limit=9
        )
        assert letters.count == 1
        for claim in others:
            await filled.end(claim)
        await filled.deliver_all()
        assert await store.write(retention.prune_messages, Retention(delivered_ms=0), now_ms=NOW + 1) > 0
        await store.look_for_room()
        with pytest.raises(StoreFull, match="MiB are free"):
            await filled.accept(b"small")
        disk.free()
        await store.look_for_room()
        assert not store.lacks_room.is_set()
        await filled.accept(b"small")
        await filled.deliver_all()
    assert sorted(filled.accepted) == sorted(filled.delivered)
    await store.close()


async def test_what_was_answered_as_accepted_is_there_after_a_crash_on_a_full_disk(disk: SmallDisk) -> None:
    filled = await opened(disk)
    disk.fill(leave=3_000_000)
    await filled.accept_until_full()
    assert len(filled.accepted) > 10
    copy = disk.folder.parent / "copy.db"
    for suffix in ("", "-wal"):  # what a process that dies now leaves
        copy.with_name(f"copy.db{suffix}").write_bytes((disk.folder / f"store.db{suffix}").read_bytes())
    again, recovery = await SqliteStore.open(str(copy), VirtualClock())
    assert recovery.waiting == len(filled.accepted)
    for message_id in filled.accepted:
        assert await again.read(queries.message, ACCOUNT, message_id) is not None
    await again.close()
    await filled.store.close()


async def test_a_start_on_a_full_disk_finishes_what_waits_with_the_ballast_of_the_process_before(
    disk: SmallDisk,
) -> None:
    filled = await opened(disk)
    await filled.accept()
    await filled.claim(1)
    await filled.store.close()
    with (disk.folder / "store.db.ballast").open("wb") as left:
        left.write(bytes(ballast.BALLAST_BYTES))
    disk.fill()
    filled.store, recovery = await SqliteStore.open(str(disk.folder / "store.db"), VirtualClock())
    assert recovery.interrupted == 1
    await filled.deliver_all()
    assert filled.delivered == {"msg_0"}
    await filled.store.close()


# -- a disk that the database has filled itself


async def test_a_disk_of_its_own_is_used_again_once_old_messages_have_gone(disk: SmallDisk) -> None:
    filled = await opened(disk)
    await filled.accept_until_full(bytes(1_000_000))
    assert len(filled.accepted) > 80
    await filled.deliver_all()
    later_ms = NOW + 8 * DAY_MS
    while await filled.store.write(retention.prune, Retention(), now_ms=later_ms):
        pass
    await filled.store.look_for_room()
    before = len(filled.accepted)
    await filled.accept_until_full(bytes(1_000_000))
    assert len(filled.accepted) - before > 30
    await filled.deliver_all()
    assert sorted(filled.accepted) == sorted(filled.delivered)
    await filled.store.close()


async def test_the_room_of_a_long_log_is_given_back_so_that_messages_are_accepted_again(disk: SmallDisk) -> None:
    filled = await opened(disk)
    large = [publication(1000 + n, body=bytes(1_000_000)) for n in range(59)]
    await filled.store.accept(large, now_ms=NOW)  # one transaction: a log of 59 MB
    await filled.store.write(retention.free_bytes)  # waits for the checkpoint
    disk.fill()
    await filled.accept_until_full()
    disk.free()
    assert disk.free_bytes < 2 * ballast.BALLAST_BYTES
    for _ in range(2):
        await filled.store.look_for_room()
    await filled.accept()
    assert (disk.folder / "store.db.ballast").stat().st_size == ballast.BALLAST_BYTES
    await filled.store.close()


# -- ticks and readiness


async def test_a_tick_that_finds_no_room_fires_once_when_there_is_room_again(disk: SmallDisk) -> None:
    service = await Service.open(str(disk.folder / "store.db"))
    made = await service.post(f"/v2/schedules/{HOOK}", {"Upstash-Cron": "* * * * *"})
    disk.fill()
    while (refused := await service.call("POST", f"/v2/publish/{HOOK}", body=LARGE)).status == 201:
        pass
    assert (refused.status, refused.headers.get("retry-after")) == (507, "5")
    service.clock.advance(60_000)
    for _ in range(3):
        with pytest.raises(StoreFull):
            await service.broker.scheduler.run_once()
    ready = await service.broker.ready()
    assert (ready.status, b"no space is left on the disk" in ready.body) == (503, True)
    disk.free()
    await service.broker.store.look_for_room()
    service.clock.advance(60_000)
    assert await service.broker.scheduler.run_once() == 1
    shown = await service.get(f"/v2/schedules/{made['scheduleId']}")
    assert "runs were missed" in shown["error"]
    assert (await service.broker.ready()).status == 200
    await service.close()


# -- files that cannot be written


async def sentence_of_start(path: Path) -> str:
    with pytest.raises(StoreError) as caught:
        await SqliteStore.open(str(path), VirtualClock())
    return caught.value.message


async def test_what_cannot_be_a_database_is_one_sentence_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    assert (await sentence_of_start(tmp_path)).endswith("it is a folder")
    assert (await sentence_of_start(tmp_path / "file" / "b.db")).endswith("a part of its path is a file, not a folder")
    (tmp_path / "b.db-wal").mkdir()
    assert "b.db" in await sentence_of_start(tmp_path / "b.db")


async def test_a_read_only_disk_is_one_sentence_at_the_start(disk: SmallDisk) -> None:
    filled = await opened(disk)
    await filled.store.close()
    disk.make_read_only()
    for name in ("store.db", "new.db", "folder/new.db"):
        assert (await sentence_of_start(disk.folder / name)).endswith("its file system is read-only"), name


async def test_a_start_on_a_full_disk_is_one_sentence(disk: SmallDisk) -> None:
    disk.fill()
    assert "no space is left on its disk" in await sentence_of_start(disk.folder / "store.db")


async def test_long_answers_do_not_use_up_the_room_that_the_other_messages_need_to_end(disk: SmallDisk) -> None:
    service = await Service.open(str(disk.folder / "store.db"))
    for _ in range(200):
        await service.post(f"/v2/publish/{HOOK}", {"Upstash-Retries": "0"})
    service.answer(Response(status=500, body=bytes(1_000_000)))
    disk.fill()
    while (await service.call("POST", f"/v2/publish/{HOOK}", {"Upstash-Retries": "0"}, LARGE)).status == 201:
        pass
    async with asyncio.timeout(30):
        count = await service.broker.deliverer.run_once()
    assert count >= 200
    assert await service.broker.store.read(lambda db: db.execute("SELECT count(*) FROM dead_letters").get) == count
    letters = (await service.get("/v2/dlq"))["messages"]
    assert {letter["responseStatus"] for letter in letters} == {500}
    assert all("cut: this is the beginning" in letter["responseBody"] for letter in letters)
    await service.close()
