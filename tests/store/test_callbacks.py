"""Callbacks are rows of the transaction that ends the attempt they report (docs/protocol.md 3.6, 4.4)."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from qtasks.broker.core.rules import Evaluation, Stage, Trigger
from qtasks.broker.core.values import Settlement
from qtasks.broker.ports import Failure
from qtasks.broker.store.verbs import settle
from qtasks.protocol import wire
from qtasks.protocol.messages import PublishOptions, Redaction, State
from tests.support.store import OK, InlineStore, ids

CALLBACK = "https://cb.example/x?y=1"
FAILURE = "https://failed.example/"


def options(**headers: str) -> PublishOptions:
    return wire.read([(f"Upstash-{name.replace('_', '-')}", value) for name, value in headers.items()])


def told(store: InlineStore, message_id: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(store.message(message_id).body)
    return body


def test_every_attempt_is_told_of_and_the_last_failure_besides(store: InlineStore) -> None:
    store.accept(1, options=options(Callback=CALLBACK, Failure_Callback=FAILURE), max_retries=1, method="PUT")
    first = store.end(store.claim(), Trigger.RETRY)
    assert [one.url for one in first.created] == [CALLBACK]
    second = store.end(store.claims()[0], Trigger.FAIL)
    assert [one.url for one in second.created] == [CALLBACK, FAILURE]
    [letter] = store.dead()
    plain, failed = (told(store, one.id) for one in second.created)
    assert "dlqId" not in plain
    assert failed.pop("dlqId") == letter.id
    assert plain == failed
    assert plain == {
        "status": 500,
        "header": {},
        "body": base64.b64encode(b"oops").decode(),
        "retried": 1,
        "maxRetries": 1,
        "sourceMessageId": "msg_1",
        "url": "http://127.0.0.1:8000/qtasks/add",
        "method": "PUT",
        "sourceHeader": {"Content-Type": ["application/json"]},
        "sourceBody": base64.b64encode(b'{"n":1}').decode(),
        "notBefore": str(store.now_ms),
        "createdAt": str(store.now_ms),
        "callerIP": "127.0.0.1",
    }


def test_a_success_has_a_callback_and_no_failure_callback(store: InlineStore) -> None:
    store.accept(1, options=options(Callback=CALLBACK, Failure_Callback=FAILURE), url_group="g", endpoint="e")
    [callback] = store.end(store.claim()).created
    body = told(store, callback.id)
    assert (body["status"], body["header"], body["retried"]) == (200, {"Content-Type": ["text/plain"]}, 0)
    assert (body["topicName"], body["endpointName"]) == ("g", "e")


def test_a_callback_is_a_message_like_any_other(store: InlineStore) -> None:
    store.accept(1, options=options(Callback=CALLBACK, Label="a,b"), max_retries=7, schedule_id="s", url_group="g")
    [callback] = store.end(store.claim()).created
    claim = store.claim()
    assert claim.message == store.message(callback.id)
    assert claim.message.body == callback.body
    assert (callback.method, callback.headers) == ("POST", (("Content-Type", "application/json"),))
    assert (callback.max_retries, callback.options.labels) == (7, ("a", "b"))
    assert (callback.schedule_id, callback.url_group, callback.queue) == (None, None, None)
    assert store.end(claim, Trigger.FAIL).created == ()
    assert store.states(callback.id) == [State.CREATED, State.ACTIVE, State.ERROR, State.FAILED]
    assert [letter.message.id for letter in store.dead()] == [callback.id]


def test_a_callback_has_options_of_its_own(store: InlineStore) -> None:
    store.accept(
        1,
        options=options(
            Callback=CALLBACK,
            Callback_Method="PUT",
            Callback_Retries="0",
            Callback_Delay="10s",
            Callback_Timeout="5s",
            Callback_Forward_X_Secret="s",
            Callback_Forward_Content_Type="text/x",
            Callback_Flow_Control_Key="k",
            Callback_Flow_Control_Value="rate=1",
            Callback_Label="own",
        ),
    )
    [callback] = store.end(store.claim()).created
    assert (callback.method, callback.max_retries, callback.timeout_ms) == ("PUT", 0, 5_000)
    assert callback.not_before_ms == store.now_ms + 10_000
    assert callback.headers == (("X-Secret", "s"), ("Content-Type", "text/x"))
    assert callback.options.flow_control is not None
    assert callback.options.labels == ("own",)
    assert store.claims() == []
    store.now_ms += 10_000
    assert ids(store.claims()) == [callback.id]


def test_a_callback_calls_back_only_where_a_failure_callback_is_nested(store: InlineStore) -> None:
    store.accept(
        1,
        options=options(
            Callback=CALLBACK,
            Callback_Callback="https://never.example",
            Callback_Failure_Callback="https://deep.example",
        ),
    )
    [callback] = store.end(store.claim()).created
    [deep] = store.end(store.claim(), Trigger.FAIL).created
    assert (callback.options.callback, deep.url) == (None, "https://deep.example")
    assert told(store, deep.id)["sourceMessageId"] == callback.id
    assert store.end(store.claim(), Trigger.FAIL).created == ()


def test_a_callback_has_an_end_callback_and_interruptions_of_its_own(store: InlineStore) -> None:
    end = "https://app.example/_end?task=add"
    store.accept(
        1,
        options=options(
            Callback=CALLBACK,
            Callback_Retries="0",
            Callback_Failure_Callback=end,
            Callback_Qtasks_End_Callback=end,
            Callback_Qtasks_Interrupted_For="1h",
        ),
    )
    [callback] = store.end(store.claim()).created
    claim = store.claim()
    assert claim.message.id == callback.id
    assert claim.message.options.interrupted_for_ms == 3_600_000
    [reported] = store.end(claim, Trigger.FAIL).created
    assert (reported.url, told(store, reported.id)["sourceMessageId"]) == (end, callback.id)


def test_what_the_source_hides_is_hidden_in_its_callback(store: InlineStore) -> None:
    store.accept(1, options=options(Callback=CALLBACK, Redact_Fields="header[X-A]"))
    [callback] = store.end(store.claim()).created
    assert callback.options.redact == Redaction(body=True, headers=("X-A",))


def test_an_attempt_without_an_answer_says_why(store: InlineStore) -> None:
    store.accept(1, options=options(Callback=CALLBACK))
    [callback] = store.end(store.claim(), Trigger.FAIL, outcome=Failure("timeout", "no answer within 1 s")).created
    body = told(store, callback.id)
    assert (body["status"], body["header"], body["body"], body["error"]) == (0, {}, "", "no answer within 1 s")


@pytest.mark.parametrize("active", [False, True])
def test_a_cancelled_message_calls_nobody(store: InlineStore, active: bool) -> None:
    store.accept(1, options=options(Callback=CALLBACK, Failure_Callback=FAILURE))
    claims = store.claims() if active else []
    assert store.cancel("msg_1") == 1
    for claim in claims:
        assert store.end(claim, Trigger.RETRY).created == ()
    assert store.stage("msg_1") is Stage.CANCELED
    assert store.claims() == []


def test_a_stale_settle_calls_nobody(store: InlineStore) -> None:
    store.accept(1, options=options(Callback=CALLBACK))
    stale = store.claim()
    store.crash()
    assert (
        settle.settle(store.db, Settlement(stale, OK, Evaluation(Trigger.SUCCEED), ("a", "b")), now_ms=store.now_ms)
        is None
    )
    assert ids(store.claims()) == ["msg_1"]
