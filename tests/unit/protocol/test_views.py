"""The JSON that official SDKs read (docs/protocol.md 2.5, 2.9, 2.10, 5.12; spellings A3 to A7)."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

from qstash.dlq import parse_dlq_message_response
from qstash.log import LogState, parse_logs_response
from qstash.message import parse_message_response

from qtasks.protocol import views
from qtasks.protocol.messages import (
    DeadLetter,
    FlowControl,
    LogEntry,
    Message,
    PublishOptions,
    Redaction,
    Response,
    State,
)

BARE = Message(
    id="msg_1",
    account=1,
    url="https://e.com/a?x=1",
    method="POST",
    headers=(),
    body=b"",
    created_ms=1000,
    not_before_ms=2000,
    max_retries=0,
    timeout_ms=900_000,
    caller_ip="",
)
FULL = replace(
    BARE,
    method="PUT",
    headers=(("Content-Type", "application/json"), ("Test-Header", "a"), ("Test-Header", "b")),
    body=b'{"hello":"world"}',
    max_retries=3,
    caller_ip="203.0.113.7",
    queue="q",
    url_group="g",
    endpoint="First endpoint",
    schedule_id="scd_1",
    options=PublishOptions(
        retry_delay="1000",
        callback="https://cb.example?x=1",
        callback_options=PublishOptions(forward=(("A", "1"),)),
        failure_callback="https://f.example",
        failure_callback_options=PublishOptions(forward=(("B", "2"),)),
        labels=("l1", "l2"),
        flow_control=FlowControl("k", parallelism=2),
    ),
)
BODY_HASH = "REDACTED:93a23971a914e5eacbf0a8d25154cda309c3c1c72fbb9914d47c60f3cb681588"


def redacting(**what: object) -> Message:
    return replace(FULL, options=replace(FULL.options, redact=Redaction(**what)))  # type: ignore[arg-type]


def entry(message: Message = FULL, state: State = State.ACTIVE, **changes: object) -> LogEntry:
    return replace(LogEntry(cursor="5-1", time_ms=5, state=state, message=message), **changes)  # type: ignore[arg-type]


def letter(message: Message = FULL, response: Response | None = None) -> DeadLetter:
    return DeadLetter(id="7-1", message=message, failed_ms=7, error="no route", response=response)


def test_a_bare_message_shows_only_what_it_has() -> None:
    assert views.message_json(BARE) == {
        "messageId": "msg_1",
        "url": "https://e.com/a?x=1",
        "method": "POST",
        "maxRetries": 0,
        "notBefore": 2000,
        "createdAt": 1000,
    }


def test_a_full_message_shows_everything() -> None:
    assert views.message_json(FULL) == {
        "messageId": "msg_1",
        "url": "https://e.com/a?x=1",
        "topicName": "g",
        "endpointName": "First endpoint",
        "queueName": "q",
        "scheduleId": "scd_1",
        "method": "PUT",
        "header": {"Content-Type": ["application/json"], "Test-Header": ["a", "b"]},
        "body": '{"hello":"world"}',
        "maxRetries": 3,
        "retryDelayExpression": "1000",
        "notBefore": 2000,
        "createdAt": 1000,
        "callback": "https://cb.example?x=1",
        "callbackHeader": {"A": ["1"]},
        "failureCallback": "https://f.example",
        "failureCallbackHeader": {"B": ["2"]},
        "callerIP": "203.0.113.7",
        "callerIp": "203.0.113.7",
        "label": "l1",
        "labels": ["l1", "l2"],
        "flowControlKey": "k",
        "parallelism": 2,
        "period": 1,
    }


def test_a_body_that_is_no_text_is_base64() -> None:
    shown = views.message_json(replace(BARE, body=b"\xff\x00"))
    assert (shown.get("body"), shown["bodyBase64"]) == (None, "/wA=")


def test_limits_that_are_not_set_are_left_out() -> None:
    message = replace(BARE, options=PublishOptions(flow_control=FlowControl("k", rate=23, period_s=5403)))
    shown = views.message_json(message)
    assert (shown["rate"], shown["period"], "parallelism" in shown) == (23, 5403, False)


def test_a_log_entry_has_the_names_of_every_sdk() -> None:
    shown = views.log_json(entry(next_delivery_ms=9))
    assert shown["time"] == 5
    assert shown["state"] == "ACTIVE"
    assert shown["body"] == "eyJoZWxsbyI6IndvcmxkIn0="
    assert shown["nextDeliveryTime"] == 9
    assert shown["timeout"] == 900_000
    assert shown["retryDelayExpr"] == shown["retryDelayExpression"] == "1000"
    assert shown["callbackHeader"] == shown["callbackHeaders"] == {"A": ["1"]}
    assert shown["failureCallbackHeader"] == shown["failureCallbackHeaders"] == {"B": ["2"]}
    assert shown.keys().isdisjoint({"error", "responseStatus", "bodyBase64", "notBefore", "createdAt"})


def test_a_log_entry_shows_the_response() -> None:
    response = Response(status=500, headers=(("content-type", "a/b"), ("Content-Type", "c/d")), body=b"oops")
    shown = views.log_json(entry(state=State.ERROR, error="it failed", response=response))
    assert (shown["error"], shown["responseStatus"], shown["responseBody"]) == ("it failed", 500, "b29wcw==")
    assert shown["responseHeader"] == shown["responseHeaders"] == {"Content-Type": ["a/b", "c/d"]}


def test_no_response_is_status_0() -> None:
    assert views.log_json(entry(state=State.ERROR))["responseStatus"] == 0
    assert views.dead_letter_json(letter())["responseStatus"] == 0


def test_states_have_the_spelling_that_sdks_know() -> None:
    assert {views.log_json(entry(state=state))["state"] for state in State} == {state.value for state in LogState} - {
        "IN_PROGRESS"
    }


def test_a_dead_letter_is_the_message_with_its_last_answer() -> None:
    shown = views.dead_letter_json(letter(response=Response(status=404, headers=(("a", "b"),), body=b"404 Not Found")))
    assert shown == {
        **views.message_json(FULL),
        "dlqId": "7-1",
        "responseStatus": 404,
        "responseHeader": {"A": ["b"]},
        "responseBody": "404 Not Found",
        "error": "no route",
    }
    binary = views.dead_letter_json(letter(response=Response(status=404, body=b"\xff")))
    assert (binary.get("responseBody"), binary["responseBodyBase64"]) == (None, "/w==")


def test_a_redacted_body_is_its_hash_everywhere() -> None:
    message = redacting(body=True)
    assert views.message_json(message)["body"] == BODY_HASH
    assert views.dead_letter_json(letter(message))["body"] == BODY_HASH
    assert views.log_json(entry(message))["body"] == BODY_HASH
    assert "body" not in views.message_json(replace(message, body=b""))


def test_redacted_headers_hide_each_value_and_no_other() -> None:
    named = views.message_json(redacting(headers=("Test-Header",)))["header"]
    assert isinstance(named, dict)
    assert named["Content-Type"] == ["application/json"]
    assert named["Test-Header"] == [
        "REDACTED:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
        "REDACTED:3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d",
    ]


def test_a_callback_has_the_original_bodies_and_of_redacted_headers_the_hashes() -> None:
    """A provider's key is nothing that its answer needs."""
    told = views.callback_json(redacting(body=True, headers=("Test-Header",)), Response(status=200, body=b"answer"))
    assert (told["sourceBody"], told["body"]) == (base64.b64encode(FULL.body).decode(), "YW5zd2Vy")
    source = told["sourceHeader"]
    assert isinstance(source, dict)
    assert source["Content-Type"] == ["application/json"]
    assert all(value.startswith("REDACTED:") for value in source["Test-Header"])


def test_nothing_secret_is_left_when_everything_is_redacted() -> None:
    message = redacting(body=True, all_headers=True)
    for shown in (views.message_json(message), views.log_json(entry(message)), views.dead_letter_json(letter(message))):
        text = json.dumps({name: value for name, value in shown.items() if "eader" in name or "ody" in name})
        assert "application/json" not in text
        assert '"1"' not in text
        assert "hello" not in text
        assert "eyJ" not in text


def test_the_official_sdk_reads_all_three() -> None:
    message = parse_message_response(views.message_json(FULL))
    assert (message.message_id, message.caller_ip, message.label) == ("msg_1", "203.0.113.7", "l1")
    assert message.callback_headers == {"A": ["1"]}
    [log] = parse_logs_response([views.log_json(entry())])
    assert (log.state, log.retry_delay_expression, log.failure_callback_headers) == (
        LogState.ACTIVE,
        "1000",
        {"B": ["2"]},
    )
    dead = parse_dlq_message_response(views.dead_letter_json(letter()))
    assert (dead.dlq_id, dead.response_status) == ("7-1", 0)
