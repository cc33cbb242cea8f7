"""Messages parked in 20,000 lots: what a claim costs, whose turn it is, and that every lot gets its turn."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import FrameType
from typing import Any, Self

import apsw
import pytest

from qtasks.broker.core.values import ClaimBatch, Rooms
from qtasks.broker.store.connection import run_in_transaction
from qtasks.broker.store.verbs import accept, claim, sums
from qtasks.broker.store.verbs.parking import parked, prefixes
from qtasks.protocol.messages import PublishOptions
from tests.support.broker import publication
from tests.support.store import InlineStore

MANY = 20_000
READING = MANY // parked.READ_LOTS + 2
"""Claims until all lots are known again after a start."""
BOUND = 80_000
"""Steps of SQLite and calls of Python functions in one claim: a few milliseconds, of which 64 starts take most."""
NO_ROOM = Rooms(0)
WAITS = PublishOptions(interrupted_for_ms=10**9)


@dataclass
class Lots:
    """Hosts with one parked message each, as a broker finds them that has just started."""

    store: InlineStore

    def park(self, count: int, options: PublishOptions | None = None) -> None:
        """Park a message at each of `count` hosts."""
        urls = [f"http://h{number}:80/jobs/add" for number in range(count)]
        made = [publication(n, url=url, options=options or PublishOptions()) for n, url in enumerate(urls)]
        accept.accept(self.store.db, made, now_ms=self.store.now_ms)
        self.store.db.execute(f"UPDATE messages SET {sums.changes(stage='2')}")

    def go_down(self) -> None:
        """All prefixes refuse: their next probe is in a minute."""
        self.store.db.execute(
            "INSERT INTO prefixes (lot, down_since_ms, probe_ms) SELECT lot, ?1, ?1 + 60000 FROM messages",
            (self.store.now_ms,),
        )

    def claim(self, rooms: Rooms, limit: int = 64) -> ClaimBatch:
        return run_in_transaction(self.store.db, claim.claim, now_ms=self.store.now_ms, limit=limit, rooms=rooms)

    def settle_down(self, rooms: Rooms) -> list[str]:
        """Claim until there is no more; the hosts of the claims."""
        found: list[str] = []
        for _ in range(2 * READING + MANY // 100):
            batch = self.claim(rooms)
            found += [one.host for one in batch.claims]
            if not batch.has_more:
                return found
        pytest.fail("the claims never end")


@pytest.fixture
def lots(store: InlineStore) -> Lots:
    return Lots(store)


class Steps:
    """Counts the steps of SQLite and the calls of Python functions while it is entered."""

    def __init__(self, db: apsw.Connection) -> None:
        self.count = 0
        self._db = db

    def __enter__(self) -> Self:
        self._db.trace_v2(apsw.SQLITE_TRACE_PROFILE, self._statement)
        sys.setprofile(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        self._db.trace_v2(0)

    def _statement(self, event: dict[str, Any]) -> None:
        self.count += event["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"]

    def _call(self, _frame: FrameType, event: str, _argument: object) -> None:
        self.count += event == "call"


def rooms_of(known: int, free: int = 1000) -> Rooms:
    """The rooms while `known` hosts are known, each without room."""
    return Rooms(9, {f"h{number}:80": 0 for number in range(known)}, free=free)


@pytest.mark.parametrize("known", [0, 1000])
def test_a_claim_takes_as_many_steps_however_many_lots_have_parked_messages(lots: Lots, known: int) -> None:
    lots.park(MANY)
    lots.store.accept(MANY)
    for rooms in [rooms_of(known)] * READING + [Rooms(0, free=0)] * 3 + [rooms_of(known)] * 3:
        with Steps(lots.store.db) as steps:
            lots.claim(rooms)
        assert steps.count < BOUND


def test_a_claim_takes_few_steps_while_all_prefixes_are_down(lots: Lots) -> None:
    lots.park(MANY, WAITS)
    lots.go_down()
    assert lots.settle_down(Rooms(0)) == []  # all are known, and none rests yet
    for _ in range(READING):
        with Steps(lots.store.db) as steps:
            lots.claim(Rooms(9))
        assert steps.count < BOUND
    assert lots.settle_down(Rooms(9)) == []
    with Steps(lots.store.db) as steps:
        assert lots.claim(Rooms(9)).has_more is False
    assert steps.count < 500  # they rest: nothing is left to look at
    lots.store.now_ms += 60_000  # all may be probed
    with Steps(lots.store.db) as steps:
        assert len(lots.claim(Rooms(9)).claims) == 64
    assert steps.count < BOUND


def test_every_lot_gets_its_turn(lots: Lots) -> None:
    lots.park(2_000)
    for number in range(0, 2_000, 7):
        lots.store.accept(2_000 + number, url=f"http://h{number}:80/again")
    found: list[str] = []
    while batch := lots.claim(rooms_of(100), limit=10).claims:
        found += [one.host for one in batch]
    assert sorted(set(found)) == sorted(f"h{number}:80" for number in range(100, 2_000))
    assert lots.settle_down(Rooms(9)) != []
    assert set(parked.of(lots.store.db)) == set()


def test_a_host_that_is_known_has_its_turn_at_once_beside_many_that_may_not_start(lots: Lots) -> None:
    lots.park(MANY)
    lots.settle_down(Rooms(0))
    [claimed] = lots.claim(Rooms(0, {"h7777:80": 3})).claims
    assert claimed.host == "h7777:80"


def test_a_claim_says_that_there_is_more_only_while_something_may_start(lots: Lots) -> None:
    lots.park(MANY)
    assert lots.settle_down(Rooms(0)) == []
    assert lots.claim(Rooms(0)).has_more is False
    first = lots.claim(Rooms(1), limit=10)
    assert (len(first.claims), first.has_more) == (10, True)


def test_hosts_take_turns(lots: Lots) -> None:
    lots.park(3)
    for number in range(3, 9):
        lots.store.accept(number, url=f"http://h{number % 3}:80/again")
    turns = [[one.host for one in lots.claim(Rooms(9), limit=1).claims] for _ in range(9)]
    assert turns == [["h0:80"], ["h1:80"], ["h2:80"]] * 3


def test_a_host_that_has_several_turns_in_a_claim_gets_each_of_its_messages_once(lots: Lots) -> None:
    lots.park(2)
    for number in range(2, 7):
        lots.store.accept(number, url="http://h0:80/again")
    assert lots.claim(NO_ROOM).claims == ()  # those of the first host are parked, too
    claimed = [one.row.id for one in lots.claim(Rooms(9), limit=8).claims]
    assert sorted(claimed) == [f"msg_{number}" for number in range(7)]


@pytest.mark.parametrize("answered", [True, False])
def test_a_resting_lot_starts_when_its_prefix_answers_and_when_its_next_probe_comes_early(
    lots: Lots, answered: bool
) -> None:
    lots.park(5, WAITS)
    lots.go_down()
    assert lots.settle_down(Rooms(9)) == []
    if answered:
        prefixes.note_answer(lots.store.db, "h3:80/jobs/")
    else:
        probe_ms = prefixes.note_refusal(lots.store.db, "h3:80/jobs/", is_probe=True, now_ms=lots.store.now_ms)
        assert lots.settle_down(Rooms(9)) == []
        lots.store.now_ms = probe_ms
    assert lots.settle_down(Rooms(9)) == ["h3:80"]


def test_lots_that_a_transaction_emptied_and_that_was_rolled_back_are_found_again(lots: Lots) -> None:
    lots.park(5)

    def claim_and_fail(db: apsw.Connection) -> None:
        assert len(claim.claim(db, now_ms=lots.store.now_ms, limit=64, rooms=Rooms(9)).claims) == 5
        claim.claim(db, now_ms=lots.store.now_ms, limit=64, rooms=Rooms(9))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        run_in_transaction(lots.store.db, claim_and_fail)
    assert len(lots.settle_down(Rooms(9))) == 5
