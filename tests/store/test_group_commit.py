"""Group commit: shared commits, isolation of errors, slow disks, checkpoints, and storage that fails."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import apsw
import pytest

from qtasks.broker.core.values import LogCriteria
from qtasks.broker.steady_clock import SteadyClock
from qtasks.broker.store import group_commit
from qtasks.broker.store.connection import connect
from qtasks.broker.store.group_commit import QUICK_S, TURN_S
from qtasks.broker.store.sqlite import SqliteStore
from qtasks.broker.store.verbs.reads import queries
from qtasks.broker.store.verbs.retention import probe
from qtasks.errors import StoreError, StoreFull
from tests.support.broker import ACCOUNT, START_MS, VirtualClock, publication
from tests.support.failing_disk import FailingDisk

pytestmark = pytest.mark.anyio
NOW = START_MS


class Commits:
    """Counts the commits of a store from now on."""

    def __init__(self, store: SqliteStore) -> None:
        self.count = 0
        store._db.set_commit_hook(self._counted)

    def _counted(self) -> bool:
        self.count += 1
        return False


async def test_calls_made_together_share_a_commit(tmp_path: Path) -> None:
    store, _ = await SqliteStore.open(str(tmp_path / "store.db"), VirtualClock())
    commits = Commits(store)
    await asyncio.gather(*(store.accept([publication(n)], now_ms=NOW) for n in range(50)))
    assert commits.count == 1
    await store.close()


async def test_a_patient_write_shares_the_commit_of_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "PATIENCE_S", 3600)
    store, _ = await SqliteStore.open(str(tmp_path / "store.db"), VirtualClock())
    commits = Commits(store)
    patient = asyncio.create_task(store.write_patiently(probe, now_ms=NOW))
    await asyncio.sleep(0)
    await store.accept([publication(1)], now_ms=NOW)
    await patient
    assert commits.count == 1
    await store.close()


async def test_a_patient_write_is_stored_although_no_other_comes(tmp_path: Path) -> None:
    store, _ = await SqliteStore.open(str(tmp_path / "store.db"), VirtualClock())
    await store.write_patiently(probe, now_ms=NOW)
    await store.close()


async def test_the_end_of_the_store_waits_for_no_company_of_a_patient_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "PATIENCE_S", 3600)
    store, _ = await SqliteStore.open(str(tmp_path / "store.db"), VirtualClock())
    patient = asyncio.create_task(store.write_patiently(probe, now_ms=NOW))
    await asyncio.sleep(0)
    await store.close()
    await patient


async def test_a_store_that_fails_refuses_a_patient_write_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "PATIENCE_S", 3600)
    store, _ = await SqliteStore.open(str(tmp_path / "store.db"), VirtualClock())
    patient = asyncio.create_task(store.write_patiently(probe, now_ms=NOW))
    await asyncio.sleep(0)
    store.fail("the disk is gone")
    with pytest.raises(StoreError, match="the disk is gone"):
        await patient
    await store.close()


class Stopwatch(VirtualClock):
    """A clock on which time passes only during the work that a test has put on it."""

    elapsed_s = 0.0

    def monotonic(self) -> float:
        return self.elapsed_s


@pytest.mark.parametrize(("commit_s", "slow"), [(QUICK_S / 2, False), (10 * QUICK_S, True)])
async def test_only_the_commits_of_a_slow_disk_are_handed_to_a_thread(
    tmp_path: Path, commit_s: float, slow: bool
) -> None:
    clock = Stopwatch()
    store, _ = await SqliteStore.open(str(tmp_path / "store.db"), clock)
    committed_in: list[int] = []

    def note() -> bool:
        clock.elapsed_s += commit_s
        committed_in.append(threading.get_ident())
        return False

    store._db.set_commit_hook(note)
    await store.accept([publication(1)], now_ms=NOW)
    await store.accept([publication(2)], now_ms=NOW)
    first, second = [thread != threading.get_ident() for thread in committed_in]
    assert (first, second) == (False, slow), "the first commit shows how long the next ones will take"
    await store.close()


async def test_a_group_ends_when_its_statements_have_taken_long(tmp_path: Path) -> None:
    clock = Stopwatch()
    store, _ = await SqliteStore.open(str(tmp_path / "store.db"), clock)
    sizes, size = [], 0

    def count() -> bool:
        nonlocal size
        sizes.append(size)
        size = 0
        return False

    def write(db: apsw.Connection) -> None:
        nonlocal size
        size += 1
        clock.elapsed_s += TURN_S / 3
        probe(db, now_ms=NOW)

    store._db.set_commit_hook(count)
    await asyncio.gather(*(store.write(write) for _ in range(10)))
    assert sizes == [3, 3, 3, 1]
    await store.close()


async def test_no_answer_waits_for_the_log_to_be_moved_into_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "CHECKPOINT_PAGES", 1)
    path = tmp_path / "store.db"
    store, _ = await SqliteStore.open(str(path), VirtualClock())
    size, answered, checkpoint = path.stat().st_size, threading.Event(), store._commits._checkpoint
    monkeypatch.setattr(store._commits, "_checkpoint", lambda: checkpoint() if answered.wait(5) else None)
    await store.accept([publication(1, body=bytes(100_000))], now_ms=NOW)
    assert path.stat().st_size == size
    answered.set()
    await store.accept([publication(2)], now_ms=NOW)
    assert path.stat().st_size > size
    await store.close()


async def test_one_bad_call_never_fails_its_neighbours(sqlite_store: SqliteStore) -> None:
    bad = publication(2, timeout_ms=-1)  # a CHECK of the schema refuses it
    answers = await asyncio.gather(
        *(sqlite_store.accept([one], now_ms=NOW) for one in (publication(1), bad, publication(3))),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [list, StoreError, list]
    page = await sqlite_store.read(queries.log, ACCOUNT, LogCriteria(), cursor=None, count=9)
    assert sorted(entry.message.id for entry in page.items) == ["msg_1", "msg_3"]


async def test_a_request_is_stored_whole_or_not_at_all(sqlite_store: SqliteStore) -> None:
    with pytest.raises(StoreError):
        await sqlite_store.accept([publication(1), publication(1)], now_ms=NOW)
    assert await sqlite_store.read(queries.message, ACCOUNT, "msg_1") is None


async def test_a_full_disk_refuses_the_call_and_takes_the_next_when_there_is_room(tmp_path: Path) -> None:
    store, _ = await SqliteStore.open(str(tmp_path / "store.db"), VirtualClock())
    pages = store._db.pragma("page_count")
    store._db.pragma("max_page_count", pages + 1)
    answers = await asyncio.gather(
        *(store.accept([publication(n, body=bytes(9000))], now_ms=NOW) for n in range(3)), return_exceptions=True
    )
    assert all(isinstance(answer, StoreFull) for answer in answers)
    store._db.pragma("max_page_count", pages + 2000)
    await store.look_for_room()
    await store.accept([publication(9)], now_ms=NOW)
    page = await store.read(queries.log, ACCOUNT, LogCriteria(), cursor=None, count=9)
    assert [entry.message.id for entry in page.items] == ["msg_9"]
    await store.close()


def failing_store(path: str, disk: FailingDisk) -> SqliteStore:
    db = connect(path, vfs=disk.name)
    return SqliteStore(path, db, SteadyClock(VirtualClock()), release=db.close)


async def test_nothing_is_accepted_after_a_failed_sync(tmp_path: Path, failing_disk: FailingDisk) -> None:
    store = failing_store(str(tmp_path / "store.db"), failing_disk)
    await store.accept([publication(1)], now_ms=NOW)
    failing_disk.fail("sync", file="-wal")
    with pytest.raises(StoreError, match="the storage failed"):
        await store.accept([publication(2)], now_ms=NOW)
    failing_disk.heal()
    with pytest.raises(StoreError, match="the storage failed"):
        await store.accept([publication(3)], now_ms=NOW)
    assert store.broken.is_set()
    await store.close()


async def test_nothing_is_accepted_after_the_database_file_could_not_be_synced(
    tmp_path: Path, failing_disk: FailingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "CHECKPOINT_PAGES", 1)
    path = str(tmp_path / "store.db")
    store = failing_store(path, failing_disk)
    failing_disk.fail("sync", file="store.db")
    await store.accept([publication(1)], now_ms=NOW)
    with pytest.raises(StoreError, match="the storage failed"):
        await store.accept([publication(2)], now_ms=NOW)
    assert store.broken.is_set()
    failing_disk.heal()
    await store.close()
    again, recovery = await SqliteStore.open(path, VirtualClock())
    assert recovery.waiting == 1, "what was accepted is in the log"
    await again.close()


async def test_a_caller_that_goes_away_does_not_take_its_message_along(sqlite_store: SqliteStore) -> None:
    waiting = asyncio.ensure_future(sqlite_store.accept([publication(1)], now_ms=NOW))
    await asyncio.sleep(0)
    waiting.cancel()
    await sqlite_store.accept([publication(2)], now_ms=NOW)
    assert await sqlite_store.read(queries.message, ACCOUNT, "msg_1") is not None
