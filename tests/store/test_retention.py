"""Finished and old messages are deleted in small batches; waiting messages stay, regardless of the limits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest

from qtasks.broker.core.rules import Evaluation, Trigger
from qtasks.broker.core.values import DAY_MS, DeadLetterCriteria, LogCriteria, Retention, Rooms, Settlement
from qtasks.broker.loops.pruner import INTERVAL_MS, PAUSE_MS, Pruner
from qtasks.broker.store.connection import connect, run_in_transaction
from qtasks.broker.store.sqlite import SqliteStore
from qtasks.broker.store.verbs import accept, admission, cancel, claim, settle
from qtasks.broker.store.verbs.parking import prefixes
from qtasks.broker.store.verbs.reads import queries
from qtasks.broker.store.verbs.retention import (
    BATCH,
    prune,
    prune_deduplication_keys,
    prune_messages,
    used_bytes,
)
from qtasks.errors import StoreError
from qtasks.protocol.messages import DEDUPLICATION_WINDOW_MS, FlowControl, PublishOptions, Response
from tests.support.broker import ACCOUNT, START_MS, VirtualClock, publication

NOW = START_MS
KEEP = Retention(delivered_ms=7 * DAY_MS, failed_ms=30 * DAY_MS, max_bytes=None)
TABLES = ("messages", "stored_bodies", "log", "labels", "dead_letters")
LONG = Response(status=500, body=bytes(5000))
LABELLED = PublishOptions(labels=("a", "b"))


@pytest.fixture
def db() -> Iterator[apsw.Connection]:
    connection = connect(":memory:")
    yield connection
    connection.close()


def own(body: bytes) -> bytes:
    """A copy: messages that are accepted together with the same body share it."""
    return bytes(bytearray(body))


def finish(db: apsw.Connection, first: int, last: int, trigger: Trigger, now_ms: int = NOW, body: bytes = b"x") -> None:
    """Accept messages `first` to `last` and bring them to an end at `now_ms`."""
    made = [publication(n, now_ms=now_ms, body=own(body), options=LABELLED) for n in range(first, last + 1)]
    accept.accept(db, made, now_ms=now_ms)
    if trigger is Trigger.CANCEL:
        cancel.cancel(db, ACCOUNT, [one.message.id for one in made], now_ms=now_ms)
        return
    claims = claim.claim(db, now_ms=now_ms, limit=len(made), rooms=Rooms(len(made))).claims
    assert len(claims) == len(made)
    outcome = Response(status=200 if trigger is Trigger.SUCCEED else 500, body=b"answer")
    for one in claims:
        settle.settle(db, Settlement(one, outcome, Evaluation(trigger, "failed")), now_ms=now_ms)


def counts(db: apsw.Connection) -> dict[str, int]:
    return {table: db.execute(f"SELECT count(*) FROM {table}").get for table in TABLES}


def kept(db: apsw.Connection) -> list[str]:
    return [row[0] for row in db.execute("SELECT id FROM messages ORDER BY seq")]


def prune_all(db: apsw.Connection, keep: Retention, now_ms: int) -> int:
    removed = 0
    while batch := prune_messages(db, keep, now_ms=now_ms):
        removed += batch
    return removed


# -- by age


@pytest.mark.parametrize(
    ("trigger", "age_ms"),
    [(Trigger.SUCCEED, 7 * DAY_MS), (Trigger.CANCEL, 7 * DAY_MS), (Trigger.FAIL, 30 * DAY_MS)],
)
def test_a_finished_message_is_kept_for_its_time_and_then_leaves_nothing(
    db: apsw.Connection, trigger: Trigger, age_ms: int
) -> None:
    finish(db, 1, 1, trigger)
    before = counts(db)
    assert before["messages"] == 1
    assert prune_messages(db, KEEP, now_ms=NOW + age_ms) == 0
    assert counts(db) == before
    assert prune_messages(db, KEEP, now_ms=NOW + age_ms + 1) == 1
    assert counts(db) == dict.fromkeys(TABLES, 0)


def test_what_waits_or_runs_is_never_removed(db: apsw.Connection) -> None:
    accept.accept(db, [publication(n) for n in (1, 2)], now_ms=NOW)
    accept.accept(db, [publication(3, not_before_ms=NOW + 365 * DAY_MS)], now_ms=NOW)
    accept.accept(db, [publication(4, queue="q"), publication(5, queue="q")], now_ms=NOW)
    claim.claim(db, now_ms=NOW, limit=1, rooms=Rooms(1))
    strict = Retention(delivered_ms=0, failed_ms=0, max_bytes=1)
    assert prune_all(db, strict, NOW + 1000 * DAY_MS) == 0
    assert kept(db) == [f"msg_{n}" for n in range(1, 6)]


def test_a_message_that_waits_for_its_callbacks_holds_its_place_in_the_queue(db: apsw.Connection) -> None:
    options = PublishOptions(callback="http://127.0.0.1:8000/callback")
    accept.accept(db, [publication(1, queue="q", options=options)], now_ms=NOW)
    [one] = claim.claim(db, now_ms=NOW, limit=1, rooms=Rooms(1)).claims
    ids = ("msg_2", "msg_3")
    settle.settle(db, Settlement(one, Response(status=200), Evaluation(Trigger.SUCCEED), ids), now_ms=NOW)
    assert prune_messages(db, KEEP, now_ms=NOW + 8 * DAY_MS) == 0
    [two] = claim.claim(db, now_ms=NOW, limit=1, rooms=Rooms(1)).claims
    settle.settle(db, Settlement(two, Response(status=200), Evaluation(Trigger.SUCCEED)), now_ms=NOW)
    assert prune_messages(db, KEEP, now_ms=NOW + 8 * DAY_MS) == 2


def test_neighbours_of_what_is_removed_keep_everything(db: apsw.Connection) -> None:
    finish(db, 1, 3, Trigger.SUCCEED)
    finish(db, 4, 6, Trigger.FAIL)
    finish(db, 7, 9, Trigger.SUCCEED, NOW + DAY_MS)
    assert prune_all(db, KEEP, NOW + 7 * DAY_MS + 1) == 3
    assert kept(db) == [f"msg_{n}" for n in range(4, 10)]
    log = queries.log(db, ACCOUNT, LogCriteria(), cursor=None, count=100).items
    assert {entry.message.id for entry in log} == set(kept(db))
    letters = queries.dead_letters(db, ACCOUNT, DeadLetterCriteria(), cursor=None, count=100).items
    assert [letter.message.id for letter in letters] == ["msg_4", "msg_5", "msg_6"]
    assert counts(db)["labels"] == 12


# -- by size


def test_beyond_the_size_the_oldest_go_and_dead_letters_last(db: apsw.Connection) -> None:
    body = b"x" * 20_000
    finish(db, 1, 20, Trigger.FAIL, NOW, body)
    finish(db, 21, 40, Trigger.SUCCEED, NOW + 1, body)
    finish(db, 41, 60, Trigger.CANCEL, NOW + 2, body)
    accept.accept(db, [publication(n, body=own(body)) for n in range(61, 81)], now_ms=NOW)
    size = used_bytes(db)

    def pruned_to(share: float) -> list[str]:
        keep = replace(KEEP, max_bytes=int(size * share))
        while used_bytes(db) > size * share and prune_messages(db, keep, now_ms=NOW + 3, limit=1):
            pass
        assert prune_messages(db, keep, now_ms=NOW + 3, limit=1) == 0 or share == 0
        return kept(db)

    left = pruned_to(0.9)
    assert left[:20] == [f"msg_{n}" for n in range(1, 21)]  # every dead letter
    delivered = left[20:-40]
    assert 0 < len(delivered) < 20
    assert delivered == [f"msg_{n}" for n in range(41 - len(delivered), 41)]  # the newest of what was delivered
    left = pruned_to(0.42)
    assert not [one for one in left if 21 <= int(one[4:]) <= 60]
    assert 0 < len(left) - 20 < 20
    assert left[-21] == "msg_20"  # the newest dead letter stays longest
    assert pruned_to(0) == [f"msg_{n}" for n in range(61, 81)]


def test_below_the_size_nothing_is_removed_before_its_time(db: apsw.Connection) -> None:
    finish(db, 1, 10, Trigger.SUCCEED)
    assert prune_messages(db, replace(KEEP, max_bytes=10 * used_bytes(db)), now_ms=NOW + DAY_MS) == 0
    assert prune_messages(db, replace(KEEP, max_bytes=None), now_ms=NOW + DAY_MS) == 0


def test_the_file_does_not_grow_with_what_has_passed_through_it(tmp_path: Path) -> None:
    path = tmp_path / "long.db"
    connection = connect(str(path))
    sizes, body = [], b"x" * 2000
    for day in range(6):
        now_ms = NOW + day * 10 * DAY_MS
        first, last = day * 200 + 1, day * 200 + 200
        run_in_transaction(
            connection,
            partial(finish, first=first, last=last, trigger=Trigger.SUCCEED, now_ms=now_ms, body=body),
        )
        while run_in_transaction(connection, prune_messages, KEEP, now_ms=now_ms):
            pass
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        sizes.append(path.stat().st_size)
    assert kept(connection) == [f"msg_{n}" for n in range(1001, 1201)]
    connection.close()
    # Two days' messages are there at most at once: the second day's come before the first day's go.
    assert max(sizes) <= 1.05 * sizes[1], sizes


# -- in small batches


def test_a_batch_has_a_most(db: apsw.Connection) -> None:
    finish(db, 1, 250, Trigger.SUCCEED)
    later_ms = NOW + 8 * DAY_MS
    assert BATCH == 100
    assert [prune_messages(db, KEEP, now_ms=later_ms) for _ in range(4)] == [100, 100, 50, 0]
    finish(db, 251, 260, Trigger.SUCCEED)
    finish(db, 261, 270, Trigger.CANCEL)
    assert prune_messages(db, replace(KEEP, delivered_ms=0), now_ms=later_ms, limit=15) == 15
    assert kept(db) == [f"msg_{n}" for n in range(266, 271)]


def test_deduplication_keys_are_forgotten_after_their_window_in_batches(db: apsw.Connection) -> None:
    accept.accept(db, [publication(n, deduplication_key=f"id:{n}") for n in range(150)], now_ms=NOW)
    end_ms = NOW + DEDUPLICATION_WINDOW_MS
    assert prune_deduplication_keys(db, now_ms=end_ms - 1) == 0
    again = accept.accept(db, [publication(999, deduplication_key="id:7")], now_ms=end_ms - 1)
    assert again[0].deduplicated
    assert [prune_deduplication_keys(db, now_ms=end_ms) for _ in range(3)] == [100, 50, 0]
    assert db.execute("SELECT count(*) FROM deduplication").get == 0


def test_every_step_is_found_by_an_index(db: apsw.Connection) -> None:
    """A step that read a whole table would hold up deliveries, and the more the longer the broker has run."""
    finish(db, 1, 3, Trigger.SUCCEED)
    finish(db, 4, 6, Trigger.FAIL)
    accept.accept(db, [publication(7, deduplication_key="id:7", queue="q")], now_ms=NOW)
    admission.configure_key(db, ACCOUNT, FlowControl("k", rate=1), NOW)
    prefixes.note_dispatcher(db, "p", now_ms=NOW)
    [one] = claim.claim(db, now_ms=NOW, limit=1, rooms=Rooms(1)).claims
    settle.settle(db, Settlement(one, LONG, Evaluation(Trigger.RETRY, "failed", NOW)), now_ms=NOW)
    statements: list[tuple[str, Any]] = []

    def trace(_: apsw.Cursor, sql: str, bindings: Any) -> bool:
        statements.append((sql, bindings))
        return True

    db.exec_trace = trace
    assert prune(db, KEEP, now_ms=NOW + 31 * DAY_MS) == 10, "6 messages, a deduplication key, 3 names"
    assert prune(db, replace(KEEP, max_bytes=1), now_ms=NOW + 31 * DAY_MS) == 1, "a long answer"
    db.exec_trace = None
    asked = [(sql, bindings) for sql, bindings in statements if not sql.lower().startswith("pragma")]
    for sql, bindings in asked:
        plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", bindings)]
        if plan == ["SCAN log USING INDEX log_long_answers"]:  # it holds only what the step is for, in its order
            continue
        assert not [step for step in plan if step.startswith("SCAN") or "TEMP B-TREE" in step], (sql, plan)


# -- the loop


class SelfMovingClock(VirtualClock):
    """A clock that moves as soon as a task waits; `waits` lists how long each wait was."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[int] = []

    async def wait(self, trigger: Awaitable[object], until_ms: int | None) -> None:
        asyncio.ensure_future(trigger).cancel()
        assert until_ms is not None
        self.waits.append(until_ms - self.now_ms())
        self.advance(until_ms - self.now_ms())
        await asyncio.sleep(0)


@pytest.mark.anyio
async def test_the_loop_removes_all_that_is_due_and_makes_way_between_batches() -> None:
    clock = SelfMovingClock()
    store, _ = await SqliteStore.open(":memory:", clock)
    made = [publication(n, deduplication_key=f"id:{n}") for n in range(250)]
    await store.accept(made, now_ms=clock.now_ms())
    await store.write(cancel.cancel, ACCOUNT, [one.message.id for one in made], now_ms=clock.now_ms())
    pruner = Pruner(store, clock, KEEP)
    assert await pruner.run_once() == 0
    clock.advance(8 * DAY_MS)
    assert await pruner.run_once() == 500
    assert clock.waits == [PAUSE_MS] * 3
    assert await pruner.run_once() == 0
    await store.close()


@pytest.mark.anyio
async def test_the_loop_goes_on_after_whatever_goes_wrong(caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        asked = 0

        async def write(self, verb: object, *arguments: object, now_ms: int) -> int:
            self.asked += 1
            if self.asked == 1:
                raise StoreError("no space")
            if self.asked == 2:
                raise RuntimeError("a bug")
            if self.asked == 5:  # the fourth notes the size
                raise asyncio.CancelledError
            return 0

    clock, store = SelfMovingClock(), Failing()
    with pytest.raises(asyncio.CancelledError):
        await Pruner(store, clock, KEEP).run()  # type: ignore[arg-type]
    assert clock.waits == [INTERVAL_MS] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "cannot remove old messages: no space",
        "cannot remove old messages: a bug",
    ]
