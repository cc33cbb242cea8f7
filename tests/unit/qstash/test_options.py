"""What callers may say about a message, beyond the forms of the official SDK, and what makes no sense."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from qtasks.errors import InvalidCallError, QStashError
from qtasks.protocol import wire
from qtasks.protocol.messages import FlowControl, PublishOptions, Redaction
from qtasks.qstash import QStash, chat
from qtasks.qstash.message import BatchError, BatchResponse
from qtasks.qstash.operations.publishing import RawMessage
from tests.unit.qstash.conftest import TOKEN, ScriptedTransport

URL = "https://example.com"


def publish(**options: Any) -> PublishOptions:
    script = ScriptedTransport({"messageId": "msg_1"})
    QStash(TOKEN, transport=script, retry=False).message.publish(url=URL, **options)
    return wire.read(script.sent[0].headers)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"delay": "1d10h30m"}, {"delay_ms": 124_200_000}),
        ({"delay": 90}, {"delay_ms": 90_000}),
        ({"delay": 0.5}, {"delay_ms": 500}),
        ({"delay": 0}, {"delay_ms": 0}),
        ({"delay": timedelta(minutes=2)}, {"delay_ms": 120_000}),
        ({"timeout": timedelta(seconds=30)}, {"timeout_ms": 30_000}),
        ({"not_before": datetime(2024, 1, 1, tzinfo=UTC)}, {"not_before_s": 1_704_067_200}),
        ({"retries": 0}, {"retries": 0}),
        ({"retry_delay": 1000}, {"retry_delay": "1000"}),
        ({"label": ["a", "b"]}, {"labels": ("a", "b")}),
        ({"label": " a, b,"}, {"labels": ("a", "b")}),
        ({"method": "get"}, {"method": "GET"}),
        ({"content_type": "application/x+json"}, {"content_type": "application/x+json"}),
        (
            {"flow_control": {"key": "k", "rate": 2, "period": timedelta(hours=1)}},
            {"flow_control": FlowControl("k", rate=2, period_s=3600)},
        ),
        ({"flow_control": {}}, {}),
        ({"redact": {"header": ["A"]}}, {"redact": Redaction(headers=("A",))}),
        ({"redact": {"header": []}}, {}),
        (dict.fromkeys(("delay", "headers", "callback_headers", "retries", "label", "redact", "flow_control")), {}),
    ],
)
def test_natural_forms_are_understood(given: dict[str, Any], meant: dict[str, Any]) -> None:
    assert publish(**given) == PublishOptions(**meant)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"delay": "10"}, r'delay: time: missing unit in duration "10"; write one such as "30s"'),
        ({"delay": "soon"}, "delay: time: invalid duration"),
        ({"timeout": -1}, "timeout: a duration cannot be negative"),
        ({"timeout": []}, "timeout: "),
        ({"not_before": datetime(2024, 1, 1)}, "without a time zone"),  # noqa: DTZ001
        ({"deduplication_id": " "}, "deduplication_id is empty"),
        ({"deduplication_id": "a:b"}, "DeduplicationId cannot contain ':'"),
        ({"flow_control": {"rate": 1}}, "flow_control needs a key"),
        ({"flow_control": {"key": "k"}}, "needs a parallelism or a rate"),
        ({"flow_control": {"key": "k", "rate": 1, "period": "500ms"}}, "whole seconds, not '500ms'"),
        ({"flow_control": {"key": "k", "rate": 1, "period": 0}}, "whole seconds, not 0"),
        ({"flow_control": {"key": "k", "rate": 1, "period": "x"}}, "flow_control period: "),
        ({"headers": {"A": "b\r\nAuthorization: x"}}, "'Upstash-Forward-A' contains a line break"),
        ({"callback_headers": {"A\n": "b"}}, "contains a line break"),
        ({"url_group": "g"}, "Only and only one of 'url', 'url_group', or 'api' must be provided"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_name(given: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidCallError, match=text) as caught:
        publish(**given)
    assert isinstance(caught.value, QStashError)
    assert isinstance(caught.value, ValueError)


def test_a_destination_is_required() -> None:
    client = QStash(TOKEN, transport=ScriptedTransport({}))
    with pytest.raises(QStashError, match="Only and only one of"):
        client.message.publish(body="x")


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda c: c.message.publish(url=URL, delai="5s"), r"publish\(\) got .* 'delai'; did you mean 'delay'\?"),
        (lambda c: c.message.enqueue(queue="q", url=URL, delay=5), r"enqueue\(\) got an unexpected .* 'delay'"),
        (lambda c: c.message.batch([{"url": URL}, {"url": URL, "retry": 1}]), r"messages\[1\] .* mean 'retries'"),
        (lambda c: c.schedule.create(destination=URL, cron="* * * * *", not_before=1), r"create\(\) .* 'not_before'"),
        (lambda c: c.dlq.retry("1-0", retrys=0), r"retry\(\) .* 'retrys'; did you mean 'retries'"),
        (lambda c: c.chat.prompt(user="?", model="m", temprature=1), r"chat .* did you mean 'temperature'"),
        (lambda c: c.message.publish(url=URL, flow_control={"key": "k", "rates": 1}), r"flow_control .* 'rates'"),
        (lambda c: c.message.publish(url=URL, redact={"headers": True}), r"redact .* 'headers'; did you mean 'header'"),
        (lambda c: c.flow_control.pin("k", {"rates": 1}), r"pin\(\) .* 'rates'"),
        (lambda c: c.log.list(filter={"labeel": "x"}), r"filter .* 'labeel'; did you mean 'label'"),
    ],
)
def test_an_unknown_keyword_is_refused_with_the_nearest_known_one(ask: Any, text: str) -> None:
    script = ScriptedTransport({})
    with pytest.raises(TypeError, match=text):
        ask(QStash(TOKEN, transport=script))
    assert script.sent == []


def test_the_callers_dictionaries_are_left_alone() -> None:
    headers = {"a": "b"}
    client = QStash(TOKEN, transport=ScriptedTransport({"messageId": "m"}))
    api: Any = {"name": "llm", "provider": chat.openai("sk-secret")}
    client.message.publish_json(api=api, body={}, headers=headers, callback="https://cb.example")
    assert headers == {"a": "b"}


@pytest.mark.parametrize(
    ("provider", "url", "headers"),
    [
        (chat.openai("k"), "https://api.openai.com/v1/chat/completions", {"Authorization": "Bearer k"}),
        (
            chat.anthropic("k"),
            "https://api.anthropic.com/v1/messages",
            {"X-Api-Key": "k", "Anthropic-Version": "2023-06-01"},
        ),
        (chat.custom("http://h:1/v1/", "k"), "http://h:1/v1/chat/completions", {"Authorization": "Bearer k"}),
        (
            chat.custom("http://h/x/chat/completions", "k"),
            "http://h/x/v1/chat/completions",
            {"Authorization": "Bearer k"},
        ),
        (chat.upstash(), "api/llm", {}),
        (None, "api/llm", {}),
    ],
)
def test_a_language_model_is_reached_through_its_provider(provider: Any, url: str, headers: dict[str, str]) -> None:
    script = ScriptedTransport({"messageId": "m"})
    api: Any = {"name": "llm"} if provider is None else {"name": "llm", "provider": provider}
    QStash(TOKEN, transport=script, retry=False).message.publish_json(api=api, body={}, callback="https://cb.example")
    (request,) = script.sent
    assert request.url == f"https://qstash.upstash.io/v2/publish/{url}"
    assert dict(wire.read(request.headers).forward) == headers


def test_a_providers_key_is_not_in_its_repr() -> None:
    assert "sk-secret" not in repr(chat.openai("sk-secret"))


def test_batch_json_forgets_no_option() -> None:
    script = ScriptedTransport([{"messageId": "m"}])  # type: ignore[arg-type]
    client = QStash(TOKEN, transport=script, retry=False)
    client.message.batch_json([{"url": URL, "retry_delay": "1000", "retries": 1, "delay": 5}])
    (item,) = json.loads(script.sent[0].body)
    assert wire.read(item["headers"].items()) == PublishOptions(
        content_type="application/json", retry_delay="1000", retries=1, delay_ms=5000
    )


def test_a_refused_message_of_a_batch_does_not_hide_its_neighbours() -> None:
    script = ScriptedTransport([{"messageId": "m1"}, {"error": "invalid destination url"}, {"messageId": "m3"}])  # type: ignore[arg-type]
    answers = QStash(TOKEN, transport=script).message.batch([{"url": URL}, {"url_group": "nobody"}, {"url": URL}])
    assert answers == [BatchResponse("m1", False), BatchError("invalid destination url"), BatchResponse("m3", False)]


def test_bytes_in_a_batch_must_be_text() -> None:
    script = ScriptedTransport([{"messageId": "m"}])  # type: ignore[arg-type]
    client = QStash(TOKEN, transport=script)
    client.message.batch([{"url": URL, "body": "grüß".encode()}])
    assert json.loads(script.sent[0].body)[0]["body"] == "grüß"
    with pytest.raises(InvalidCallError, match=r"the body of messages\[0\] is not UTF-8"):
        client.message.batch([{"url": URL, "body": b"\xff"}])


def test_publish_raw_sends_the_protocols_own_options() -> None:
    script = ScriptedTransport({"messageId": "msg_9"})
    options = PublishOptions(delay_ms=1500, labels=("a",), forward=(("X", "y"),), deduplication_id="d")
    answer = QStash(TOKEN, transport=script).publish_raw("https://e.com/q/add", b"\x00", options)
    (request,) = script.sent
    assert (request.method, request.body) == ("POST", b"\x00")
    assert request.url.endswith("/v2/publish/https://e.com/q/add")
    assert wire.read(request.headers) == options
    assert answer.message_id == "msg_9"
    assert answer.deduplicated is False


def test_enqueue_raw_appends_to_a_queue_with_the_protocols_own_options() -> None:
    script = ScriptedTransport({"messageId": "msg_9"})
    options = PublishOptions(labels=("a",), deduplication_id="d")
    answer = QStash(TOKEN, transport=script).enqueue_raw("my queue", "https://e.com/q/add", b"\x00", options)
    (request,) = script.sent
    assert (request.method, request.body) == ("POST", b"\x00")
    assert request.url.endswith("/v2/enqueue/my%20queue/https://e.com/q/add")
    assert wire.read(request.headers) == options
    assert (answer.message_id, answer.deduplicated) == ("msg_9", False)


def test_enqueue_raw_refuses_an_empty_queue() -> None:
    with pytest.raises(InvalidCallError, match="queue must name something"):
        QStash(TOKEN, transport=ScriptedTransport({})).enqueue_raw("", URL, b"", PublishOptions())


def test_batch_raw_sends_each_message_with_its_own_options_and_queue() -> None:
    answers = [{"messageId": "m1"}, {"error": "no such endpoint"}, {"messageId": "m3", "deduplicated": True}]
    script = ScriptedTransport(answers)  # type: ignore[arg-type]
    messages = [
        RawMessage(destination=URL, body=b"1", options=PublishOptions(delay_ms=1500)),
        RawMessage(destination="https://e.com/?a=b c", body="ü".encode(), queue="q"),
        RawMessage(destination=URL, body=b"", options=PublishOptions(deduplication_id="d")),
    ]
    got = QStash(TOKEN, transport=script, retry=False).batch_raw(messages)
    (request,) = script.sent
    items = json.loads(request.body)
    assert request.url.endswith("/v2/batch")
    assert [(item["destination"], item["body"], item["queue"]) for item in items] == [
        (URL, "1", None),
        ("https://e.com/?a=b%20c", "ü", "q"),
        (URL, "", None),
    ]
    assert [wire.read(item["headers"].items()) for item in items] == [message.options for message in messages]
    assert got == [BatchResponse("m1", False), BatchError("no such endpoint"), BatchResponse("m3", True)]


def test_a_deduplication_id_of_the_client_does_not_make_a_message_of_batch_raw_a_duplicate() -> None:
    script = ScriptedTransport([{"messageId": "m1", "deduplicated": True}])  # type: ignore[arg-type]
    (got,) = QStash(TOKEN, transport=script).batch_raw([RawMessage(destination=URL, body=b"1")])
    assert "Upstash-Deduplication-Id" in json.loads(script.sent[0].body)[0]["headers"]
    assert got == BatchResponse("m1", False)


def test_batch_raw_names_the_message_whose_body_is_not_text() -> None:
    messages = [RawMessage(destination=URL, body=b"1"), RawMessage(destination=URL, body=b"\xff")]
    with pytest.raises(InvalidCallError, match=r"the body of messages\[1\] is not UTF-8"):
        QStash(TOKEN, transport=ScriptedTransport([])).batch_raw(messages)  # type: ignore[arg-type]


def test_blanks_around_a_value_are_not_sent() -> None:
    """No HTTP client sends them, and the official service trims them (docs/protocol.md B20)."""
    script = ScriptedTransport({"scheduleId": "s"})
    QStash(TOKEN, transport=script, retry=False).schedule.create(
        destination=URL, cron="*/10 * * * * ", headers={"A": "\tb "}
    )
    lines = dict(script.sent[0].headers)
    assert (lines["Upstash-Cron"], lines["Upstash-Forward-A"]) == ("*/10 * * * *", "b")
