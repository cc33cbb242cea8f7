"""No write holds the event loop: neither another program's lock, nor a long write, nor many large bodies."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import apsw
import pytest

from qtasks.broker.core.values import LogCriteria, Retention, Rooms
from qtasks.broker.store import group_commit
from qtasks.broker.store.sqlite import SqliteStore
from qtasks.broker.store.verbs import claim
from qtasks.broker.store.verbs.accept import SHARED_FROM, accept
from qtasks.broker.store.verbs.reads import queries
from qtasks.broker.store.verbs.retention import probe, prune_messages
from qtasks.clock import SystemClock
from qtasks.errors import StoreError
from qtasks.protocol.messages import FlowControl, PublishOptions
from tests.support.broker import ACCOUNT, START_MS, publication
from tests.support.loop_lag import loop_lag
from tests.support.store import InlineStore

NOW = START_MS
HELD_S = 1.0
"""Longest hold of the loop, seconds, on a busy machine; a lock is waited for during five."""
PATIENCE_S = 10.0
NOTHING_KEPT = Retention(delivered_ms=0, failed_ms=0)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened, _ = await SqliteStore.open(str(tmp_path / "store.db"), SystemClock())
    yield opened
    await opened.close()


@pytest.fixture
def other_program(store: SqliteStore) -> Iterator[apsw.Connection]:
    """A connection that holds the lock for writes."""
    other = apsw.Connection(store.path)
    other.execute("BEGIN IMMEDIATE")
    yield other
    other.close()


@pytest.fixture
def inline() -> Iterator[InlineStore]:
    made = InlineStore()
    yield made
    made.close()


# -- the lock of another program


@pytest.mark.anyio
async def test_while_another_program_holds_a_lock_reads_and_the_loop_go_on(
    store: SqliteStore, other_program: apsw.Connection
) -> None:
    async with loop_lag() as lag:
        waiting = asyncio.ensure_future(store.accept([publication(1)], now_ms=NOW))
        for _ in range(20):
            assert await store.read(queries.message, ACCOUNT, "msg_1") is None
        assert not waiting.done()
        other_program.execute("ROLLBACK")
        await asyncio.wait_for(waiting, PATIENCE_S)
    assert lag.take().wall_s < HELD_S
    assert await store.read(queries.message, ACCOUNT, "msg_1") is not None


@pytest.mark.anyio
async def test_all_that_waits_for_a_lock_is_refused_together(
    store: SqliteStore, other_program: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "BUSY_S", 0.05)
    waits = 0
    begin_patiently = store._commits._begin_patiently

    def count() -> apsw.Error | None:
        nonlocal waits
        waits += 1
        return begin_patiently()

    monkeypatch.setattr(store._commits, "_begin_patiently", count)
    async with loop_lag() as lag:
        many = [store.accept([publication(n)], now_ms=NOW) for n in range(2 * group_commit.GROUP_LIMIT)]
        answers = await asyncio.wait_for(asyncio.gather(*many, return_exceptions=True), PATIENCE_S)
    assert {str(answer).split(":")[0] for answer in answers} == {"the store is busy"}
    assert all(isinstance(answer, StoreError) for answer in answers)
    assert (waits, lag.take().wall_s < HELD_S) == (1, True)
    other_program.execute("ROLLBACK")
    await store.accept([publication(1)], now_ms=NOW)
    page = await store.read(queries.log, ACCOUNT, LogCriteria(), cursor=None, count=9)
    assert [entry.message.id for entry in page.items] == ["msg_1"], "nothing of what was refused is stored"


@pytest.mark.anyio
async def test_a_store_that_fails_during_the_wait_refuses_what_waits(
    store: SqliteStore, other_program: apsw.Connection
) -> None:
    waiting = asyncio.ensure_future(store.accept([publication(1)], now_ms=NOW))
    await asyncio.sleep(0)
    store.fail("the file is gone")
    with pytest.raises(StoreError, match="the file is gone"):
        await asyncio.wait_for(waiting, PATIENCE_S)
    other_program.execute("ROLLBACK")


# -- long writes


@pytest.mark.anyio
async def test_the_loop_goes_on_during_a_long_write(store: SqliteStore) -> None:
    released = threading.Event()

    def wait(db: apsw.Connection) -> bool:
        probe(db, now_ms=NOW)
        return released.wait(PATIENCE_S)

    long_write = asyncio.ensure_future(store.write_long(wait))
    assert await store.read(queries.newest_seq) == 0
    released.set()
    assert await asyncio.wait_for(long_write, PATIENCE_S)


@pytest.mark.anyio
async def test_a_long_write_that_fails_leaves_nothing_and_fails_nobody_else(store: SqliteStore) -> None:
    def fail(db: apsw.Connection) -> None:
        accept(db, [publication(1)], now_ms=NOW)
        raise ValueError("no")

    answers = await asyncio.gather(
        store.write_long(fail), store.accept([publication(2)], now_ms=NOW), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [ValueError, list]
    assert await store.read(queries.message, ACCOUNT, "msg_1") is None


@pytest.mark.anyio
async def test_a_short_write_waits_for_one_long_write_at_most(store: SqliteStore) -> None:
    order: list[str] = []

    def note(db: apsw.Connection, name: str) -> None:
        order.append(name)

    long_writes = [store.write_long(note, f"long {n}") for n in range(4)]
    await asyncio.gather(*long_writes, store.write(note, "short"))
    assert order.index("short") <= 1
    assert [name for name in order if name != "short"] == [f"long {n}" for n in range(4)]


@pytest.mark.anyio
async def test_the_messages_of_a_large_group_are_stored_beside_the_loop(store: SqliteStore) -> None:
    threads: list[int] = []

    def note() -> bool:
        threads.append(threading.get_ident())
        return False

    store._db.set_commit_hook(note)
    await store.accept([publication(1)], now_ms=NOW)
    await store.accept([publication(n) for n in range(2, 400)], now_ms=NOW)
    assert [thread == threading.get_ident() for thread in threads] == [True, False]


# -- large bodies


def shared(inline: InlineStore) -> int:
    return int(inline.db.execute("SELECT count(*) FROM shared_bodies").get)


def test_a_body_that_many_messages_have_is_stored_once_until_the_last_has_gone(inline: InlineStore) -> None:
    body = b"x" * SHARED_FROM
    inline.accept(1, body=b"another")
    inline.accept(2, 3, 4, body=body)
    inline.accept(5, body=bytes(bytearray(body)))
    stored = inline.db.execute("SELECT sum(length(body)) FROM stored_bodies").get
    assert (shared(inline), stored) == (1, len(b"another") + SHARED_FROM)
    assert [inline.message(f"msg_{n}").body for n in range(1, 6)] == [b"another", body, body, body, body]
    assert [one.message.body for one in inline.claims()] == [b"another", body, body, body, body]
    inline.crash()
    for gone, kept in (("msg_4", ("msg_2", "msg_3")), ("msg_2", ("msg_3",)), ("msg_3", ())):
        inline.cancel(gone)
        assert prune_messages(inline.db, NOTHING_KEPT, now_ms=inline.now_ms + 1) == 1
        assert [inline.message(one).body for one in kept] == [body for _ in kept]
        assert shared(inline) == (1 if kept else 0)


def test_small_bodies_are_not_shared(inline: InlineStore) -> None:
    inline.accept(1, 2, body=b"x" * (SHARED_FROM - 1))
    assert shared(inline) == 0


@pytest.mark.parametrize("parked", [False, True])
def test_a_claim_reads_a_few_megabytes_and_the_next_claims_continue(inline: InlineStore, parked: bool) -> None:
    size = claim.READ_BYTES // 4
    inline.accept(*range(1, 11), body=b"x" * size)
    if parked:
        claim.claim(inline.db, now_ms=inline.now_ms, limit=64, rooms=Rooms(0))
        claim.claim(inline.db, now_ms=inline.now_ms, limit=64, rooms=Rooms(0))
        claim.claim(inline.db, now_ms=inline.now_ms, limit=64, rooms=Rooms(0))
    batches = []
    for _ in range(4):
        batch = claim.claim(inline.db, now_ms=inline.now_ms, limit=64, rooms=Rooms(64))
        batches.append(([one.message.id for one in batch.claims], batch.has_more))
    ids = [f"msg_{n}" for n in range(1, 11)]
    assert batches == [(ids[:4], True), (ids[4:8], True), (ids[8:], False), ([], False)]


def test_a_claim_ends_also_if_the_messages_of_flow_control_keys_are_large(inline: InlineStore) -> None:
    flow = PublishOptions(flow_control=FlowControl("key", parallelism=1))
    inline.accept(1, 2, 3, body=b"x" * claim.READ_BYTES, options=flow)
    assert [one.message.id for one in inline.claims()] == ["msg_1"]
