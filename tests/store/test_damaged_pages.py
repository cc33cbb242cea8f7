"""A page of the database that cannot be read: the store fails with a sentence, and so does every start."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import apsw
import pytest

from qtasks.broker.broker import Broker
from qtasks.broker.core.values import LogCriteria, Rooms
from qtasks.broker.settings import BrokerSettings
from qtasks.broker.store.connection import connect
from qtasks.broker.store.integrity import page_check
from qtasks.broker.store.sqlite import SqliteStore
from qtasks.broker.store.verbs.reads import queries
from qtasks.errors import StoreError
from tests.support.broker import ACCOUNT, START_MS, ScriptedTransport, VirtualClock, publication
from tests.support.pages import damage_page, pages_of, stored

pytestmark = pytest.mark.anyio
NOW = START_MS


async def test_a_damaged_page_ends_the_start_with_what_to_do(tmp_path: Path) -> None:
    path = await stored(tmp_path / "store.db", 40)
    damage_page(path, pages_of(path, "stored_bodies")[-1])
    for _ in range(2):  # a supervisor starts it again
        with pytest.raises(StoreError, match=r"store\.db is damaged: .*page") as refused:
            await SqliteStore.open(str(path), VirtualClock())
        assert "qtasks broker check" in str(refused.value)
        assert "qtasks broker repair" in str(refused.value)


async def test_a_damaged_page_that_a_write_meets_ends_the_broker_and_the_next_start_checks_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_check, "SMALL_BYTES", 0)
    path = await stored(tmp_path / "store.db", 40)
    damage_page(path, pages_of(path, "stored_bodies")[-1])
    store, _ = await SqliteStore.open(str(path), VirtualClock())
    with pytest.raises(StoreError, match=r"store\.db is damaged: .*malformed; `qtasks broker check"):
        await store.claim(now_ms=NOW, limit=64, rooms=Rooms(64))
    assert store.broken.is_set()
    with pytest.raises(StoreError, match="is damaged"):
        await store.accept([publication(100)], now_ms=NOW)
    await store.close()
    with pytest.raises(StoreError, match=r"is damaged: .*page"):  # a supervisor starts it again
        await SqliteStore.open(str(path), VirtualClock())


async def test_a_damaged_page_that_a_read_meets_ends_the_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_check, "SMALL_BYTES", 0)
    path = await stored(tmp_path / "store.db", 40)
    for page in pages_of(path, "log_by_account"):
        damage_page(path, page)
    store, _ = await SqliteStore.open(str(path), VirtualClock())
    with pytest.raises(StoreError, match="is damaged"):
        await store.read(queries.log, ACCOUNT, LogCriteria(), cursor=None, count=100)
    assert store.broken.is_set()
    assert store.failure is not None
    assert "qtasks broker repair" in store.failure
    await store.close()


async def test_a_large_database_is_checked_while_the_broker_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_check, "SMALL_BYTES", 0)
    path = await stored(tmp_path / "store.db", 40)
    damage_page(path, pages_of(path, "log_by_account")[-1])  # no delivery reads it
    broker = await Broker.open(BrokerSettings(path=str(path)), clock=VirtualClock(), transport=ScriptedTransport())
    assert (await broker.ready()).status == 200
    assert await broker.page_checker.run_once() != []
    readiness = await broker.ready()
    assert (readiness.status, b"is damaged" in readiness.body) == (503, True)
    await broker.stop()


async def test_a_check_of_all_pages_does_not_delay_the_end(tmp_path: Path) -> None:
    store, _ = await SqliteStore.open(str(tmp_path / "store.db"), VirtualClock())
    running = threading.Event()

    def endless(db: apsw.Connection) -> None:
        def note(*values: Any) -> Any:
            running.set()
            return values[0]

        db.create_scalar_function("note", note)
        db.execute("WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT note(x) FROM n) SELECT max(x) FROM n").fetchall()

    reading = asyncio.create_task(store.read(endless))
    assert await asyncio.to_thread(running.wait, 5)
    await asyncio.wait_for(store.close(), 5)
    with pytest.raises(apsw.InterruptError):
        await reading


@pytest.mark.parametrize("change", ["replace(sql, 'stage = 1', 'stage = 99')", "CAST(x'4352ff' AS TEXT) || sql"])
async def test_a_damaged_definition_of_an_index_is_found(tmp_path: Path, change: str) -> None:
    path = await stored(tmp_path / "store.db", 4)
    db = apsw.Connection(str(path))
    db.execute("PRAGMA writable_schema = ON")
    db.execute(f"UPDATE sqlite_schema SET sql = {change} WHERE name = 'messages_claimable'")
    assert "the definition of index messages_claimable is damaged" in page_check.page_findings(db)
    db.close()
    with pytest.raises(StoreError, match="damaged"):
        await SqliteStore.open(str(path), VirtualClock())


async def test_a_row_that_breaks_a_rule_of_its_table_is_no_damage_of_a_page(tmp_path: Path) -> None:
    path = await stored(tmp_path / "store.db", 4)
    db = apsw.Connection(str(path))
    db.execute("PRAGMA ignore_check_constraints = ON")
    db.execute("UPDATE messages SET retried = -5 WHERE seq = 2")
    db.close()
    db = connect(str(path))
    assert db.execute("PRAGMA integrity_check").get == "CHECK constraint failed in messages"
    assert page_check.page_findings(db) == []
    db.close()
