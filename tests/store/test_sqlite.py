"""The SQLite store: reads, the lock file, the schema, restarts."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from qtasks.broker.core.values import Rooms
from qtasks.broker.store.connection import connect
from qtasks.broker.store.sqlite import SqliteStore
from qtasks.broker.store.verbs import cancel
from qtasks.broker.store.verbs.reads import queries
from qtasks.errors import SchemaTooNew, StoreError, StoreLocked
from tests.support.broker import ACCOUNT, START_MS, VirtualClock, publication

pytestmark = pytest.mark.anyio
NOW = START_MS


async def test_what_was_answered_is_read_back_at_once(sqlite_store: SqliteStore) -> None:
    await sqlite_store.accept([publication(1)], now_ms=NOW)
    found = await sqlite_store.read(queries.message, ACCOUNT, "msg_1")
    assert found is not None
    assert found.body == b'{"n":1}'


async def test_a_second_process_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    program = (
        "import asyncio, sys\n"
        "from qtasks.broker.store.sqlite import SqliteStore\n"
        "from qtasks.clock import SystemClock\n"
        "async def main():\n"
        "    store, _ = await SqliteStore.open(sys.argv[1], SystemClock())\n"
        "    print('open', flush=True)\n"
        "    sys.stdin.read()\n"
        "asyncio.run(main())\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "open\n"
    with pytest.raises(StoreLocked, match=f"store.db is in use by process {other.pid}"):
        await SqliteStore.open(str(path), VirtualClock())
    other.kill()
    other.communicate()
    store, _ = await SqliteStore.open(str(path), VirtualClock())
    await store.close()


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"Dear diary, " * 200)
    with pytest.raises(StoreError, match="not a qtasks database"):
        await SqliteStore.open(str(path), VirtualClock())
    assert path.read_bytes().startswith(b"Dear diary")


async def test_a_newer_schema_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    db = connect(str(path))
    db.pragma("user_version", 999)
    db.close()
    with pytest.raises(SchemaTooNew, match="schema version 999"):
        await SqliteStore.open(str(path), VirtualClock())


async def test_a_folder_that_does_not_exist_yet_is_made(tmp_path: Path) -> None:
    store, _ = await SqliteStore.open(str(tmp_path / "new" / "store.db"), VirtualClock())
    await store.close()


async def test_a_restart_finds_what_the_last_run_left(tmp_path: Path) -> None:
    path = str(tmp_path / "store.db")
    store, _ = await SqliteStore.open(path, VirtualClock())
    await store.accept([publication(1), publication(2)], now_ms=NOW)
    await store.claim(now_ms=NOW, limit=1, rooms=Rooms(9))
    await store.close()
    again, recovery = await SqliteStore.open(path, VirtualClock())
    assert (recovery.interrupted, recovery.waiting) == (1, 2)
    found = await again.claim(now_ms=NOW, limit=9, rooms=Rooms(9))
    assert [claim.message.id for claim in found.claims] == ["msg_1", "msg_2"]
    await again.close()


async def test_a_closed_store_says_so(sqlite_store: SqliteStore) -> None:
    await sqlite_store.close()
    with pytest.raises(StoreError, match="closed"):
        await sqlite_store.accept([publication(1)], now_ms=NOW)


async def test_a_reader_cannot_write(tmp_path: Path) -> None:
    store, _ = await SqliteStore.open(str(tmp_path / "store.db"), VirtualClock())
    with pytest.raises(apsw.ReadOnlyError):
        await store.read(
            lambda db: cancel.cancel(db, ACCOUNT, ["x"], now_ms=NOW).count or db.execute("DELETE FROM messages")
        )
    await store.close()


async def test_a_statement_is_not_compiled_again_for_each_value_or_each_group_of_writes(
    sqlite_store: SqliteStore,
) -> None:
    assert sqlite_store._db.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, -1) == 1
    for group in range(5):
        numbers = range(50 * group, 50 * group + 50)
        await asyncio.gather(*(sqlite_store.accept([publication(n)], now_ms=NOW) for n in numbers))
        batch = await sqlite_store.claim(now_ms=NOW, limit=50, rooms=Rooms(1000))
        assert len(batch.claims) == 50
        compiled = sqlite_store._db.cache_stats()["misses"]
        if group == 1:
            once = compiled
    assert compiled == once
