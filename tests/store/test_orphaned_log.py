"""A log whose database was removed, renamed or replaced: it is neither deleted nor applied to another database."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from qtasks.broker.store.sqlite import SqliteStore
from qtasks.errors import StoreError
from tests.support.broker import START_MS, VirtualClock, publication

pytestmark = pytest.mark.anyio


async def store_with(path: Path, *numbers: int) -> SqliteStore:
    store, _ = await SqliteStore.open(str(path), VirtualClock())
    for number in numbers:
        await store.accept([publication(number)], now_ms=START_MS)
    return store


async def content(path: Path) -> set[str]:
    """The ids of the messages that a start finds. The file must be sound."""
    store = await store_with(path)
    assert await store.read(lambda db: db.execute("PRAGMA integrity_check").get) == "ok"
    found = await store.read(lambda db: {str(row[0]) for row in db.execute("SELECT id FROM messages")})
    await store.close()
    return found


def aside(folder: Path) -> list[Path]:
    return list(folder.glob("tasks.db-wal.of-*"))


async def test_a_log_without_its_database_is_not_deleted(tmp_path: Path) -> None:
    """SQLite deletes a log that it finds beside an empty database."""
    store = await store_with(tmp_path / "tasks.db", 1)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(tmp_path / "tasks.db-wal", other / "tasks.db-wal")
    await store.close()
    for _ in range(2):
        with pytest.raises(StoreError, match="is missing or empty, but its write-ahead log"):
            await SqliteStore.open(str(other / "tasks.db"), VirtualClock())
    assert [file.name for file in other.iterdir()] == ["tasks.db-wal"]


async def test_a_backup_that_is_restored_under_a_running_broker_is_not_mixed_with_its_log(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    await (await store_with(path, 1)).close()
    shutil.copy(path, tmp_path / "backup.db")
    store = await store_with(path, *range(2, 100))
    store._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)  # the rest of the log does not fit the backup
    for number in range(100, 120):
        await store.accept([publication(number)], now_ms=START_MS)
    path.rename(tmp_path / "before.db")
    (tmp_path / "backup.db").rename(path)
    with pytest.raises(StoreError, match="was replaced"):
        await store.accept([publication(120)], now_ms=START_MS)
    await store.close()
    assert await content(path) == {"msg_1"}
    assert len(aside(tmp_path)) == 1
    # And back again.
    (tmp_path / "before.db").replace(path)
    assert await content(path) >= {f"msg_{number}" for number in range(1, 120)}
    assert aside(tmp_path) == []


async def test_a_database_that_is_put_back_gets_its_log_back(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    store = await store_with(path, 1, 2)
    path.rename(tmp_path / "away.db")
    with pytest.raises(StoreError, match="was removed or renamed"):
        await store.accept([publication(3)], now_ms=START_MS)
    await store.close()
    for _ in range(2):
        with pytest.raises(StoreError, match="is missing or empty, but its write-ahead log"):
            await SqliteStore.open(str(path), VirtualClock())
    assert not path.exists()
    (tmp_path / "away.db").rename(path)
    assert await content(path) >= {"msg_1", "msg_2"}


async def test_the_log_of_another_program_is_left_alone(tmp_path: Path) -> None:
    """As if somebody had restored a whole set of files."""
    path, log = tmp_path / "tasks.db", tmp_path / "tasks.db-wal"
    store = await store_with(path, 1)
    path.unlink()
    log.unlink()
    log.write_bytes(b"of another database")
    await store.close()
    assert log.read_bytes() == b"of another database"


async def test_a_log_that_was_set_aside_is_reported_at_each_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tasks.db").touch()
    await (await store_with(tmp_path / "tasks.db", 1)).close()
    (tmp_path / "tasks.db-wal.of-1-2").write_bytes(b"frames")
    await (await store_with(tmp_path / "tasks.db")).close()
    assert "tasks.db-wal.of-1-2 belongs to a database that is not at" in caplog.text


PROGRAM = """
import asyncio, os, signal, sys
from qtasks.broker.store.sqlite import SqliteStore
from tests.support.broker import START_MS, VirtualClock, publication
async def main():
    store, _ = await SqliteStore.open(sys.argv[1], VirtualClock())
    await store.accept([publication(2)], now_ms=START_MS)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


@pytest.fixture
async def killed(tmp_path: Path) -> Path:
    """The folder of a process that was killed, with an earlier backup in it."""
    folder = tmp_path / "killed"
    await (await store_with(folder / "tasks.db", 1)).close()
    shutil.copy(folder / "tasks.db", folder / "backup.db")
    subprocess.run([sys.executable, "-c", PROGRAM, folder / "tasks.db"], check=False)
    return folder


async def test_a_backup_beside_the_log_of_a_dead_process_is_refused(killed: Path) -> None:
    (killed / "backup.db").replace(killed / "tasks.db")
    for _ in range(2):
        with pytest.raises(StoreError, match="is another file than the last process used"):
            await SqliteStore.open(str(killed / "tasks.db"), VirtualClock())
    (killed / "tasks.db-wal").unlink()
    assert await content(killed / "tasks.db") == {"msg_1"}


async def test_a_copy_of_the_whole_folder_of_a_dead_process_is_complete(killed: Path, tmp_path: Path) -> None:
    shutil.copytree(killed, tmp_path / "copy")
    assert await content(tmp_path / "copy" / "tasks.db") == {"msg_1", "msg_2"}
    assert await content(killed / "tasks.db") == {"msg_1", "msg_2"}
