"""Queues and flow-control keys: who may start, in which order, across restarts (docs/protocol.md 5.6, 5.10)."""

from __future__ import annotations

import time

import pytest

from qtasks.broker.core.rules import Stage, Trigger
from qtasks.broker.core.values import Claim, Rooms
from qtasks.broker.store.verbs import accept, claim, flow_control, queues
from qtasks.protocol.messages import FlowControl, PublishOptions
from tests.support.broker import ACCOUNT, publication
from tests.support.store import InlineStore, ids

CALLED = PublishOptions(callback="https://cb.example/")


def limited(
    key: str = "k", parallelism: int | None = None, rate: int | None = None, period_s: int = 1
) -> PublishOptions:
    return PublishOptions(flow_control=FlowControl(key, parallelism, rate, period_s))


def own(claims: list[Claim]) -> list[Claim]:
    return [one for one in claims if one.message.id.startswith("msg_")]


# -- queues


def test_a_queue_starts_one_after_the_other_in_order_of_acceptance(store: InlineStore) -> None:
    store.accept(3, 1, 2, queue="q")
    order = []
    while claims := store.claims():
        [one] = claims
        order.append(one.message.id)
        assert store.claims() == []
        store.end(one)
    assert order == ["msg_3", "msg_1", "msg_2"]


def test_the_head_blocks_its_queue_through_all_its_retries_and_nobody_elses(store: InlineStore) -> None:
    store.accept(1, 2, queue="q")
    store.accept(3, queue="other")
    first, third = store.claims()
    assert ids([first, third]) == ["msg_1", "msg_3"]
    store.end(first, Trigger.RETRY, after_ms=1000)
    store.end(third)
    assert store.claims() == []
    assert store.next_due() == 1000
    store.now_ms += 1000
    again = store.claim()
    assert ids([again]) == ["msg_1"]
    store.end(again, Trigger.FAIL)
    assert ids(store.claims()) == ["msg_2"]


def test_a_queue_waits_until_the_callbacks_of_its_head_have_ended(store: InlineStore) -> None:
    store.accept(1, 2, queue="q", options=CALLED)
    [callback] = store.end(store.claim(), Trigger.RETRY).created
    claims = store.claims()
    assert sorted(ids(claims)) == sorted([callback.id, "msg_1"])
    by_id = {one.message.id: one for one in claims}
    [second] = store.end(by_id["msg_1"]).created
    store.end(by_id[callback.id], Trigger.RETRY, after_ms=5)
    claim = store.claim()
    assert claim.message.id == second.id
    store.end(claim)
    assert store.claims() == []
    store.now_ms += 5
    store.end(store.claim(), Trigger.FAIL)
    assert ids(store.claims()) == ["msg_2"]


def test_cancelling_the_callback_lets_the_queue_go_on(store: InlineStore) -> None:
    store.accept(1, 2, queue="q", options=CALLED)
    [callback] = store.end(store.claim()).created
    store.cancel(callback.id)
    assert ids(store.claims()) == ["msg_2"]


def test_parallelism_is_how_many_may_run_at_once(store: InlineStore) -> None:
    queues.upsert_queue(store.db, ACCOUNT, "q", parallelism=3, paused=None, now_ms=store.now_ms)
    store.accept(*range(6), queue="q")
    running = store.claims()
    assert ids(running) == ["msg_0", "msg_1", "msg_2"]
    queues.upsert_queue(store.db, ACCOUNT, "q", parallelism=1, paused=None, now_ms=store.now_ms)
    store.end(running[0])
    store.end(running[1])
    assert store.claims() == []
    store.end(running[2])
    assert ids(store.claims()) == ["msg_3"]
    queues.upsert_queue(store.db, ACCOUNT, "q", parallelism=2, paused=None, now_ms=store.now_ms)
    assert ids(store.claims()) == ["msg_4"]


def test_a_paused_queue_takes_messages_and_starts_none(store: InlineStore) -> None:
    store.accept(1, 2, queue="q")
    running = store.claim()
    queues.pause_queue(store.db, ACCOUNT, "q", paused=True, now_ms=store.now_ms)
    store.accept(3, queue="q")
    store.end(running, Trigger.RETRY, after_ms=1)
    store.now_ms += 10
    assert store.claims() == []
    queues.pause_queue(store.db, ACCOUNT, "q", paused=False, now_ms=store.now_ms)
    again = store.claim()
    assert ids([again]) == ["msg_1"]
    store.end(again)
    assert ids(store.claims()) == ["msg_2"]


def test_a_pause_stops_what_was_admitted_and_has_not_started(store: InlineStore) -> None:
    store.accept(1, queue="q")
    queues.pause_queue(store.db, ACCOUNT, "q", paused=True, now_ms=store.now_ms)
    assert store.claims() == []
    queues.pause_queue(store.db, ACCOUNT, "q", paused=True, now_ms=store.now_ms)
    queues.pause_queue(store.db, ACCOUNT, "q", paused=False, now_ms=store.now_ms)
    assert ids(store.claims()) == ["msg_1"]


def test_cancelling_a_waiting_message_takes_it_out_of_the_line(store: InlineStore) -> None:
    store.accept(1, 2, 3, queue="q")
    first = store.claim()
    assert store.cancel("msg_2") == 1
    store.end(first)
    assert ids(store.claims()) == ["msg_3"]


def test_cancelling_the_head_lets_the_next_start(store: InlineStore) -> None:
    store.accept(1, 2, 3, queue="q")
    assert store.cancel("msg_1", "msg_2") == 2
    assert ids(store.claims()) == ["msg_3"]


def test_after_a_crash_the_message_that_was_cut_goes_first(store: InlineStore) -> None:
    store.accept(1, 2, queue="q")
    store.claim()
    store.crash()
    again = store.claim()
    assert ids([again]) == ["msg_1"]
    store.end(again)
    assert ids(store.claims()) == ["msg_2"]


def test_a_crash_in_a_paused_queue_starts_nothing(store: InlineStore) -> None:
    store.accept(1, queue="q")
    store.claim()
    queues.pause_queue(store.db, ACCOUNT, "q", paused=True, now_ms=store.now_ms)
    store.crash()
    assert store.claims() == []
    queues.pause_queue(store.db, ACCOUNT, "q", paused=False, now_ms=store.now_ms)
    assert ids(store.claims()) == ["msg_1"]


def test_a_delayed_message_joins_its_queue_when_its_time_comes(store: InlineStore) -> None:
    store.accept(1, queue="q", not_before_ms=store.now_ms + 50)
    store.accept(2, 3, queue="q")
    second = store.claim()
    store.now_ms += 50
    assert store.claims() == []
    store.accept(4, queue="q")
    claims, order = [second], []
    while claims:
        order += ids(claims)
        store.end(claims[0])
        claims = store.claims()
    assert order == ["msg_2", "msg_3", "msg_1", "msg_4"]


def test_deleting_a_queue_cancels_what_waits_and_lets_the_running_one_finish(store: InlineStore) -> None:
    store.accept(1, 2, 3, queue="q")
    running = store.claim()
    while queues.drop_queue(store.db, ACCOUNT, "q", limit=1, now_ms=store.now_ms).last is not None:
        pass
    assert [store.stage(f"msg_{n}") for n in (2, 3)] == [Stage.CANCELED, Stage.CANCELED]
    store.accept(4, queue="q")
    assert ids(store.claims()) == ["msg_4"]
    store.end(running)
    assert store.stage("msg_1") is Stage.DELIVERED


def test_a_delayed_message_whose_queue_was_deleted_meanwhile_makes_it_again(store: InlineStore) -> None:
    store.accept(1, queue="q", not_before_ms=store.now_ms + 5)
    assert queues.drop_queue(store.db, ACCOUNT, "q", limit=9, now_ms=store.now_ms).last is None
    store.now_ms += 5
    assert ids(store.claims()) == ["msg_1"]


def test_fewer_slots_are_taken_back_from_those_who_have_not_started(store: InlineStore) -> None:
    queues.upsert_queue(store.db, ACCOUNT, "q", parallelism=3, paused=None, now_ms=store.now_ms)
    store.accept(1, queue="q")
    running = store.claim()
    store.accept(2, 3, queue="q")
    queues.upsert_queue(store.db, ACCOUNT, "q", parallelism=1, paused=None, now_ms=store.now_ms)
    assert store.claims() == []
    store.end(running)
    assert ids(store.claims()) == ["msg_2"]


def test_queues_of_two_accounts_never_meet(store: InlineStore) -> None:
    store.accept(1, 2, queue="q")
    store.accept(3, 4, queue="q", account=2)
    assert ids(store.claims()) == ["msg_1", "msg_3"]


def test_the_lag_of_a_queue_counts_what_is_unfinished(store: InlineStore) -> None:
    store.accept(1, 2, 3, queue="q", options=CALLED)
    assert queues.queue(store.db, ACCOUNT, "q").lag == 3  # type: ignore[union-attr]
    store.end(store.claim())
    assert queues.queue(store.db, ACCOUNT, "q").lag == 2  # type: ignore[union-attr]


# -- flow control


def test_a_key_lets_no_more_run_at_once_than_its_parallelism(store: InlineStore) -> None:
    store.accept(*range(5), options=limited(parallelism=2))
    running = store.claims()
    assert ids(running) == ["msg_0", "msg_1"]
    store.end(running[1])
    assert ids(store.claims()) == ["msg_2"]
    store.accept(9, options=limited(parallelism=3))
    assert ids(store.claims()) == ["msg_3"]


def test_a_key_lets_no_more_start_in_a_window_than_its_rate(store: InlineStore) -> None:
    store.now_ms += 123
    store.accept(*range(5), options=limited(rate=2, period_s=10))
    assert ids(store.claims()) == ["msg_0", "msg_1"]
    assert store.next_due() == 10_000
    store.now_ms += 9_999
    assert store.claims() == []
    store.now_ms += 1
    assert ids(store.claims()) == ["msg_2", "msg_3"]
    store.now_ms += 25_000
    assert ids(store.claims()) == ["msg_4"]


def test_retries_take_a_slot_and_count_and_stand_in_line_like_any_other(store: InlineStore) -> None:
    store.accept(1, 2, options=limited(rate=1, period_s=1))
    store.end(store.claim(), Trigger.RETRY, after_ms=1)
    store.now_ms += 1_000
    assert ids(store.claims()) == ["msg_2"]
    store.now_ms += 1_000
    assert ids(store.claims()) == ["msg_1"]


def test_parallelism_and_rate_hold_together(store: InlineStore) -> None:
    store.accept(*range(5), options=limited(parallelism=1, rate=2, period_s=60))
    store.end(store.claim())
    store.end(store.claim())
    assert store.claims() == []
    store.now_ms += 60_000
    assert ids(store.claims()) == ["msg_2"]


def test_a_delayed_message_is_not_overtaken_in_line_by_later_ones(store: InlineStore) -> None:
    store.accept(1, options=limited(parallelism=1))
    running = store.claim()
    store.accept(2, options=limited(parallelism=1), not_before_ms=store.now_ms + 5)
    store.now_ms += 5
    assert store.claims() == []
    store.accept(3, options=limited(parallelism=1))
    store.end(running)
    assert ids(store.claims()) == ["msg_2"]


def test_a_crash_frees_the_runs_of_a_key_and_what_was_cut_goes_first(store: InlineStore) -> None:
    store.accept(*range(4), options=limited(parallelism=2))
    assert ids(store.claims()) == ["msg_0", "msg_1"]
    store.crash()
    assert ids(store.claims()) == ["msg_0", "msg_1"]
    assert store.claims() == []


def test_a_crash_does_not_forget_what_the_window_has_seen(store: InlineStore) -> None:
    store.accept(1, 2, options=limited(rate=1, period_s=60))
    store.claim()
    store.crash()
    assert store.claims() == []
    store.now_ms += 60_000
    assert ids(store.claims()) == ["msg_1"]


def test_a_window_counted_by_a_clock_that_was_set_back_does_not_last_for_ever(store: InlineStore) -> None:
    store.accept(1, 2, options=limited(rate=1, period_s=60))
    store.claim()
    store.now_ms -= 86_400_000
    store.accept(3, options=limited(rate=1, period_s=60))
    assert ids(store.claims()) == ["msg_2"]


def test_a_queue_and_a_key_both_hold(store: InlineStore) -> None:
    store.accept(1, options=limited(parallelism=1))
    store.accept(2, 3, queue="q", options=limited(parallelism=1))
    first = store.claim()
    store.end(first)
    second = store.claim()
    assert ids([second]) == ["msg_2"]
    store.end(second, Trigger.RETRY, after_ms=10)
    assert store.claims() == []
    store.now_ms += 10
    assert ids(store.claims()) == ["msg_2"]


def test_a_full_host_does_not_hold_up_the_keys_others(store: InlineStore) -> None:
    store.accept(1, options=limited(parallelism=9), url="http://busy.example/")
    store.accept(2, options=limited(parallelism=9))
    busy = Rooms(1, {"busy.example:80": 0})
    found = claim.claim(store.db, now_ms=store.now_ms, limit=9, rooms=busy)
    assert ids(list(found.claims)) == ["msg_2"]
    assert ids(store.claims()) == ["msg_1"]


def test_a_paused_key_holds_everything_and_its_window_goes_on(store: InlineStore) -> None:
    store.accept(1, 2, 3, options=limited(rate=1, period_s=10))
    store.claim()
    flow_control.pause_flow_key(store.db, ACCOUNT, "k", paused=True, now_ms=store.now_ms)
    store.now_ms += 10_000
    assert store.claims() == []
    assert store.next_due() is None
    flow_control.pause_flow_key(store.db, ACCOUNT, "k", paused=False, now_ms=store.now_ms)
    assert ids(store.claims()) == ["msg_2"]


def test_a_pinned_value_withstands_what_messages_bring_until_it_is_unpinned(store: InlineStore) -> None:
    flow_control.pin_flow_key(store.db, ACCOUNT, "k", parallelism=1, rate=None, period_s=None, now_ms=store.now_ms)
    store.accept(*range(4), options=limited(parallelism=3))
    assert ids(store.claims()) == ["msg_0"]
    flow_control.unpin_flow_key(store.db, ACCOUNT, "k", parallelism=True, rate=False, now_ms=store.now_ms)
    assert store.claims() == []
    store.accept(9, options=limited(parallelism=3))
    assert ids(store.claims()) == ["msg_1", "msg_2"]


def test_pinning_a_rate_begins_a_new_window(store: InlineStore) -> None:
    store.accept(1, 2, options=limited(rate=1, period_s=60))
    store.claim()
    flow_control.pin_flow_key(store.db, ACCOUNT, "k", parallelism=None, rate=1, period_s=None, now_ms=store.now_ms)
    assert ids(store.claims()) == ["msg_2"]


def test_resetting_the_rate_begins_a_new_window_now(store: InlineStore) -> None:
    store.accept(1, 2, options=limited(rate=1, period_s=60))
    store.claim()
    store.now_ms += 1
    flow_control.reset_flow_rate(store.db, ACCOUNT, "k", now_ms=store.now_ms)
    assert ids(store.claims()) == ["msg_2"]
    assert store.next_due() is None


def test_a_key_shows_its_counts(store: InlineStore) -> None:
    store.accept(*range(5), options=limited(parallelism=2, rate=9, period_s=60))
    store.claims()
    found = flow_control.flow_key(store.db, ACCOUNT, "k", now_ms=store.now_ms)
    assert found is not None
    assert (found.waiting, found.running, found.started, found.window_start_ms) == (3, 2, 2, store.now_ms)
    assert flow_control.flow_key(store.db, 2, "k", now_ms=store.now_ms) is None
    store.now_ms += 60_000
    later = flow_control.flow_key(store.db, ACCOUNT, "k", now_ms=store.now_ms)
    assert later is not None
    assert later.started == 0


# -- what is blocked costs nothing


def claim_behind(store: InlineStore, kind: str, *, lines: int, waiting: int) -> float:
    """Seconds that claiming 50 messages takes with `waiting` others blocked in `lines` queues or keys."""
    store.db.execute("BEGIN")
    for number in range(lines + waiting):
        line = f"line{number % lines}"
        changes = {"queue": line} if kind == "queue" else {"options": limited(line, parallelism=1)}
        accept.accept(store.db, [publication(number, now_ms=store.now_ms, **changes)], now_ms=store.now_ms)
    assert len(store.claims(limit=10**9)) == lines
    store.now_ms += 1
    store.accept(*range(10**6, 10**6 + 100))
    began = time.perf_counter()
    claimed = store.claims(limit=50)
    took_s = time.perf_counter() - began
    assert len(claimed) == 50
    store.db.execute("COMMIT")
    return took_s


@pytest.mark.parametrize("kind", ["queue", "key"])
def test_a_claim_never_looks_at_what_is_blocked(store: InlineStore, kind: str) -> None:
    assert claim_behind(store, kind, lines=500, waiting=5_000) < 0.05  # a millisecond or two on an idle machine


@pytest.mark.release
@pytest.mark.parametrize("kind", ["queue", "key"])
def test_a_claim_is_as_fast_behind_a_hundred_thousand_blocked_messages(store: InlineStore, kind: str) -> None:
    assert claim_behind(store, kind, lines=10_000, waiting=100_000) < 0.05
