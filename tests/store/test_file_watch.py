"""The watch over the files of an open store: one that is removed, renamed or replaced makes the store fail."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from qtasks.broker.store.file_watch import PERIOD_MS, FileId, FileWatch, file_id
from qtasks.broker.store.sqlite import SqliteStore
from qtasks.errors import StoreError
from tests.support.broker import START_MS, VirtualClock, publication

pytestmark = pytest.mark.anyio
PATIENCE_S = 10.0


def remove(file: Path) -> None:
    file.unlink()


def move(file: Path) -> None:
    file.rename(file.with_name("moved"))


def replace(file: Path) -> None:
    """As a program that restores a backup does."""
    copy = file.with_name("copy")
    shutil.copy(file, copy)
    copy.replace(file)


CHANGES: dict[Callable[[Path], None], str] = {
    remove: "was removed or renamed",
    move: "was removed or renamed",
    replace: "was replaced by another file",
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("ending", ["", "-wal"])
async def test_what_is_committed_into_a_file_that_lost_its_name_is_not_accepted(
    tmp_path: Path, ending: str, change: Callable[[Path], None]
) -> None:
    """The clock stands still, so the watch does not look: each commit does."""
    store, _ = await SqliteStore.open(str(tmp_path / "tasks.db"), VirtualClock())
    await store.accept([publication(1)], now_ms=START_MS)
    change(tmp_path / f"tasks.db{ending}")
    answers = await asyncio.gather(
        *(store.accept([publication(n)], now_ms=START_MS) for n in (2, 3)), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [StoreError, StoreError]
    assert store.broken.is_set()
    with pytest.raises(StoreError, match=f"tasks.db{ending} {CHANGES[change]}"):
        await store.accept([publication(4)], now_ms=START_MS)
    await store.close()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("ending", ["", "-wal", "-shm", ".lock"])
async def test_a_change_is_noticed_within_half_a_second_also_by_an_idle_store(
    tmp_path: Path, ending: str, change: Callable[[Path], None]
) -> None:
    clock = VirtualClock()
    store, _ = await SqliteStore.open(str(tmp_path / "tasks.db"), clock)
    change(tmp_path / f"tasks.db{ending}")
    async with asyncio.timeout(PATIENCE_S):
        while not store.broken.is_set():
            clock.advance(PERIOD_MS)
            await asyncio.sleep(0)
    assert store.failure is not None
    assert store.failure.startswith(f"tasks.db{ending} {CHANGES[change]}")
    await store.close()


def identity(path: str) -> FileId:
    return file_id(Path(path).stat())


async def test_files_that_nobody_touches_are_not_reported(tmp_path: Path) -> None:
    clock = VirtualClock()
    path = str(tmp_path / "tasks.db")
    store, _ = await SqliteStore.open(path, clock)
    looks = 0

    class CountingWatch(FileWatch):
        def change(self) -> str | None:
            nonlocal looks
            looks += 1
            return super().change()

    watch = CountingWatch(path, {path: identity(path)})
    watching = asyncio.create_task(watch.run(clock, store.fail))
    async with asyncio.timeout(PATIENCE_S):
        while looks < 5:
            await store.accept([publication(clock.now_ms())], now_ms=START_MS)
            store._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            clock.advance(PERIOD_MS)
    watch.end()
    clock.advance(PERIOD_MS)
    await watching
    assert not store.broken.is_set()
    await store.close()


@pytest.mark.parametrize("change", CHANGES)
async def test_what_was_accepted_before_the_log_lost_its_name_is_saved_at_the_end(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = str(tmp_path / "tasks.db")
    store, _ = await SqliteStore.open(path, VirtualClock())
    for number in range(100):
        await store.accept([publication(number)], now_ms=START_MS)
    change(tmp_path / "tasks.db-wal")
    with pytest.raises(StoreError):
        await store.accept([publication(100)], now_ms=START_MS)
    await store.close()
    again, recovery = await SqliteStore.open(path, VirtualClock())
    assert recovery.waiting >= 100
    await again.close()


async def test_a_store_reads_its_own_file_after_the_process_has_changed_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    clock = VirtualClock()
    store, _ = await SqliteStore.open("tasks.db", clock)
    monkeypatch.chdir(tmp_path / "other")
    await store.accept([publication(1)], now_ms=START_MS)
    assert await store.read(lambda db: db.execute("SELECT count(*) FROM messages").get) == 1
    await store.close()
