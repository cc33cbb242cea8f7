"""What strangers and time add is bounded: answers to failed attempts, and names that nobody uses any more."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from qtasks.broker.core.rules import Trigger
from qtasks.broker.core.values import DAY_MS, LogCriteria, Retention
from qtasks.broker.loops import outcome_recorder
from qtasks.broker.store.verbs import admission, flow_control, queues
from qtasks.broker.store.verbs.log_entries import CUT_TO, KEPT_WHOLE
from qtasks.broker.store.verbs.parking import prefixes
from qtasks.broker.store.verbs.reads import queries
from qtasks.broker.store.verbs.retention import BATCH, prune, prune_messages, used_bytes
from qtasks.protocol.headers import DISPATCHER_HEADER
from qtasks.protocol.messages import FlowControl, PublishOptions, Response
from tests.support.api import Service
from tests.support.broker import ACCOUNT
from tests.support.store import InlineStore

DOCS = Path(__file__).parents[2] / "docs"
MIB = 1024 * 1024
KEEP = Retention(max_bytes=None)
KEYED = PublishOptions(flow_control=FlowControl("key", parallelism=1, rate=5, period_s=60))


def fail_attempts(store: InlineStore, count: int, size: int) -> None:
    """Make `count` attempts of the only message; each is answered 500 with a body of `size` bytes, all different."""
    for n in range(count):
        answer = Response(status=500, headers=(("X-Attempt", str(n)),), body=f"{n:04d}".encode() * (size // 4))
        store.end(store.claim(), Trigger.RETRY, outcome=answer)


def answers(store: InlineStore) -> list[Response]:
    page = queries.log(store.db, ACCOUNT, LogCriteria(oldest_first=True), cursor=None, count=10_000)
    return [entry.response for entry in page.items if entry.response is not None]


def prune_all(store: InlineStore, keep: Retention = KEEP) -> None:
    while prune(store.db, keep, now_ms=store.now_ms):
        pass


# -- answers


def test_the_log_keeps_the_first_and_the_last_answer_in_full_and_the_beginning_of_those_between(
    store: InlineStore,
) -> None:
    store.accept(1)
    fail_attempts(store, 5, 4000)
    first, *between, last = answers(store)
    assert [first.body, last.body] == [b"0000" * 1000, b"0004" * 1000]
    assert [first.headers, last.headers] == [(("X-Attempt", "0"),), (("X-Attempt", "4"),)]
    assert [one.status for one in between] == [500] * 3
    assert [one.headers for one in between] == [()] * 3
    assert between[0].body.startswith(b"0001" * (CUT_TO // 4) + b"... (cut: ")
    assert b"an answer of 4019 bytes" in between[0].body


def test_short_answers_all_stay_as_they_are(store: InlineStore) -> None:
    store.accept(1)
    fail_attempts(store, 5, KEPT_WHOLE - 100)
    assert [one.headers for one in answers(store)] == [(("X-Attempt", str(n)),) for n in range(5)]
    assert {len(one.body) for one in answers(store)} == {KEPT_WHOLE - 100}


@pytest.mark.parametrize("attempts", [100, pytest.param(1_000, marks=pytest.mark.release)])
def test_four_bytes_do_not_become_many_megabytes_of_answers(store: InlineStore, attempts: int) -> None:
    store.accept(1, body=b"four", max_retries=999)
    before = used_bytes(store.db)
    fail_attempts(store, attempts, MIB)
    assert used_bytes(store.db) - before < 3 * MIB


def test_answers_of_one_message_never_cut_those_of_another(store: InlineStore) -> None:
    store.accept(1, 2)
    for _ in range(3):
        for claim in store.claims(2):
            store.end(claim, Trigger.RETRY, outcome=Response(status=500, body=claim.message.id.encode() * 1000))
    whole = [one.body for one in answers(store) if b"cut" not in one.body]
    assert sorted(whole) == sorted(body for n in (1, 2) for body in [f"msg_{n}".encode() * 1000] * 2)


def test_beyond_the_size_long_answers_of_waiting_messages_are_cut_before_dead_letters_go(store: InlineStore) -> None:
    store.accept(*range(1, 11))
    for claim in store.claims(10):
        store.end(claim, Trigger.RETRY, outcome=Response(status=500, body=bytes(100_000)))
    store.accept(11, max_retries=0)
    [claim] = [claim for claim in store.claims() if claim.message.id == "msg_11"]
    store.end(claim, Trigger.FAIL, outcome=Response(status=500, body=bytes(100_000)))
    keep = replace(KEEP, max_bytes=680_000)
    assert prune_messages(store.db, keep, now_ms=store.now_ms, limit=9) == 9
    assert prune_messages(store.db, keep, now_ms=store.now_ms) == 0, "it is small enough"
    assert [len(one.body) > KEPT_WHOLE for one in answers(store)] == [False] * 9 + [True] * 2
    assert [len(letter.response.body) for letter in store.dead() if letter.response] == [100_000]
    assert len(store.dead_ids()) == 1


# -- names


def keys(store: InlineStore) -> list[str]:
    return [key.key for key in flow_control.flow_keys(store.db, ACCOUNT, search="", now_ms=store.now_ms)]


def test_a_flow_control_key_that_nobody_uses_goes_with_the_messages_that_used_it(store: InlineStore) -> None:
    store.accept(1, options=KEYED)
    store.end(store.claim())
    store.now_ms += 7 * DAY_MS
    prune_all(store)
    assert keys(store) == ["key"]
    store.now_ms += 1
    prune_all(store)
    assert keys(store) == []


@pytest.mark.parametrize("waits", ["for its time", "in the line", "parked"])
def test_a_key_stays_while_a_message_of_it_waits(store: InlineStore, waits: str) -> None:
    later_ms = store.now_ms + 300 * DAY_MS
    store.accept(1, options=KEYED, not_before_ms=later_ms if waits == "for its time" else store.now_ms)
    if waits == "in the line":
        store.accept(2, options=KEYED)
        store.claim()
    if waits == "parked":
        store.claims(room=0)
    store.now_ms += 100 * DAY_MS
    prune_all(store)
    [key] = flow_control.flow_keys(store.db, ACCOUNT, search="", now_ms=store.now_ms)
    assert (key.parallelism, key.rate, key.period_s) == (1, 5, 60)


@pytest.mark.parametrize("change", ["paused", "pinned parallelism", "pinned rate"])
def test_what_an_operator_has_set_stays_until_it_is_undone(store: InlineStore, change: str) -> None:
    db, now_ms = store.db, store.now_ms
    if change == "paused":
        flow_control.pause_flow_key(db, ACCOUNT, "key", paused=True, now_ms=now_ms)
    else:
        parallelism, rate = (2, None) if change == "pinned parallelism" else (None, 2)
        flow_control.pin_flow_key(db, ACCOUNT, "key", parallelism=parallelism, rate=rate, period_s=None, now_ms=now_ms)
    store.now_ms += 1000 * DAY_MS
    prune_all(store)
    assert keys(store) == ["key"]
    flow_control.pause_flow_key(db, ACCOUNT, "key", paused=False, now_ms=store.now_ms)
    flow_control.unpin_flow_key(db, ACCOUNT, "key", parallelism=True, rate=True, now_ms=store.now_ms)
    prune_all(store)
    assert keys(store) == ["key"]
    store.now_ms += 7 * DAY_MS + 1
    prune_all(store)
    assert keys(store) == []


def test_a_key_stays_until_its_window_has_ended_so_that_its_rate_holds(store: InlineStore) -> None:
    week = PublishOptions(flow_control=FlowControl("key", rate=1, period_s=7 * 24 * 60 * 60))
    store.accept(1, options=week)
    store.end(store.claim())
    store.now_ms += 6 * DAY_MS
    prune_all(store, Retention(delivered_ms=DAY_MS))
    store.accept(2, options=week)
    assert store.claims() == []


def test_a_key_that_is_used_again_is_as_a_new_one(store: InlineStore) -> None:
    for day in range(0, 60, 6):
        store.accept(day, options=KEYED)
        store.end(store.claim())
        store.now_ms += 6 * DAY_MS
        prune_all(store)
        assert keys(store) == ["key"], day


def test_keys_are_removed_in_batches_and_those_in_use_do_not_hide_the_others(store: InlineStore) -> None:
    def keyed(name: str) -> PublishOptions:
        return PublishOptions(flow_control=FlowControl(name, parallelism=1))

    for n in range(BATCH + 20):
        store.accept(n, options=keyed(f"open {n}"))
        admission.configure_key(store.db, ACCOUNT, FlowControl(f"unused {n}", parallelism=1), store.now_ms + 1)
    store.now_ms += 8 * DAY_MS
    prune_all(store)
    assert sorted(keys(store)) == sorted(f"open {n}" for n in range(BATCH + 20))


def test_a_queue_that_only_enqueue_has_made_goes_when_it_was_empty_for_long(store: InlineStore) -> None:
    store.accept(1, queue="by enqueue")
    store.accept(2, queue="waits")
    queues.upsert_queue(store.db, ACCOUNT, "by hand", parallelism=None, paused=None, now_ms=store.now_ms)
    store.accept(3, queue="widened")
    queues.upsert_queue(store.db, ACCOUNT, "widened", parallelism=2, paused=None, now_ms=store.now_ms)
    store.accept(4, queue="paused")
    queues.pause_queue(store.db, ACCOUNT, "paused", paused=True, now_ms=store.now_ms)
    for claim in store.claims():
        if claim.message.queue != "waits":
            store.end(claim)
    store.now_ms += 8 * DAY_MS
    prune_all(store)
    names = [queue.name for queue in queues.queues(store.db, ACCOUNT)]
    assert names == ["by hand", "paused", "waits", "widened"]


def test_a_message_that_waits_for_its_time_finds_its_queue_again(store: InlineStore) -> None:
    store.accept(1, queue="q", not_before_ms=store.now_ms + 100 * DAY_MS)
    store.now_ms += 50 * DAY_MS
    prune_all(store)
    assert queues.queues(store.db, ACCOUNT) == []
    store.now_ms += 50 * DAY_MS
    assert store.claim().message.queue == "q"


def test_a_prefix_is_forgotten_once_nothing_was_sent_to_it_for_long(store: InlineStore) -> None:
    db, start_ms = store.db, store.now_ms
    prefixes.note_dispatcher(db, "unused", now_ms=start_ms)
    prefixes.note_refusal(db, "down", is_probe=False, now_ms=start_ms)
    prefixes.note_dispatcher(db, "used", now_ms=start_ms)
    prefixes.note_use(db, "used", prefixes.read(db, "used"), now_ms=start_ms + 2 * DAY_MS)
    store.now_ms = start_ms + 8 * DAY_MS
    prune_all(store)
    assert [row[0] for row in db.execute("SELECT lot FROM prefixes")] == ["used"]


# -- everything else


def test_the_docs_say_of_every_table_what_bounds_it(store: InlineStore) -> None:
    tables = {row[0] for row in store.db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    section = (DOCS / "operations" / "disk.md").read_text().split("## What grows")[1]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert tables == named


@pytest.mark.anyio
async def test_the_broker_remembers_a_bounded_number_of_url_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome_recorder, "MAX_PREFIXES", 3)
    service = await Service.open()
    service.answer(Response(status=200, headers=((DISPATCHER_HEADER, "1"),)))
    for n in range(10):
        await service.post(f"/v2/publish/http://127.0.0.1:8000/app{n}/task", {"Qtasks-Interrupted-For": "1h"})
    await service.broker.deliverer.run_once()
    assert len(service.broker.deliverer._recorder._answered) == 3
    await service.close()
