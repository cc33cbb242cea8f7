"""The same call on the official SDK and on ours sends the same request and understands the same answer."""

import dataclasses
import enum
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qsl

import pytest
import qstash as official
import qstash.chat
import qstash.log

from qtasks import qstash as ours
from qtasks.protocol import wire
from qtasks.qstash import chat, log
from tests.unit.qstash.conftest import TOKEN, ReceivedRequest, ScriptedService

MESSAGE = {
    "messageId": "msg_1",
    "url": "https://example.com/a",
    "topicName": "g",
    "endpointName": "e",
    "queueName": "q",
    "body": "text",
    "method": "PUT",
    "header": {"Content-Type": ["text/plain"]},
    "callbackHeader": {"A": ["1"]},
    "failureCallbackHeader": {"B": ["2"]},
    "maxRetries": 4,
    "retryDelayExpression": "1000",
    "notBefore": 1_700_000_000_001,
    "createdAt": 1_700_000_000_000,
    "callback": "https://cb.example",
    "failureCallback": "https://fcb.example",
    "scheduleId": "scd_1",
    "callerIP": "1.2.3.4",
    "flowControlKey": "k",
    "parallelism": 2,
    "rate": 3,
    "period": 60,
    "label": "l1",
    "labels": ["l1", "l2"],
}
PLAIN = {key: MESSAGE[key] for key in ("messageId", "url", "method", "maxRetries", "notBefore", "createdAt")}
DEAD = {
    **MESSAGE,
    "dlqId": "1-0",
    "responseStatus": 404,
    "responseHeader": {"X": ["y"]},
    "responseBody": "404 Not Found",
    "responseBodyBase64": "AA==",
}
SCHEDULE = {
    "scheduleId": "scd_1",
    "destination": "https://example.com",
    "cron": "* * * * *",
    "createdAt": 1,
    "bodyBase64": "AA==",
    "method": "POST",
    "retries": 3,
    "delay": 10,
    "timeout": 30,
    "isPaused": True,
    "callerIP": "1.2.3.4",
    "lastScheduleTime": 2,
    "nextScheduleTime": 3,
    "lastScheduleStates": {"msg_1": "SUCCESS", "msg_2": "IN_PROGRESS", "msg_3": "FAIL"},
    "error": "none",
    "label": "l",
    "queueName": "q",
    "flowControlKey": "k",
    "parallelism": 2,
    "period": 1,
}
EVENT = {
    **MESSAGE,
    "time": 5,
    "state": "RETRY",
    "error": "refused",
    "nextDeliveryTime": 6,
    "callbackHeaders": {"C": ["3"]},
    "failureCallbackHeaders": {"D": ["4"]},
    "responseStatus": 500,
    "responseHeader": {"E": ["5"]},
    "responseBody": "AA==",
    "timeout": 30_000,
    "retryDelayExpr": "7000 * retried",
}
QUEUE = {"name": "q", "parallelism": 2, "createdAt": 1, "updatedAt": 2, "lag": 3, "paused": True}
GROUP = {
    "name": "g",
    "createdAt": 1,
    "updatedAt": 2,
    "endpoints": [{"url": "https://a.example", "name": "a"}, {"url": "https://b.example"}],
}
FLOW = {
    "flowControlKey": "k",
    "waitListSize": 1,
    "parallelismMax": 2,
    "parallelismCount": 3,
    "rateMax": 4,
    "rateCount": 5,
    "ratePeriod": 6,
    "ratePeriodStart": 7,
    "isPaused": True,
    "isPinnedParallelism": True,
    "isPinnedRate": False,
}
ACCEPTED = {"messageId": "msg_1", "url": "https://example.com"}
EACH = [{"messageId": "msg_1", "url": "https://a.example"}, {"messageId": "msg_2", "url": "b", "deduplicated": True}]

EVERYTHING: dict[str, Any] = {
    "method": "PUT",
    "headers": {"my-header": "v", "Upstash-Forward-Other": "w", "number": 5},
    "callback_headers": {"Forward-A": "1", "Upstash-Callback-Retries": "2", "x": "y"},
    "failure_callback_headers": {"Method": "GET", "upstash-failure-callback-Delay": "3s"},
    "retries": 2,
    "retry_delay": "pow(2, retried) * 1000",
    "callback": "https://cb.example/a?b=c",
    "failure_callback": "https://fcb.example",
    "timeout": 30,
    "label": "l1",
    "redact": {"body": True, "header": ["Authorization", "X-Key"]},
}
DEDUPLICATED = {**EVERYTHING, "deduplication_id": "d-1", "content_based_deduplication": False}
PUBLISHED = {**DEDUPLICATED, "delay": "1h30m", "not_before": 1_700_000_000}
FLOWING = {"flow_control": {"key": "k", "parallelism": 2, "rate": 5, "period": "1m"}}
URL = "https://example.com/a/?x=1&y=%2F"


def llm(client: Any) -> dict[str, Any]:
    providers = chat if isinstance(client, ours.QStash) else qstash.chat
    return {"name": "llm", "provider": providers.openai("sk-1")}


def custom(client: Any) -> dict[str, Any]:
    providers = chat if isinstance(client, ours.QStash) else qstash.chat
    return {"name": "llm", "provider": providers.custom("https://llm.example/v1/chat/completions", "sk-2")}


def state(client: Any) -> Any:
    return (log if isinstance(client, ours.QStash) else qstash.log).LogState.CANCELED


Ask = Callable[[Any], Any]

CALLS: dict[str, tuple[Ask, Any]] = {
    "publish, nothing said": (lambda c: c.message.publish(url="https://example.com"), ACCEPTED),
    "publish text": (lambda c: c.message.publish(url=URL, body="grüß", content_type="text/plain"), ACCEPTED),
    "publish bytes": (lambda c: c.message.publish(url=URL, body=b"\x00\xff", headers=None), ACCEPTED),
    "publish, everything said": (lambda c: c.message.publish(url=URL, body="x", **PUBLISHED, **FLOWING), ACCEPTED),
    "publish to a group": (lambda c: c.message.publish(url_group="g-1.x", body="x", delay=5), EACH),
    "publish_json": (lambda c: c.message.publish_json(url=URL, body={"hello": "wörld", "n": [1.5, None]}), ACCEPTED),
    "publish_json, no body": (lambda c: c.message.publish_json(url=URL), ACCEPTED),
    "publish_json, everything said": (
        lambda c: c.message.publish_json(url=URL, body=[1], **PUBLISHED, **FLOWING),
        {**ACCEPTED, "deduplicated": True},
    ),
    "publish with a type of the caller's own": (
        lambda c: c.message.publish_json(url=URL, body=1, headers={"Content-Type": "application/x+json"}),
        ACCEPTED,
    ),
    "redact every header": (lambda c: c.message.publish(url=URL, redact={"header": True}), ACCEPTED),
    "redact nothing": (lambda c: c.message.publish(url=URL, redact={}), ACCEPTED),
    "content-based deduplication": (
        lambda c: c.message.publish(url=URL, content_based_deduplication=True),
        ACCEPTED,
    ),
    "rate without period": (lambda c: c.message.publish(url=URL, flow_control={"key": "k", "rate": 1}), ACCEPTED),
    "parallelism only": (lambda c: c.message.publish(url=URL, flow_control={"key": "k", "parallelism": 1}), ACCEPTED),
    "period in seconds": (
        lambda c: c.message.publish(url=URL, flow_control={"key": "k", "rate": 1, "period": 3600}),
        ACCEPTED,
    ),
    "a model of OpenAI": (
        lambda c: c.message.publish_json(api=llm(c), body={"model": "m"}, callback="https://cb.example"),
        ACCEPTED,
    ),
    "a model of one's own": (
        lambda c: c.message.publish(api=custom(c), body="{}", headers={"a": "b"}, callback="https://cb.example"),
        ACCEPTED,
    ),
    "enqueue": (lambda c: c.message.enqueue(queue="q-1", url=URL, body="x", **DEDUPLICATED), ACCEPTED),
    "enqueue_json to a group": (lambda c: c.message.enqueue_json(queue="q", url_group="g", body=1), EACH),
    "batch": (
        lambda c: c.message.batch(
            [
                {"url": URL, "body": "x", **PUBLISHED, **FLOWING},
                {"url_group": "g", "queue": "q", "content_type": "text/plain"},
                {"api": llm(c), "body": "{}", "callback": "https://cb.example"},
            ]
        ),
        [ACCEPTED, EACH, {**ACCEPTED, "deduplicated": True}],
    ),
    "batch_json": (
        lambda c: c.message.batch_json(
            [{"url": "https://e.example", "body": {"a": 1}, "queue": "q"}, {"url_group": "g"}]
        ),
        [ACCEPTED, EACH],
    ),
    "get a message": (lambda c: c.message.get("msg_1"), MESSAGE),
    "get a plain message": (lambda c: c.message.get("msg_1"), PLAIN),
    "cancel": (lambda c: c.message.cancel("msg_1"), {"cancelled": 1}),
    "cancel_many": (lambda c: c.message.cancel_many(["m1", "m2"]), {"cancelled": 2}),
    "cancel_all": (lambda c: c.message.cancel_all(), {"cancelled": 7}),
    "create a schedule": (
        lambda c: c.schedule.create(destination=URL, cron="* * * * *", body="x"),
        {"scheduleId": "scd_1"},
    ),
    "create a schedule, everything said": (
        lambda c: c.schedule.create_json(
            destination="g",
            cron="CRON_TZ=Europe/Berlin 0 9 * * *",
            body={"a": 1},
            delay="1m",
            schedule_id="id1",
            queue="q",
            **EVERYTHING,
            **FLOWING,
        ),
        {"scheduleId": "id1"},
    ),
    "get a schedule": (lambda c: c.schedule.get("scd_1"), SCHEDULE),
    "list schedules": (lambda c: c.schedule.list(), [SCHEDULE]),
    "delete a schedule": (lambda c: c.schedule.delete("scd_1"), {}),
    "pause a schedule": (lambda c: c.schedule.pause("scd_1"), {}),
    "resume a schedule": (lambda c: c.schedule.resume("scd_1"), {}),
    "upsert a queue": (lambda c: c.queue.upsert("q", parallelism=2), {}),
    "upsert a paused queue": (lambda c: c.queue.upsert("q", paused=True), {}),
    "get a queue": (lambda c: c.queue.get("q"), QUEUE),
    "list queues": (lambda c: c.queue.list(), [QUEUE]),
    "delete a queue": (lambda c: c.queue.delete("q"), {}),
    "pause a queue": (lambda c: c.queue.pause("q"), {}),
    "resume a queue": (lambda c: c.queue.resume("q"), {}),
    "upsert endpoints": (
        lambda c: c.url_group.upsert_endpoints("g", [{"url": "https://a.example", "name": "First endpoint"}]),
        {},
    ),
    "remove endpoints": (lambda c: c.url_group.remove_endpoints("g", [{"name": "a"}, {"url": "https://b"}]), {}),
    "get a group": (lambda c: c.url_group.get("g"), GROUP),
    "list groups": (lambda c: c.url_group.list(), [GROUP]),
    "delete a group": (lambda c: c.url_group.delete("g"), {}),
    "get a dead letter": (lambda c: c.dlq.get("1-0"), {key: DEAD[key] for key in DEAD if key != "dlqId"}),
    "list dead letters": (lambda c: c.dlq.list(), {"messages": [DEAD], "cursor": "2-0"}),
    "list dead letters by filter": (
        lambda c: c.dlq.list(
            cursor="1-0",
            count=3,
            filter={
                "message_id": "m",
                "url": "https://example.com/?a=b&c=d e",
                "url_group": "g",
                "queue": "q",
                "schedule_id": "s",
                "from_time": 1,
                "to_time": 2,
                "response_status": 404,
                "caller_ip": "1.1.1.1",
                "label": "l",
            },
        ),
        {"messages": []},
    ),
    "delete a dead letter": (lambda c: c.dlq.delete("1-0"), {}),
    "delete dead letters": (lambda c: c.dlq.delete_many(["1-0", "2-0"]), {"deleted": 2}),
    "list the log": (lambda c: c.log.list(), {"events": [EVENT], "cursor": "5-0"}),
    "list the log by filter": (
        lambda c: c.log.list(
            cursor="1-1",
            count=5,
            filter={
                "message_id": "m",
                "message_ids": ["a", "b"],
                "state": state(c),
                "url": "https://example.com",
                "url_group": "g",
                "queue": "q",
                "schedule_id": "s",
                "from_time": 1,
                "to_time": 2,
                "label": "l",
            },
        ),
        {"events": []},
    ),
    "get a flow-control key": (lambda c: c.flow_control.get("k"), FLOW),
    "get a bare flow-control key": (lambda c: c.flow_control.get("k"), {"flowControlKey": "k"}),
    "global parallelism": (lambda c: c.flow_control.get_global_parallelism(), {"parallelismMax": 9}),
    "pause a key": (lambda c: c.flow_control.pause("k"), {}),
    "resume a key": (lambda c: c.flow_control.resume("k"), {}),
    "pin": (lambda c: c.flow_control.pin("k", {"rate": 1, "period": 60, "parallelism": 2}), {}),
    "unpin": (lambda c: c.flow_control.unpin("k", {"rate": True, "parallelism": False}), {}),
    "reset a rate": (lambda c: c.flow_control.reset_rate("k"), {}),
    "signing keys": (lambda c: c.signing_key.get(), {"current": "sig_1", "next": "sig_2"}),
    "rotate": (lambda c: c.signing_key.rotate(), {"current": "sig_2", "next": "sig_3"}),
    "any path": (
        lambda c: c.http.request(
            path="/v2/x/y", method="POST", headers={"A": "b"}, body="z", params={"p": "q r", "s": ["1", "2"]}
        ),
        {"any": "thing"},
    ),
    "any path as text": (lambda c: c.http.request(path="/v2/x", method="GET", parse_response=False), {"any": 1}),
}


@pytest.fixture(scope="module")
def theirs(_listening: ScriptedService) -> Iterator[official.QStash]:
    client = official.QStash(TOKEN, base_url=_listening.url, retry=False)
    yield client
    client.http._client.close()


@pytest.fixture(scope="module")
def mine(_listening: ScriptedService) -> Iterator[ours.QStash]:
    with ours.QStash(TOKEN, base_url=_listening.url, retry=False) as client:
        yield client


@pytest.mark.parametrize(("ask", "answer"), CALLS.values(), ids=CALLS.keys())
def test_the_same_call_is_the_same_request_and_the_same_answer(
    ask: Ask, answer: Any, service: ScriptedService, theirs: official.QStash, mine: ours.QStash
) -> None:
    service.answers += [answer, answer]
    expected = ask(theirs)
    actual = ask(mine)
    wanted, sent = service.received
    assert meaning(sent) == meaning(wanted)
    assert_says_at_least(actual, expected)


@pytest.mark.anyio
@pytest.mark.parametrize(("ask", "answer"), CALLS.values(), ids=CALLS.keys())
async def test_the_async_client_sends_and_answers_exactly_as_the_sync_one(
    ask: Ask, answer: Any, service: ScriptedService, mine: ours.QStash
) -> None:
    service.answers += [answer, answer]
    expected = ask(mine)
    async with ours.AsyncQStash(TOKEN, base_url=service.url, retry=False) as client:
        actual = await ask(_Like(client))
    assert service.received[0] == service.received[1]
    assert actual == expected


class _Like(ours.QStash):
    """An async client that the helpers above take for one of ours."""

    def __init__(self, client: ours.AsyncQStash) -> None:
        self.__dict__.update(client.__dict__)


TRANSPORT = {"host", "accept", "accept-encoding", "connection", "user-agent", "content-length"}


def meaning(request: ReceivedRequest) -> dict[str, Any]:
    """A request without what only HTTP cares about, its options as the broker understands them."""
    path, _, query = request.target.partition("?")
    headers = [(name, value) for name, value in request.headers if name.lower() not in TRANSPORT]
    body: Any = request.body
    if path == "/v2/batch":
        body = [{**item, "headers": options(item["headers"].items())} for item in json.loads(request.body)]
    raw = path.startswith(("/v2/publish/", "/v2/enqueue/", "/v2/schedules/"))
    return {
        "method": request.method,
        "path": path,
        "query": query if raw else sorted(parse_qsl(query, keep_blank_values=True)),
        "options": options(headers),
        "body": body,
        "says that it has no body": request.header("Content-Length") == "0",
    }


def options(headers: Any) -> Any:
    lines = [(wire.canonical_name(name), value) for name, value in headers]
    freely = ("Upstash-Callback-", "Upstash-Failure-Callback-")
    return {
        "known": wire.read(lines),
        "names": sorted(name for name, _ in lines),
        "as they are": sorted(line for line in lines if line[0].startswith(freely) or "Upstash" not in line[0]),
    }


def assert_says_at_least(actual: Any, expected: Any) -> None:
    """Same values under the same names in a class of the same name; ours may know more."""
    if isinstance(expected, list):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_says_at_least(one, other)
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            assert_says_at_least(actual[key], value)
    elif dataclasses.is_dataclass(expected):
        assert type(actual).__name__ == type(expected).__name__
        for field in dataclasses.fields(expected):
            assert_says_at_least(getattr(actual, field.name), getattr(expected, field.name))
    elif isinstance(expected, enum.Enum):
        assert (type(actual).__name__, actual.value) == (type(expected).__name__, expected.value)
    else:
        assert actual == expected
