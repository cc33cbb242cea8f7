"""A message that fails for good or is cancelled reports its end, in the same transaction (docs/protocol.md 4.4)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qtasks.broker.core.message_builder import retry_of_dead_letter
from qtasks.broker.core.rules import Evaluation, Stage, Trigger
from qtasks.broker.core.values import MessageCriteria, Settlement
from qtasks.broker.ports import Failure
from qtasks.broker.store.verbs import cancel, dead_letters, queues, settle
from qtasks.broker.store.verbs.reads import queries
from qtasks.protocol import expressions
from qtasks.protocol.messages import Message, PublishOptions, Redaction, Response, State
from tests.support.broker import ACCOUNT
from tests.support.store import InlineStore, ids

END = "https://app.example/qtasks/_end?task=add&call=call_1"
DAY_MS = 24 * 60 * 60 * 1000


def accept(store: InlineStore, *numbers: int, queue: str | None = None, retries: int = 3, **options: Any) -> None:
    wanted = PublishOptions(call_id="call_1", end_callback=END, **options)
    store.accept(*numbers, options=wanted, queue=queue, max_retries=retries)


def report(store: InlineStore) -> dict[str, Any]:
    """The body of the end callback of message `msg_1`."""
    return body_of(store.message("msg_1_end"))


def body_of(message: Message) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(message.body)
    return body


def test_the_last_failed_attempt_creates_one_report_with_the_dead_letter_and_the_answer(store: InlineStore) -> None:
    accept(store, 1, retries=1)
    assert store.end(store.claim(), Trigger.RETRY).created == ()
    [created] = store.end(store.claim(), Trigger.FAIL, outcome=Response(status=500, body=b"no")).created
    assert store.message(created.id).body == created.body
    assert (created.url, created.method, created.options.call_id) == (END, "POST", None)
    [letter] = store.dead()
    body = body_of(created)
    assert "sourceBody" not in body
    assert (body["state"], body["sourceMessageId"], body["dlqId"]) == ("FAILED", "msg_1", letter.id)
    assert (body["status"], body["body"], body["retried"]) == (500, "bm8=", 1)


def test_a_success_reports_no_end(store: InlineStore) -> None:
    accept(store, 1)
    assert store.end(store.claim()).created == ()
    assert store.claims() == []


def test_a_failure_callback_to_the_same_url_is_the_same_message(store: InlineStore) -> None:
    accept(store, 1, retries=0, failure_callback=END)
    [created] = store.end(store.claim(), Trigger.FAIL).created
    assert body_of(created)["state"] == "FAILED"


def test_a_failure_callback_to_another_url_is_a_second_message(store: InlineStore) -> None:
    accept(store, 1, retries=0, failure_callback="https://user.example/")
    failure, end = store.end(store.claim(), Trigger.FAIL).created
    assert (failure.url, end.url) == ("https://user.example/", END)
    assert "state" not in body_of(failure)


def test_a_cancelled_message_reports_its_end_at_once(store: InlineStore) -> None:
    accept(store, 1, failure_callback="https://user.example/")
    assert store.cancel("msg_1") == 1
    assert store.cancel("msg_1") == 0
    assert ids(store.claims()) == ["msg_1_end"]
    body = report(store)
    assert (body["state"], body["status"], body["error"]) == ("CANCELED", 0, "the message was cancelled")
    assert "dlqId" not in body


@pytest.mark.parametrize("trigger", [Trigger.RETRY, Trigger.INTERRUPT])
def test_a_message_that_is_cancelled_during_its_attempt_reports_the_end_of_the_attempt(
    store: InlineStore, trigger: Trigger
) -> None:
    accept(store, 1)
    claim = store.claim()
    store.cancel("msg_1")
    assert store.claims() == []
    [created] = store.end(claim, trigger, outcome=Failure("timeout", "no answer within 1 s")).created
    assert (body_of(created)["state"], body_of(created)["error"]) == ("CANCELED", "no answer within 1 s")


def test_an_attempt_that_succeeds_in_spite_of_a_cancel_reports_no_end(store: InlineStore) -> None:
    accept(store, 1)
    claim = store.claim()
    store.cancel("msg_1")
    assert store.end(claim).created == ()


def test_a_message_that_was_cancelled_before_a_crash_reports_its_end_at_the_next_start(store: InlineStore) -> None:
    accept(store, 1)
    store.claim()
    store.cancel("msg_1")
    store.crash()
    assert ids(store.claims()) == ["msg_1_end"]
    assert report(store)["state"] == "CANCELED"


def test_a_bulk_cancel_reports_every_end_and_cancels_no_report(store: InlineStore) -> None:
    accept(store, 1, 2, 3, labels=("nightly",))
    newest = queries.newest_seq(store.db)
    after = 0
    created: list[Message] = []
    while True:
        done = cancel.cancel_where(
            store.db, ACCOUNT, MessageCriteria(), after=after, newest=newest, limit=2, now_ms=store.now_ms
        )
        created += done.created
        if done.last is None:
            break
        after = done.last
    assert [one.id for one in created] == ["msg_1_end", "msg_2_end", "msg_3_end"]
    assert ids(store.claims()) == [one.id for one in created]
    assert {one.options.labels for one in created} == {()}


def test_the_messages_of_a_deleted_queue_report_their_end(store: InlineStore) -> None:
    accept(store, 1, 2, queue="q")
    done = queues.drop_queue(store.db, ACCOUNT, "q", limit=9, now_ms=store.now_ms)
    assert [one.id for one in done.created] == ["msg_1_end", "msg_2_end"]


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_queue_goes_on_while_the_report_is_undelivered(store: InlineStore, cancelled: bool) -> None:
    accept(store, 1, 2, queue="q", retries=0)
    if cancelled:
        store.cancel("msg_1")
    else:
        store.end(store.claim(), Trigger.FAIL)
    assert sorted(ids(store.claims())) == ["msg_1_end", "msg_2"]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE stored_bodies SET body = x'00'",
        "UPDATE messages SET headers = '[['",
        'UPDATE messages SET options = \'[["Upstash-Retries", "many"]]\'',
        "UPDATE messages SET call_id = 'call_2'",
    ],
)
def test_a_damaged_message_reports_that_it_failed(store: InlineStore, damage: str) -> None:
    accept(store, 1)
    store.db.execute(damage)
    assert ids(store.claims()) == ["msg_1_end"]
    [letter] = store.dead_ids()
    body = report(store)
    assert (body["state"], body["dlqId"]) == ("FAILED", letter)
    assert body["error"].startswith("corrupt")


def test_a_message_that_the_broker_does_not_survive_reports_that_it_failed(store: InlineStore) -> None:
    accept(store, 1, retries=0)
    for _ in range(3):
        store.claim()
        store.crash()
    assert ids(store.claims()) == ["msg_1_end"]
    assert report(store)["error"].startswith("crash_loop")


def test_a_message_whose_damage_is_found_by_nobody_can_be_cancelled(store: InlineStore) -> None:
    accept(store, 1)
    store.db.execute("UPDATE messages SET headers = '[['")
    assert store.cancel("msg_1") == 1
    assert report(store)["state"] == "CANCELED"


def test_a_damaged_url_of_a_report_stops_no_other_message(store: InlineStore) -> None:
    accept(store, 1, 2)
    store.db.execute("UPDATE messages SET end_callback = 'hxtps:/' WHERE id = 'msg_1'")
    assert ids(store.claims()) == ["msg_2"]
    assert store.stage("msg_1") is Stage.FAILED


def test_a_report_is_repeated_for_days_and_reports_no_end_of_its_own(store: InlineStore) -> None:
    accept(store, 1, redact=Redaction(headers=("X-A",)))
    store.cancel("msg_1")
    claim = store.claim()
    assert (claim.message.max_retries, claim.message.options.interrupted_for_ms) == (999, DAY_MS)
    assert claim.message.options.redact == Redaction(body=True, headers=("X-A",))
    assert store.end(claim, Trigger.FAIL).created == ()
    assert store.claims() == []


def test_the_waits_of_a_report_grow_from_one_second_to_five_minutes(store: InlineStore) -> None:
    accept(store, 1)
    store.cancel("msg_1")
    expression = store.claim().message.options.retry_delay
    assert expression is not None
    waits_s = [expressions.parse(expression).delay_ms(retried) / 1000 for retried in range(999)]
    assert waits_s[:10] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]
    assert set(waits_s[9:]) == {300}


def test_a_retried_dead_letter_is_a_new_round_of_the_same_call(store: InlineStore) -> None:
    accept(store, 1, retries=0, interrupted_for_ms=DAY_MS)
    store.end(store.claim(), Trigger.FAIL)
    [letter] = store.dead()
    overrides = PublishOptions(call_id="call_2")
    retry = retry_of_dead_letter(letter.message, overrides, message_id="msg_again", now_ms=store.now_ms)
    dead_letters.retry_dead_letters(store.db, ACCOUNT, [(letter.id, retry)], now_ms=store.now_ms)
    assert store.message("msg_again").options == letter.message.options
    assert store.stage("msg_1_end") is Stage.DUE
    [again] = [claim for claim in store.claims() if claim.message.id == "msg_again"]
    [created] = store.end(again, Trigger.FAIL).created
    assert (created.id, created.url) == ("msg_again_end", END)


def test_deleting_a_dead_letter_reports_nothing(store: InlineStore) -> None:
    accept(store, 1, retries=0)
    [created] = store.end(store.claim(), Trigger.FAIL).created
    store.end(store.claim())
    store.delete_dead()
    assert store.claims() == []
    assert store.states(created.id)[-1] is State.DELIVERED


def test_a_stale_settle_reports_nothing(store: InlineStore) -> None:
    accept(store, 1)
    stale = store.claim()
    store.crash()
    late = Settlement(stale, Response(status=500), Evaluation(Trigger.FAIL, "late"))
    assert settle.settle(store.db, late, now_ms=store.now_ms) is None
    assert ids(store.claims()) == ["msg_1"]
