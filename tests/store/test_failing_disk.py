"""Any operation on the disk may fail: each transition is whole or absent, and no answer is better than the disk."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import apsw
import pytest

from qtasks.broker.core.rules import Evaluation, Stage, Trigger
from qtasks.broker.core.values import Claim, Rooms, Settlement
from qtasks.broker.steady_clock import SteadyClock
from qtasks.broker.store import ballast, group_commit
from qtasks.broker.store.connection import connect
from qtasks.broker.store.sqlite import SqliteStore
from qtasks.broker.store.verbs import cancel, settle
from qtasks.broker.store.verbs.rows import fetch
from qtasks.errors import StoreError, StoreFull
from qtasks.protocol.messages import Response
from tests.support.broker import ACCOUNT, START_MS, VirtualClock, publication
from tests.support.failing_disk import FailingDisk, Operation, failing

pytestmark = pytest.mark.anyio
NOW = START_MS
ROUNDS: Final = 4
FAULTS: Final[list[tuple[type[apsw.Error], tuple[Operation, ...]]]] = [
    (apsw.FullError, ("write", "truncate")),
    (apsw.IOError, ("write", "sync", "truncate", "read")),
]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that is moved often, and a ballast that is made quickly."""
    monkeypatch.setattr(group_commit, "CHECKPOINT_PAGES", 20)
    monkeypatch.setattr(ballast, "BALLAST_BYTES", 64 * 1024)


@dataclass
class Ledger:
    """What the store has answered."""

    promised: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(message, transition) that was answered as done."""
    refused: set[tuple[str, str]] = field(default_factory=set)
    """The same, answered as refused because the disk is full: it must not have happened."""

    async def note(self, message_id: str, transition: str, answer: Awaitable[Any]) -> None:
        try:
            await answer
        except StoreFull:
            self.refused.add((message_id, transition))
        except StoreError:
            pass  # the storage is broken: whether it was stored, the next start sees
        else:
            self.promised[message_id, transition] += 1


async def work(store: SqliteStore, ledger: Ledger) -> None:
    """Accept in groups, claim, settle, cancel and prune, until the storage is broken or all rounds have passed."""
    number = 0
    for turn in range(ROUNDS):
        new = [publication(number + n, body=bytes(3000), max_retries=0) for n in range(4)]
        number += len(new)
        await asyncio.gather(*(ledger.note(one.message.id, "accepted", store.accept([one], now_ms=NOW)) for one in new))
        claims = await claimed(store, 3)
        await asyncio.gather(*(ledger.note(one.message.id, *end(store, one, n)) for n, one in enumerate(claims)))
        last = new[-1].message.id
        if turn % 2 and ledger.promised[last, "accepted"] and last not in {one.message.id for one in claims}:
            await ledger.note(last, "cancelled", store.write(cancel.cancel, ACCOUNT, [last], now_ms=NOW))


async def claimed(store: SqliteStore, limit: int) -> list[Claim]:
    try:
        return list((await store.claim(now_ms=NOW, limit=limit, rooms=Rooms(100))).claims)
    except StoreError:
        return []


def end(store: SqliteStore, claim: Claim, number: int) -> tuple[str, Awaitable[Any]]:
    trigger = Trigger.SUCCEED if number % 2 else Trigger.FAIL
    response = Response(status=200 if number % 2 else 500, body=bytes(2000))
    settlement = Settlement(claim, response, Evaluation(trigger, "failed"))
    name = "delivered" if number % 2 else "failed"
    return name, store.write(settle.settle, settlement, now_ms=NOW)


def broken_promises(db: apsw.Connection, ledger: Ledger) -> list[str]:
    """What is stored against what was answered, and whether each transition is whole."""
    wrong = [] if db.execute("PRAGMA integrity_check").get == "ok" else ["the file is damaged"]
    stages = {Stage.DELIVERED: "delivered", Stage.FAILED: "failed", Stage.CANCELED: "cancelled"}
    found: set[tuple[str, str]] = set()
    for seq, message_id, stage in fetch(db, "SELECT seq, id, stage FROM messages"):
        found.add((message_id, "accepted"))
        if (transition := stages.get(Stage(stage))) is not None:
            found.add((message_id, transition))
        states = [row[0] for row in db.execute("SELECT state FROM log WHERE seq = ? ORDER BY n", (seq,))]
        bodies, letters = (
            db.execute(f"SELECT count(*) FROM {table} WHERE seq = ?", (seq,)).get
            for table in ("bodies", "dead_letters")
        )
        expected = {"delivered": "DELIVERED", "failed": "FAILED", "cancelled": "CANCELED"}.get(transition or "")
        whole = states[0] == "CREATED" and bodies == 1 and letters == (transition == "failed")
        if not whole or (expected or states[-1]) != states[-1] or (expected is None and states[-1] in stages.values()):
            wrong.append(f"{message_id} is {Stage(stage).name} with {states}, {bodies} bodies, {letters} dead letters")
    wrong += [f"{one} was answered as done" for one in sorted(set(ledger.promised) - found)]
    wrong += [f"{one} was answered as refused" for one in sorted(ledger.refused & found)]
    return wrong


async def live(
    path: Path, disk: FailingDisk, kinds: tuple[Operation, ...], first: int | None, error: type[apsw.Error]
) -> tuple[int, list[str]]:
    """A life of a store in which operation number `first` fails. How many there were, and the promises it broke."""
    db = connect(str(path), vfs=disk.name)
    store = SqliteStore(str(path), db, SteadyClock(VirtualClock()), release=db.close)
    disk.fail(*kinds, first=first, count=1, error=error)
    ledger = Ledger()
    async with asyncio.timeout(30):
        await work(store, ledger)
    calls = disk.calls
    disk.heal()
    if store.broken.is_set():
        wrong = [] if store.failure else ["it is broken without a sentence"]
    else:
        wrong = broken_promises(db, ledger)
        await store.look_for_room()
        new = Ledger()
        await new.note("msg_1000", "accepted", store.accept([publication(1000)], now_ms=NOW))
        wrong += [] if new.promised else ["it does not go on"]
    was_broken = store.broken.is_set()
    await store.close()
    again = connect(str(path))
    if was_broken:
        wrong += broken_promises(again, ledger)
    elif again.execute("SELECT count(*) FROM messages WHERE id = 'msg_1000'").get != 1:
        wrong.append("what it accepted afterwards is lost")
    again.close()
    return calls, wrong


@pytest.mark.parametrize(("error", "kinds"), FAULTS, ids=["full", "input and output"])
@pytest.mark.parametrize("step", [17, pytest.param(1, marks=pytest.mark.release)])
async def test_whichever_operation_fails_no_answer_is_better_than_the_disk(
    tmp_path: Path, failing_disk: FailingDisk, error: type[apsw.Error], kinds: tuple[Operation, ...], step: int
) -> None:
    count, wrong = await live(tmp_path / "sound.db", failing_disk, kinds, None, error)
    assert (count > 50, wrong) == (True, [])
    for first in range(1, count + 1, step):
        _, wrong = await live(tmp_path / f"{first}.db", failing_disk, kinds, first, error)
        assert wrong == [], f"operation {first} of {count}"


# -- starts


@pytest.fixture
def default_disk() -> Iterator[FailingDisk]:
    """The disk of every database that the test opens."""
    with failing(default=True) as disk:
        yield disk


async def left_by_a_crash(path: Path) -> None:
    """A database as a dead process leaves it: one message in the file, one in its log, and an attempt in flight."""
    store, _ = await SqliteStore.open(str(path), VirtualClock())
    await store.accept([publication(1)], now_ms=NOW)
    await store.close()
    store, _ = await SqliteStore.open(str(path), VirtualClock())
    await store.accept([publication(2)], now_ms=NOW)
    await claimed(store, 1)
    crashed = path.with_name("crashed.db")
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{path}{suffix}", f"{crashed}{suffix}")
    await store.close()


@pytest.mark.parametrize(
    ("error", "kinds"),
    [*FAULTS, (apsw.CantOpenError, ("open",))],
    ids=["full", "input and output", "open"],
)
@pytest.mark.parametrize("step", [17, pytest.param(1, marks=pytest.mark.release)])
async def test_whichever_operation_of_a_start_fails_it_says_so_and_the_next_start_finds_everything(
    tmp_path: Path, default_disk: FailingDisk, error: type[apsw.Error], kinds: tuple[Operation, ...], step: int
) -> None:
    await left_by_a_crash(tmp_path / "store.db")

    async def start(number: int, first: int | None) -> tuple[int, StoreError | None]:
        path = tmp_path / f"{number}.db"
        for suffix in ("", "-wal"):
            shutil.copyfile(tmp_path / f"crashed.db{suffix}", f"{path}{suffix}")
        default_disk.fail(*kinds, first=first, count=1, error=error)
        store, failure = None, None
        try:
            store, _ = await SqliteStore.open(str(path), VirtualClock())
        except StoreError as raised:
            failure = raised
        calls = default_disk.calls
        default_disk.heal()
        if store is not None:
            await store.close()
        again, recovery = await SqliteStore.open(str(path), VirtualClock())
        assert recovery.waiting == 2, f"operation {first}"
        await again.close()
        return calls, failure

    count, failure = await start(0, None)
    assert failure is None
    failures = [await start(first, first) for first in range(1, count + 1, step)]
    assert any(failure for _, failure in failures)
