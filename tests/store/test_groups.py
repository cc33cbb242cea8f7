"""Accepts, claims and settles in groups: they leave the same database as one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtasks.broker.core import rules
from qtasks.broker.core.values import Claim, Publication, Rooms, Settled, Settlement
from qtasks.broker.ports import Failure
from qtasks.broker.store.verbs import accept, cancel, claim, settle
from qtasks.protocol import wire
from qtasks.protocol.headers import DISPATCHER_HEADER
from qtasks.protocol.messages import FlowControl, PublishOptions, Response, State
from tests.support import damage
from tests.support.broker import ACCOUNT, message
from tests.support.store import InlineStore

TABLES = ("messages", "stored_bodies", "labels", "log", "dead_letters", "queues", "flow_keys", "prefixes")
OPTIONS = (
    PublishOptions(),
    PublishOptions(interrupted_for_ms=60_000),
    PublishOptions(interrupted_for_ms=60_000, call_id="call"),
    PublishOptions(labels=("a", "b")),
    PublishOptions(callback="http://127.0.0.1:9000/callback"),
    PublishOptions(end_callback="http://127.0.0.1:9000/end"),
    PublishOptions(flow_control=FlowControl("key", parallelism=2)),
)
FINE = Response(status=200)
OUTCOMES: tuple[Response | Failure, ...] = (
    FINE,
    FINE,
    Response(status=200, headers=((DISPATCHER_HEADER, "1"),)),
    Response(status=500, body=b"x" * 2_000),
    Response(status=400, headers=(("Upstash-NonRetryable-Error", "true"),)),
    Failure("connection_lost", "cut", interrupted=True, mid_run=True),
)
SettleAll = Callable[[InlineStore, Sequence[Settlement]], list[Settled | None]]


@pytest.fixture
def store() -> Iterator[InlineStore]:
    opened = InlineStore()
    yield opened
    opened.close()


def content(store: InlineStore) -> dict[str, list[Any]]:
    return {table: store.db.execute(f"SELECT * FROM {table}").fetchall() for table in TABLES}


def publications(kinds: Sequence[int], queue_of: Callable[[int], str | None]) -> list[Publication]:
    made = []
    for number, kind in enumerate(kinds, 1):
        one = replace(message(number, options=OPTIONS[kind % len(OPTIONS)]), queue=queue_of(kind))
        made.append(Publication(one, wire.host_of(one.url), f"key_{number // 2}" if kind % 3 == 0 else None))
    return made


def settlement(claim: Claim, outcome: Response | Failure, now_ms: int) -> Settlement:
    evaluation = rules.evaluate(claim.message, outcome, now_ms=now_ms, situation=claim.situation)
    has_callback = claim.message.options.callback is not None
    ids = (
        (f"cb_{claim.seq}_{claim.token}_{now_ms}", f"fcb_{claim.seq}_{claim.token}_{now_ms}") if has_callback else None
    )
    return Settlement(claim, outcome, evaluation, ids)


def in_a_group(store: InlineStore, ended: Sequence[Settlement]) -> list[Settled | None]:
    return settle.settle_all(store.db, ended, now_ms=store.now_ms)


def one_by_one(store: InlineStore, ended: Sequence[Settlement]) -> list[Settled | None]:
    return [settle.settle(store.db, one, now_ms=store.now_ms) for one in ended]


def history(
    kinds: list[int], outcomes: list[int], cancelled: set[int], settle_all: SettleAll
) -> tuple[list[Any], dict[str, list[Any]]]:
    """Two rounds of claims, each settled at once; the results, and what is stored then."""
    store = InlineStore()
    accept.accept(store.db, publications(kinds, lambda kind: "q" if kind == 8 else None), now_ms=store.now_ms)
    results: list[Any] = []
    for _ in range(2):
        claims = store.claims()
        cancel.cancel(store.db, ACCOUNT, [f"msg_{number}" for number in cancelled], now_ms=store.now_ms)
        store.now_ms += 7
        ended = [
            settlement(one, OUTCOMES[outcome % len(OUTCOMES)], store.now_ms)
            for one, outcome in zip(claims, outcomes, strict=False)
        ]
        stale = [replace(one, claim=replace(one.claim, token=one.claim.token + 1)) for one in ended[::3]]
        results.append(settle_all(store, [*stale, *ended, *ended[:2]]))
        store.now_ms += 60_000
    stored = content(store)
    store.close()
    return results, stored


numbers = st.lists(st.integers(0, 8), min_size=1, max_size=12)


@settings(max_examples=50)
@given(numbers, numbers, st.sets(st.integers(1, 6), max_size=2))
def test_a_group_of_ends_leaves_what_the_same_ends_leave_one_by_one(
    kinds: list[int], outcomes: list[int], cancelled: set[int]
) -> None:
    assert history(kinds, outcomes, cancelled, in_a_group) == history(kinds, outcomes, cancelled, one_by_one)


@settings(max_examples=50)
@given(numbers)
def test_messages_accepted_together_are_stored_as_those_accepted_one_by_one(kinds: list[int]) -> None:
    stored = []
    for size in (len(kinds), 1):
        store = InlineStore()
        made = publications(kinds, lambda kind: "q" if kind == 8 else None)
        answers = [
            answer
            for start in range(0, len(made), size)
            for answer in accept.accept(store.db, made[start : start + size], now_ms=store.now_ms)
        ]
        stored.append((answers, content(store)))
        store.close()
    assert stored[0] == stored[1]


@settings(max_examples=50)
@given(numbers)
def test_messages_claimed_together_are_stored_as_those_claimed_one_by_one(kinds: list[int]) -> None:
    stored = []
    for limit in (100, 1):
        store = InlineStore()
        accept.accept(store.db, publications(kinds, lambda kind: "q" if kind == 8 else None), now_ms=store.now_ms)
        claimed: list[tuple[int, int]] = []
        has_more = True
        while has_more:
            batch = claim.claim(store.db, now_ms=store.now_ms, limit=limit, rooms=Rooms(1_000))
            claimed += [(one.seq, one.token) for one in batch.claims]
            has_more = batch.has_more
        stored.append((claimed, content(store)))
        store.close()
    assert stored[0] == stored[1]


def test_a_stale_token_changes_nothing_and_fails_no_neighbour(store: InlineStore) -> None:
    store.accept(1, 2, 3)
    first = store.claims()
    store.crash()
    again = {one.seq: one for one in store.claims()}
    ended = [settlement(one, FINE, store.now_ms) for one in (again[1], first[1], again[3])]
    results = in_a_group(store, ended)
    assert [None if result is None else result.state for result in results] == [State.DELIVERED, None, State.DELIVERED]
    assert store.states("msg_2")[-1] is State.ACTIVE


def test_a_damaged_message_in_a_group_is_set_aside_and_its_neighbours_are_delivered(store: InlineStore) -> None:
    store.accept(1, 2, 3)
    ended = [settlement(one, FINE, store.now_ms) for one in store.claims()]
    damage.put(store.db, "max_retries", b"many", seq=2)  # SQLite refuses to change this row
    results = in_a_group(store, ended)
    assert [result is not None for result in results] == [True, False, True]
    assert [letter.message.id for letter in store.dead()] == ["msg_2"]
    assert [store.states(f"msg_{number}")[-1] for number in (1, 3)] == [State.DELIVERED] * 2
