"""The watch over the files of an open store: one that is removed, renamed or replaced makes the store fail."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from qtasks.broker.store.file_watch import PERIOD_MS, FileId, FileWatch, file_id
from qtasks.broker.store.integrity import page_check
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
    watching = asyncio.create_task(watch.run(clock, store.fail, store._check_foreign_write))
    async with asyncio.timeout(PATIENCE_S):
        while looks < 5:
            await store.accept([publication(clock.now_ms())], now_ms=START_MS)
            store._commits.shortens_log = True
            assert store._commits._checkpoint() is None
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


async def looked(store: SqliteStore, clock: VirtualClock) -> str | None:
    """The failure of the store after the watch has looked several times."""
    for _ in range(20):
        clock.advance(PERIOD_MS)
        await store.read(nothing)
        await asyncio.sleep(0.001 if store.failure is None else 0)
    return store.failure


def nothing(_: apsw.Connection) -> None:
    """A read that needs no page."""


def in_another_process(code: str, *arguments: str | Path) -> None:
    """Run Python code there: a process that closes a database of its own ends the locks that it has on it."""
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True)


async def test_a_database_that_is_written_in_its_place_is_noticed(tmp_path: Path) -> None:
    clock = VirtualClock()
    store, _ = await SqliteStore.open(str(tmp_path / "tasks.db"), clock)
    await store.accept([publication(1)], now_ms=START_MS)
    assert await looked(store, clock) is None
    overwrite = "import sys; file = open(sys.argv[1], 'r+b'); file.seek(4096); file.write(bytes(8 * 4096))"
    in_another_process(overwrite, tmp_path / "tasks.db")
    failure = await looked(store, clock)
    assert failure is not None
    assert failure.startswith("tasks.db is damaged: another program wrote into it while the broker used it; ")
    await store.close()


async def test_a_database_that_is_emptied_is_noticed_and_the_log_stays_for_it(tmp_path: Path) -> None:
    clock = VirtualClock()
    store, _ = await SqliteStore.open(str(tmp_path / "tasks.db"), clock)
    await store.accept([publication(1)], now_ms=START_MS)
    backup = shutil.copy(tmp_path / "tasks.db", tmp_path / "before")
    os.truncate(tmp_path / "tasks.db", 0)
    failure = await looked(store, clock)
    assert failure is not None
    assert failure.startswith("tasks.db was emptied while the broker used it")
    await store.close()
    with pytest.raises(StoreError, match="is missing or empty, but its write-ahead log"):
        await SqliteStore.open(str(tmp_path / "tasks.db"), clock)
    in_another_process("import shutil, sys; shutil.copyfile(*sys.argv[1:])", backup, tmp_path / "tasks.db")
    again, recovery = await SqliteStore.open(str(tmp_path / "tasks.db"), clock)
    assert recovery.waiting == 1
    await again.close()


async def test_a_log_that_is_emptied_is_noticed_and_its_hole_destroys_no_page_of_the_database(tmp_path: Path) -> None:
    clock = VirtualClock()
    store, _ = await SqliteStore.open(str(tmp_path / "tasks.db"), clock)
    await store.accept([publication(1)], now_ms=START_MS)
    os.truncate(tmp_path / "tasks.db-wal", 0)
    await store.accept([publication(2)], now_ms=START_MS)
    failure = await looked(store, clock)
    assert failure is not None
    assert failure.startswith("tasks.db-wal was emptied or overwritten while the broker used it")
    await store.close()
    assert pages_are_sound(tmp_path / "tasks.db")
    with pytest.raises(StoreError, match="write-ahead log is damaged in its header"):
        await SqliteStore.open(str(tmp_path / "tasks.db"), clock)


def pages_are_sound(path: Path) -> bool:
    """True if the database is sound without its log."""
    db = apsw.Connection(str(shutil.copy(path, path.with_name("alone"))))
    findings = page_check.page_findings(db)
    db.close()
    return not findings


async def test_other_programs_that_use_the_database_as_sqlite_does_are_no_damage(tmp_path: Path) -> None:
    clock = VirtualClock()
    path = tmp_path / "tasks.db"
    store, _ = await SqliteStore.open(str(path), clock)
    code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], isolation_level=None).execute(sys.argv[2]).fetchall()"
    for number, statement in enumerate(["PRAGMA wal_checkpoint(TRUNCATE)", "VACUUM", "PRAGMA wal_checkpoint"]):
        await store.accept([publication(number)], now_ms=START_MS)
        in_another_process(code, path, statement)
        os.utime(path)
        assert await looked(store, clock) is None
    await store.accept([publication(9)], now_ms=START_MS)
    await store.close()
