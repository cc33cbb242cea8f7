"""Every public name of the official Python package, used through `qtasks.qstash` against a running broker.

Each test says which names it covers; it fails if it did not use one of them, and the walk at the end fails if a name is
covered by no test. What a call did is always read back by another one, so a method that does nothing cannot pass.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import enum
import inspect
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import pytest
import qstash as official

from qtasks import qstash as ours
from qtasks.broker.core.values import AccountCredentials
from qtasks.broker.store.verbs import schedules
from qtasks.protocol.messages import State
from qtasks.qstash.chat import anthropic
from qtasks.qstash.dlq import DlqFilter
from qtasks.qstash.errors import (
    BrokerUnreachable,
    DailyMessageLimitExceededError,
    QStashError,
    RateLimitExceededError,
    SignatureError,
)
from qtasks.qstash.flow_control_api import PinFlowControlOptions, UnpinFlowControlOptions
from qtasks.qstash.http import RetryConfig
from qtasks.qstash.log import LogFilter
from qtasks.qstash.message import ApiT, BatchJsonRequest, BatchRequest, FlowControl, LlmApi, Redact
from qtasks.qstash.operations.providers import custom, openai
from qtasks.qstash.receiver import Receiver
from qtasks.qstash.url_group import RemoveEndpointRequest, UpsertEndpointRequest
from tests.support.running import Answer, Endpoint, Received, RunningBroker
from tests.unit.qstash.test_parity import NAMES

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., None])
COVERED: dict[str, frozenset[str]] = {}
"""Name of a test to the names it covers."""
MESSAGES: Any = [{"role": "user", "content": "hello"}]


def covers(*names: str) -> Callable[[F], F]:
    """This test uses these names: methods as ``queue.pause``, everything else by itself."""

    def note(test: F) -> F:
        COVERED[test.__name__] = frozenset(names)
        return test

    return note


class Client:
    """Our client, sync or async, which notes what is used: `client(lambda q: q.message.get("msg_1"))`."""

    def __init__(self, kind: str, **config: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self.used: set[str] = set()
        self.kind = kind
        made = self.use(ours.QStash if kind == "sync" else ours.AsyncQStash)
        self._qstash: Any = made(**config)
        self.used.add(type(self._qstash.http).__name__)

    def __call__(self, call: Any) -> Any:
        result = self._wait(call(_Noting(self._qstash, self)))
        self._note(result)
        return result

    def use(self, thing: T, name: str = "") -> T:
        """`thing`, noted by its name: for what is neither called on the client nor returned by it."""
        self.used.add(name or getattr(thing, "__name__", ""))
        return thing

    def _note(self, value: Any) -> None:
        """The types of what came back."""
        if dataclasses.is_dataclass(value) or isinstance(value, enum.Enum):
            self.used.add(type(value).__name__)
        if dataclasses.is_dataclass(value):
            self._note([getattr(value, field.name) for field in dataclasses.fields(value)])
        elif isinstance(value, Mapping):
            self._note(list(value.values()))
        elif isinstance(value, list | tuple):
            for one in value:
                self._note(one)

    def _wait(self, result: Any) -> Any:
        return self._loop.run_until_complete(result) if inspect.isawaitable(result) else result

    def collect(self, stream: Any) -> list[Any]:
        async def collected() -> list[Any]:
            return [one async for one in stream]

        return self._wait(collected()) if hasattr(stream, "__aiter__") else list(stream)

    def close(self) -> None:
        self._wait(self._qstash.close())
        self._loop.close()


class _Noting:
    """Notes ``message.publish`` and the class that has it."""

    def __init__(self, target: Any, client: Client, api: str = "") -> None:
        self._target, self._client, self._api = target, client, api

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not self._api:
            self._client.used.add(type(found).__name__)
            return _Noting(found, self._client, name)
        self._client.used.add(f"{self._api}.{name}")
        return found


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, broker: RunningBroker, user: AccountCredentials) -> Iterator[Client]:
    made = Client(request.param, token=user.token, base_url=broker.url)
    yield made
    made.close()
    unused = COVERED[request.node.originalname] - made.used - OF_THE_OTHER[made.kind]
    assert not unused, f"said to be covered, but not used: {sorted(unused)}"


_ASYNC = frozenset(str(one.values[1]) for one in NAMES if str(one.values[1]).startswith("Async"))
OF_THE_OTHER = {"sync": _ASYNC, "async": frozenset(name.removeprefix("Async") for name in _ASYNC)}
"""What only the other kind of client has."""

NOT_FOUND: Answer = (404, {"Content-Type": "text/plain", "X-Why": "gone"}, b"404 Not Found")


def answering(status: int, headers: dict[str, str]) -> Callable[[Received], Answer]:
    return lambda received: (status, headers, b"{}")


def dead(broker: RunningBroker, client: Client, endpoint: Endpoint, *bodies: str) -> list[str]:
    """Messages that fail at once and for good, one after the other."""
    endpoint.answer = lambda received: NOT_FOUND
    ids = []
    for body in bodies:
        sent = client(lambda q, body=body: q.message.publish(url=endpoint.url, body=body, retries=0))
        broker.wait_for(State.FAILED, sent.message_id)
        ids.append(sent.message_id)
    return ids


def fire(broker: RunningBroker, user: AccountCredentials, schedule_id: str) -> None:
    """Let a schedule be due at the last full minute, instead of waiting for the next."""

    async def bring_forward() -> None:
        account, now_ms = broker.broker.accounts[user.name], broker.broker.clock.now_ms()
        minute_ms = now_ms // 60_000 * 60_000
        store = broker.broker.store
        await store.write(schedules.pause_schedule, account, schedule_id, paused=True, next_ms=None)
        await store.write(schedules.pause_schedule, account, schedule_id, paused=False, next_ms=minute_ms)
        broker.broker.scheduler.wake()

    broker.call(bring_forward())


def letters(client: Client) -> list[Any]:
    found: list[Any] = client(lambda q: q.dlq.list()).messages
    return found


# -- messages


@covers(
    "QStash", "AsyncQStash", "HttpClient", "AsyncHttpClient", "MessageApi", "AsyncMessageApi",
    "message.publish", "message.publish_json", "message.get",
    "PublishResponse", "PublishUrlGroupResponse", "Message", "FlowControl", "FlowControlProperties", "Redact",
)  # fmt: skip
def test_what_is_published_is_delivered_and_read_back(client: Client, endpoint: Endpoint) -> None:
    limits = client.use(FlowControl)(key="k", parallelism=3, rate=5, period="1m")
    hidden = client.use(Redact)(body=True)
    sent = client(
        lambda q: q.message.publish(url=endpoint.url, body="text", flow_control=limits, redact=hidden, label="l")
    )
    [received] = endpoint.wait_for(1)
    assert received.body == b"text"
    kept = client(lambda q: q.message.get(sent.message_id))
    assert kept.body.startswith("REDACTED:")
    assert (kept.flow_control.key, kept.flow_control.parallelism, kept.flow_control.rate) == ("k", 3, 5)
    client(lambda q: q.url_group.upsert_endpoints("g", [{"url": f"{endpoint.url}/1"}, {"url": f"{endpoint.url}/2"}]))
    grouped = client(lambda q: q.message.publish_json(url_group="g", body={"n": 1}, delay="1h"))
    assert [one.url for one in grouped] == [f"{endpoint.url}/1", f"{endpoint.url}/2"]
    assert client(lambda q: q.message.get(grouped[1].message_id)).body == '{"n": 1}'


@covers("message.enqueue", "message.enqueue_json", "EnqueueResponse", "EnqueueUrlGroupResponse")
def test_what_is_enqueued_waits_in_the_queue(client: Client, endpoint: Endpoint) -> None:
    client(lambda q: q.queue.upsert("line", paused=True))
    one = client(lambda q: q.message.enqueue(queue="line", url=endpoint.url, body="x"))
    client(lambda q: q.url_group.upsert_endpoints("g", [{"url": endpoint.url}]))
    [two] = client(lambda q: q.message.enqueue_json(queue="line", url_group="g", body=[1]))
    assert client(lambda q: q.queue.get("line")).lag == 2
    assert client(lambda q: q.message.get(one.message_id)).queue == "line"
    assert client(lambda q: q.message.get(two.message_id)).body == "[1]"


@covers(
    "message.batch", "message.batch_json", "BatchRequest", "BatchJsonRequest", "BatchResponse", "BatchUrlGroupResponse"
)  # fmt: skip
def test_a_batch_is_many_messages(client: Client, endpoint: Endpoint) -> None:
    client(lambda q: q.url_group.upsert_endpoints("g", [{"url": endpoint.url}]))
    texts = [
        client.use(BatchRequest)(url=endpoint.url, body="a", delay="1h"),
        client.use(BatchRequest)(url_group="g", body="b", delay="1h"),
    ]
    objects = [client.use(BatchJsonRequest)(url=endpoint.url, body={"c": 1}, delay="1h")]
    first, [second] = client(lambda q: q.message.batch(texts))
    [third] = client(lambda q: q.message.batch_json(objects))
    bodies = [client(lambda q, one=one: q.message.get(one.message_id)).body for one in (first, second, third)]
    assert bodies == ["a", "b", '{"c": 1}']


@covers("message.cancel", "message.cancel_many", "message.cancel_all")
def test_what_is_cancelled_is_not_delivered(client: Client, endpoint: Endpoint) -> None:
    ids = [client(lambda q: q.message.publish(url=endpoint.url, delay="1h")).message_id for _ in range(4)]
    client(lambda q: q.message.cancel(ids[0]))
    assert client(lambda q: q.message.cancel_many(ids[:2])) == 1
    assert client(lambda q: q.message.cancel_all()) == 2
    cancelled = client(lambda q: q.log.list(filter={"state": "CANCELED"})).logs
    assert {entry.message_id for entry in cancelled} == set(ids)


# -- resources


@covers(
    "QueueApi", "AsyncQueueApi", "Queue",
    "queue.upsert", "queue.get", "queue.list", "queue.pause", "queue.resume", "queue.delete",
)  # fmt: skip
def test_a_queue_lives_and_dies(client: Client) -> None:
    client(lambda q: q.queue.upsert("line", parallelism=3))
    made = client(lambda q: q.queue.get("line"))
    assert (made.name, made.parallelism, made.paused, made.lag) == ("line", 3, False, 0)
    client(lambda q: q.queue.pause("line"))
    assert client(lambda q: q.queue.get("line")).paused
    client(lambda q: q.queue.resume("line"))
    assert client(lambda q: q.queue.list()) == [client(lambda q: q.queue.get("line"))]
    assert not client(lambda q: q.queue.get("line")).paused
    client(lambda q: q.queue.delete("line"))
    assert client(lambda q: q.queue.list()) == []


@covers(
    "UrlGroupApi", "AsyncUrlGroupApi", "UrlGroup", "Endpoint", "UpsertEndpointRequest", "RemoveEndpointRequest",
    "url_group.upsert_endpoints", "url_group.remove_endpoints", "url_group.get", "url_group.list",
    "url_group.delete", "url_group.set_default_headers",
)  # fmt: skip
def test_a_url_group_lives_and_dies(client: Client, endpoint: Endpoint) -> None:
    endpoints = [
        client.use(UpsertEndpointRequest)(url=f"{endpoint.url}/1", name="one"),
        client.use(UpsertEndpointRequest)(url=f"{endpoint.url}/2"),
    ]
    client(lambda q: q.url_group.upsert_endpoints("g", endpoints))
    made = client(lambda q: q.url_group.get("g"))
    assert [(one.name, one.url) for one in made.endpoints] == [
        ("one", f"{endpoint.url}/1"),
        (None, f"{endpoint.url}/2"),
    ]
    client(lambda q: q.url_group.set_default_headers("g", {"Upstash-Retries": "7"}))
    [sent, _] = client(lambda q: q.message.publish(url_group="g", delay="1h"))
    assert client(lambda q: q.message.get(sent.message_id)).max_retries == 7
    client(lambda q: q.url_group.remove_endpoints("g", [client.use(RemoveEndpointRequest)(name="one")]))
    [left] = client(lambda q: q.url_group.list())
    assert [one.url for one in left.endpoints] == [f"{endpoint.url}/2"]
    client(lambda q: q.url_group.delete("g"))
    assert client(lambda q: q.url_group.list()) == []


@covers(
    "ScheduleApi", "AsyncScheduleApi", "Schedule", "ScheduleState",
    "schedule.create", "schedule.create_json", "schedule.get", "schedule.list", "schedule.pause", "schedule.resume",
    "schedule.delete",
)  # fmt: skip
def test_a_schedule_lives_fires_and_dies(
    client: Client, endpoint: Endpoint, broker: RunningBroker, user: AccountCredentials
) -> None:
    text = client(lambda q: q.schedule.create(destination=endpoint.url, cron="* * * * *", body="tick"))
    value = client(lambda q: q.schedule.create_json(destination=endpoint.url, cron="0 9 * * *", body={"n": 1}))
    assert client(lambda q: q.schedule.get(value)).body == '{"n": 1}'
    assert {one.schedule_id for one in client(lambda q: q.schedule.list())} == {text, value}
    client(lambda q: q.schedule.pause(value))
    assert client(lambda q: q.schedule.get(value)).paused
    client(lambda q: q.schedule.resume(value))
    assert not client(lambda q: q.schedule.get(value)).paused
    fire(broker, user, text)
    [received] = endpoint.wait_for(1)
    assert received.body == b"tick"
    message_id = received.headers["Upstash-Message-Id"]
    broker.wait_for(State.DELIVERED, message_id)
    states = client(lambda q: q.schedule.get(text)).last_schedule_states
    assert {name: state.value for name, state in states.items()} == {message_id: "SUCCESS"}
    client(lambda q: q.schedule.delete(text))
    client(lambda q: q.schedule.delete(value))
    assert client(lambda q: q.schedule.list()) == []


@covers(
    "FlowControlApi", "AsyncFlowControlApi", "FlowControlInfo", "GlobalParallelismInfo", "PinFlowControlOptions",
    "UnpinFlowControlOptions", "flow_control.get", "flow_control.list", "flow_control.get_global_parallelism",
    "flow_control.pause", "flow_control.resume", "flow_control.pin", "flow_control.unpin", "flow_control.reset_rate",
    "flow_control.reset",
)  # fmt: skip
def test_a_flow_control_key_is_steered(client: Client, endpoint: Endpoint, broker: RunningBroker) -> None:
    def key() -> Any:
        return client(lambda q: q.flow_control.get("k"))

    def deliver() -> None:
        sent = client(
            lambda q: q.message.publish(url=endpoint.url, flow_control={"key": "k", "rate": 5, "period": "1h"})
        )
        broker.wait_for(State.DELIVERED, sent.message_id)

    for reset in ("reset_rate", "reset"):
        deliver()
        assert (key().rate_max, key().rate_count, key().rate_period) == (5, 1, 3600)
        client(lambda q, reset=reset: getattr(q.flow_control, reset)("k"))
        assert key().rate_count == 0
    client(lambda q: q.flow_control.pause("k"))
    assert key().is_paused
    waiting = client(lambda q: q.message.publish(url=endpoint.url, flow_control={"key": "k", "rate": 5}))
    assert key().wait_list_size == 1
    client(lambda q: q.flow_control.resume("k"))
    broker.wait_for(State.DELIVERED, waiting.message_id)
    client(lambda q: q.flow_control.pin("k", client.use(PinFlowControlOptions)(parallelism=2, rate=9, period=60)))
    assert (key().parallelism_max, key().rate_max, key().rate_period) == (2, 9, 60)
    assert (key().is_pinned_parallelism, key().is_pinned_rate) == (True, True)
    client(lambda q: q.flow_control.unpin("k", client.use(UnpinFlowControlOptions)(rate=True)))
    assert (key().is_pinned_parallelism, key().is_pinned_rate) == (True, False)
    assert client(lambda q: q.flow_control.list(search="k")) == [key()]
    assert client(lambda q: q.flow_control.list(search="other")) == []
    everything = client(lambda q: q.flow_control.get_global_parallelism())
    assert everything.parallelism_max > 0 == everything.parallelism_count


@covers(
    "SigningKeyApi", "AsyncSigningKeyApi", "SigningKey", "Receiver", "SignatureError",
    "signing_key.get", "signing_key.rotate",
)  # fmt: skip
def test_keys_rotate_and_deliveries_follow(client: Client, endpoint: Endpoint) -> None:
    before = client(lambda q: q.signing_key.get())
    after = client(lambda q: q.signing_key.rotate())
    assert (after.current, client(lambda q: q.signing_key.get())) == (before.next, after)
    client(lambda q: q.message.publish(url=endpoint.url, body="signed"))
    [received] = endpoint.wait_for(1)
    receiver = client.use(Receiver)(after.current, after.next)
    signature = received.headers["Upstash-Signature"]
    receiver.verify(signature=signature, body="signed", url=endpoint.url)
    with pytest.raises(client.use(SignatureError)):
        receiver.verify(signature=signature, body="forged", url=endpoint.url)


# -- what happened


@covers(
    "LogApi", "AsyncLogApi", "Log", "LogState", "LogFilter", "ListLogsResponse", "log.list", "event.list"
)  # fmt: skip
def test_the_log_tells_what_happened(client: Client, endpoint: Endpoint, broker: RunningBroker) -> None:
    sent = client(lambda q: q.message.publish(url=endpoint.url))
    broker.wait_for(State.DELIVERED, sent.message_id)
    mine = client.use(LogFilter)(message_id=sent.message_id)
    logs = client(lambda q: q.log.list(filter=mine)).logs
    assert [entry.state.value for entry in logs] == ["DELIVERED", "ACTIVE", "CREATED"]
    page = client(lambda q: q.log.list(count=1))
    assert page.logs == logs[:1]
    assert client(lambda q: q.log.list(cursor=page.cursor)).logs == logs[1:]
    events = client(lambda q: q.event.list(filter={"message_id": sent.message_id})).events
    assert [event.time for event in events] == [entry.time for entry in logs]


@covers(
    "DlqApi", "AsyncDlqApi", "DlqMessage", "DlqFilter", "ListDlqMessagesResponse",
    "dlq.get", "dlq.list", "dlq.delete", "dlq.delete_many", "dlq.delete_all",
)  # fmt: skip
def test_dead_letters_are_read_and_deleted(client: Client, endpoint: Endpoint, broker: RunningBroker) -> None:
    ids = dead(broker, client, endpoint, "1", "2", "3", "4")
    found = letters(client)
    assert [letter.message_id for letter in found] == ids
    assert client(lambda q: q.dlq.get(found[0].dlq_id)) == found[0]
    assert (found[0].response_status, found[0].response_body) == (404, "404 Not Found")
    only = client.use(DlqFilter)(message_id=ids[1])
    assert client(lambda q: q.dlq.list(filter=only)).messages == [found[1]]
    client(lambda q: q.dlq.delete(found[0].dlq_id))
    assert client(lambda q: q.dlq.delete_many([found[1].dlq_id])) == 1
    assert [letter.message_id for letter in letters(client)] == ids[2:]
    assert client(lambda q: q.dlq.delete_all(filter={"message_id": ids[2]})).deleted == 1
    assert client(lambda q: q.dlq.delete_all()).deleted == 1
    assert letters(client) == []


@covers("dlq.retry", "dlq.retry_many", "dlq.retry_all")
def test_dead_letters_are_sent_again(client: Client, endpoint: Endpoint, broker: RunningBroker) -> None:
    dead(broker, client, endpoint, "1", "2", "3")
    endpoint.answer = lambda received: (200, {}, b"")
    first, second, _ = letters(client)
    again = [client(lambda q: q.dlq.retry(first.dlq_id, retries=9)).message_id]
    again += [one.message_id for one in client(lambda q: q.dlq.retry_many([second.dlq_id])).responses]
    again += [one.message_id for one in client(lambda q: q.dlq.retry_all()).responses]
    for message_id in again:
        broker.wait_for(State.DELIVERED, message_id)
    assert [client(lambda q, one=one: q.message.get(one)).body for one in again] == ["1", "2", "3"]
    assert client(lambda q: q.message.get(again[0])).max_retries == 9
    assert letters(client) == []


# -- language models


@covers("ApiT", "LlmApi", "LlmProvider", "openai", "custom")
def test_a_language_model_is_a_destination(client: Client, endpoint: Endpoint) -> None:
    endpoint.answer = lambda received: (200, {}, b'{"choices": []}')
    provider = client.use(custom)(endpoint.url, "secret")
    client.used.add(type(provider).__name__)
    body = {"model": "m", "messages": MESSAGES}
    client(
        lambda q: q.message.publish_json(
            api=client.use(LlmApi)(name="llm", provider=provider), body=body, callback=f"{endpoint.url}/told"
        )
    )
    asked, told = endpoint.wait_for(2)
    assert (asked.path, asked.headers["Authorization"]) == ("/v1/chat/completions", "Bearer secret")
    assert json.loads(asked.body) == body
    assert base64.b64decode(json.loads(told.body)["body"]) == b'{"choices": []}'
    for made, url in [
        (client.use(openai)("t"), "https://api.openai.com/v1/chat/completions"),
        (anthropic("t"), "https://api.anthropic.com/v1/messages"),
    ]:
        sent = client(
            lambda q, made=made: q.message.publish_json(
                api=client.use(ApiT, "ApiT")(name="llm", provider=made), body=body, callback=endpoint.url, delay="1h"
            )
        )
        assert client(lambda q, sent=sent: q.message.get(sent.message_id)).url == url


@covers("chat.create", "chat.prompt")
def test_chat_is_answered_whole_and_as_a_stream(client: Client) -> None:
    whole = client(lambda q: q.chat.create(messages=MESSAGES, model="any"))
    assert whole.choices[0].message.content.endswith("You said: hello")
    stream = client(lambda q: q.chat.create(messages=MESSAGES, model="any", stream=True))
    pieces = [chunk.choices[0].delta.content for chunk in client.collect(stream)]
    assert "".join(pieces) == whole.choices[0].message.content
    prompted = client(lambda q: q.chat.prompt(user="hello", model="any"))
    assert prompted.choices[0].message.content == whole.choices[0].message.content


# -- what goes wrong


@covers("QStashError")
def test_a_refusal_is_an_error_with_the_services_words(client: Client, endpoint: Endpoint) -> None:
    with pytest.raises(client.use(QStashError), match="Upstash-Retries"):
        client(lambda q: q.message.publish(url=endpoint.url, retries=-1))
    assert client(lambda q: q.log.list()).logs == []


@covers("RateLimitExceededError", "DailyMessageLimitExceededError")
def test_limits_of_the_service_are_errors_of_their_own(client: Client, endpoint: Endpoint) -> None:
    """Our broker has no such limits: a server that answers as the hosted service does stands in."""
    other = Client(client.kind, token="t", base_url=endpoint.url, retry=False)
    limits: list[tuple[str, Any]] = [("Burst-", RateLimitExceededError), ("", DailyMessageLimitExceededError)]
    for prefix, error in limits:
        headers = {f"{prefix}RateLimit-{name}": value for name, value in (("Limit", "9"), ("Remaining", "0"))}
        endpoint.answer = answering(429, headers)
        with pytest.raises(client.use(error)) as raised:
            other(lambda q: q.queue.list())
        assert (raised.value.limit, raised.value.remaining) == ("9", "0")
    other.close()


@covers("RetryConfig")
def test_the_clients_own_retries_are_configured(client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
    asked: list[int] = []

    def backoff(attempt: int) -> float:
        asked.append(attempt)
        return 1

    config = client.use(RetryConfig)(retries=2, backoff=backoff)
    other = Client(client.kind, token="t", base_url=nobody, retry=config)
    with pytest.raises(BrokerUnreachable):
        other(lambda q: q.queue.list())
    assert len(asked) == 2
    other.close()


def test_no_public_name_is_left_out() -> None:
    methods = {
        f"{api}.{method}"
        for qstash in (official.QStash("t"), ours.QStash("t"))
        for api, found in vars(qstash).items()
        if api != "http"
        for method in dir(found)
        if not method.startswith("_")
    }
    names = {str(one.values[1]) for one in NAMES}
    assert (methods | names) - frozenset().union(*COVERED.values()) == set(), "no test uses these"
