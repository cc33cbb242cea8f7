"""The official `qstash` package, unchanged, against a real broker on a real socket.

Every test runs with its sync and its async client. Deliveries are checked with its `Receiver`. The numbers B1 to B30
are those of the conformance checklist (docs/protocol.md, appendix B).
"""

from __future__ import annotations

import asyncio
import base64
import inspect
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from qstash import AsyncQStash, QStash, Receiver
from qstash.errors import QStashError, SignatureError
from qstash.log import LogState

from qtasks.broker.core.values import AccountCredentials
from qtasks.broker.settings import DEV_CREDENTIALS, BrokerSettings
from qtasks.protocol.messages import State
from tests.support.running import Answer, Endpoint, Received, RunningBroker

CLOCKS_APART_MS = 10
"""The broker's clock and this process's differ by the milliseconds that each of them cuts off."""


class Client:
    """The official client, sync or async: `client(lambda q: q.message.get("msg_1"))`."""

    def __init__(self, kind: str, token: str | None, url: str) -> None:
        made: Any = QStash if kind == "sync" else AsyncQStash
        self._loop = asyncio.new_event_loop()
        self._qstash = made(token, base_url=url, retry=False)

    def __call__(self, call: Any) -> Any:
        return self._wait(call(self._qstash))

    def _wait(self, result: Any) -> Any:
        return self._loop.run_until_complete(result) if inspect.isawaitable(result) else result

    def close(self) -> None:
        connections = self._qstash.http._client  # the package offers no way to close them
        self._wait(connections.close() if hasattr(connections, "close") else connections.aclose())
        self._loop.close()


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(broker: RunningBroker, kind: str, user: AccountCredentials) -> Iterator[Client]:
    made = Client(kind, user.token, broker.url)
    yield made
    made.close()


def verify(received: Received, url: str, user: AccountCredentials) -> None:
    assert user.keys is not None
    Receiver(user.keys.current, user.keys.next).verify(
        signature=received.headers["Upstash-Signature"], body=received.body.decode(), url=url
    )


def answering(*answers: Answer | int) -> Any:
    """Answer with each of `answers` in turn, the last for ever; a number is a status without a body."""
    left = [(one, {}, b"") if isinstance(one, int) else one for one in answers]
    return lambda received: left.pop(0) if len(left) > 1 else left[0]


NOT_FOUND: Answer = (404, {"Content-Type": "text/plain", "X-Why": "gone"}, b"404 Not Found")


def states(client: Client, message_id: str) -> list[str]:
    logs = client(lambda q: q.log.list(filter={"message_id": message_id})).logs
    return [entry.state.value for entry in reversed(logs)]


def publish_dead(broker: RunningBroker, client: Client, endpoint: Endpoint, **options: Any) -> str:
    """A message that fails at once and for good."""
    url = options.pop("url", f"{endpoint.url}/404")
    message_id = client(lambda q: q.message.publish(url=url, retries=0, **options)).message_id
    broker.wait_for(State.FAILED, message_id)
    return str(message_id)


# -- publish and delivery


def test_a_publish_is_delivered_signed_and_logged_once(
    broker: RunningBroker, endpoint: Endpoint, client: Client, user: AccountCredentials
) -> None:
    """docs/protocol.md B1."""
    url = f"{endpoint.url}/hook/?a=1&b=x%2Fy&empty="
    sent = client(
        lambda q: q.message.publish(url=url, body="héllo", method="GET", headers={"test-header": "test-value"})
    )
    assert sent.message_id.startswith("msg_")
    assert not sent.deduplicated
    [received] = endpoint.wait_for(1)
    assert (received.method, received.path, received.body) == ("GET", "/hook/?a=1&b=x%2Fy&empty=", "héllo".encode())
    assert received.headers["Test-Header"] == "test-value"
    assert received.headers["User-Agent"] == "Upstash-QStash"
    assert received.headers["Upstash-Message-Id"] == sent.message_id
    assert received.headers["Upstash-Retried"] == "0"
    assert received.headers["Upstash-Caller-Ip"] == "127.0.0.1"
    assert received.headers["Upstash-Region"]
    assert "Authorization" not in received.headers
    assert not [name for name in received.headers if name.lower().startswith(("upstash-forward", "upstash-method"))]
    verify(received, url, user)
    broker.wait_for(State.DELIVERED, sent.message_id)
    assert states(client, sent.message_id) == ["CREATED", "ACTIVE", "DELIVERED"]


def test_the_official_receiver_refuses_another_body_another_url_and_other_keys(
    endpoint: Endpoint, client: Client, user: AccountCredentials
) -> None:
    client(lambda q: q.message.publish_json(url=endpoint.url, body={"amount": 1}))
    [received] = endpoint.wait_for(1)
    verify(received, endpoint.url, user)
    with pytest.raises(SignatureError):
        verify(received, endpoint.url + "/other", user)
    with pytest.raises(SignatureError):
        verify(Received("POST", "/", received.headers, b'{"amount": 1000}'), endpoint.url, user)
    with pytest.raises(SignatureError):
        verify(received, endpoint.url, DEV_CREDENTIALS[1])


@pytest.mark.parametrize("body", [None, "", "text", b"\x00\xff\xfe\x80 bytes", "x" * 1024 * 1024])
def test_a_body_arrives_byte_for_byte(endpoint: Endpoint, client: Client, body: str | bytes | None) -> None:
    expected = body if isinstance(body, bytes) else (body or "").encode()
    sent = client(lambda q: q.message.publish(url=endpoint.url, body=body, content_type="application/x-odd"))
    [received] = endpoint.wait_for(1)
    assert received.body == expected
    assert received.headers["Content-Type"] == "application/x-odd"
    kept = client(lambda q: q.message.get(sent.message_id))
    if expected[:1] == b"\x00":
        assert base64.b64decode(kept.body_base64) == expected
        assert kept.body is None
    else:
        assert (kept.body or "") == expected.decode()


def test_publish_json_with_every_option_is_kept_and_read_back(client: Client, endpoint: Endpoint) -> None:
    """docs/protocol.md B9, B11, B27."""
    options: dict[str, Any] = {
        "method": "PUT",
        "delay": "10d",
        "retries": 7,
        "retry_delay": "1000 * (1 + retried)",
        "timeout": 30,
        "headers": {"x-one": "1", "X-Two": "2"},
        "callback": "https://cb.example/x?y=1",
        "callback_headers": {"Forward-A": "b"},
        "failure_callback": "https://fcb.example/",
        "deduplication_id": "once",
        "flow_control": {"key": "k", "parallelism": 2, "rate": 5, "period": "1h30m3s"},
        "label": "nightly",
    }
    before_ms = time.time() * 1000
    sent = client(lambda q: q.message.publish_json(url=f"{endpoint.url}/a?x=1", body={"hello": "world"}, **options))
    message = client(lambda q: q.message.get(sent.message_id))
    assert message.message_id == sent.message_id
    assert (message.url, message.method, message.body) == (f"{endpoint.url}/a?x=1", "PUT", '{"hello": "world"}')
    assert message.headers == {"Content-Type": ["application/json"], "X-One": ["1"], "X-Two": ["2"]}
    assert message.max_retries == 7
    assert message.retry_delay_expression == "1000 * (1 + retried)"
    assert (message.callback, message.failure_callback) == ("https://cb.example/x?y=1", "https://fcb.example/")
    assert message.callback_headers == {"A": ["b"]}
    assert message.label == "nightly"
    flow = message.flow_control
    assert (flow.key, flow.parallelism, flow.rate, flow.period) == ("k", 2, 5, 5403)
    assert message.caller_ip == "127.0.0.1"
    assert message.not_before >= before_ms + 864_000_000 - CLOCKS_APART_MS
    assert message.not_before - message.created_at == 864_000_000
    assert endpoint.received == []


def test_message_headers_are_exactly_what_was_forwarded(client: Client, endpoint: Endpoint) -> None:
    """docs/protocol.md B10."""
    forwarded = {"test-header": "test-value", "Upstash-Forward-Upstash-Odd": "v"}
    sent = client(lambda q: q.message.publish(url=endpoint.url, headers=forwarded, delay="1d"))
    message = client(lambda q: q.message.get(sent.message_id))
    assert message.headers == {"Test-Header": ["test-value"], "Upstash-Odd": ["v"]}
    bare = client(lambda q: q.message.publish(url=endpoint.url, delay="1d"))
    assert client(lambda q: q.message.get(bare.message_id)).headers is None


def test_the_brokers_own_headers_cannot_be_forged(client: Client, endpoint: Endpoint, user: AccountCredentials) -> None:
    forged = {"Upstash-Message-Id": "msg_x", "upstash-signature": "no", "Upstash-Retried": "9", "X-Mine": "1"}
    sent = client(lambda q: q.message.publish(url=endpoint.url, headers=forged))
    [received] = endpoint.wait_for(1)
    assert received.headers["Upstash-Message-Id"] == sent.message_id
    assert received.headers["Upstash-Retried"] == "0"
    assert received.headers["X-Mine"] == "1"
    verify(received, endpoint.url, user)


def test_a_delayed_message_is_delivered_at_or_after_its_time(client: Client, endpoint: Endpoint) -> None:
    """docs/protocol.md B11."""
    arrivals: list[float] = []

    def note(received: Received) -> Answer:
        arrivals.append(time.time() * 1000)
        return 200, {}, b""

    endpoint.answer = note
    sent = client(lambda q: q.message.publish(url=endpoint.url, delay="300ms"))
    message = client(lambda q: q.message.get(sent.message_id))
    endpoint.wait_for(1)
    assert message.not_before == message.created_at + 300
    assert message.not_before - CLOCKS_APART_MS <= arrivals[0] <= message.not_before + 1000


def test_an_absolute_time_wins_over_a_delay_and_the_past_means_now(client: Client, endpoint: Endpoint) -> None:
    tomorrow_s = int(time.time()) + 86_400
    later = client(lambda q: q.message.publish(url=endpoint.url, not_before=tomorrow_s, delay="1h"))
    assert client(lambda q: q.message.get(later.message_id)).not_before == tomorrow_s * 1000
    client(lambda q: q.message.publish(url=f"{endpoint.url}/now", not_before=1_000_000, delay="1h"))
    [received] = endpoint.wait_for(1)
    assert received.path == "/now"


def test_what_is_published_and_finished_can_still_be_read(
    broker: RunningBroker, client: Client, endpoint: Endpoint
) -> None:
    sent = client(lambda q: q.message.publish(url=endpoint.url, timeout="2h"))
    broker.wait_for(State.DELIVERED, sent.message_id)
    assert client(lambda q: q.message.get(sent.message_id)).url == endpoint.url


# -- deduplication


def test_a_deduplication_id_gives_the_first_message_again(client: Client, endpoint: Endpoint) -> None:
    first = client(lambda q: q.message.publish(url=endpoint.url, deduplication_id="invoice-7", delay="1d"))
    again = client(lambda q: q.message.publish(url=f"{endpoint.url}/x", body="b", deduplication_id="invoice-7"))
    other = client(lambda q: q.message.publish(url=endpoint.url, deduplication_id="invoice-8", delay="1d"))
    assert (again.message_id, again.deduplicated) == (first.message_id, True)
    assert (first.deduplicated, other.deduplicated) == (False, False)
    assert states(client, first.message_id) == ["CREATED"]
    with pytest.raises(QStashError, match="DeduplicationId cannot contain ':'"):
        client(lambda q: q.message.publish(url=endpoint.url, deduplication_id="a:b"))


def test_content_based_deduplication_looks_at_destination_body_type_and_forwarded_headers(
    client: Client, endpoint: Endpoint
) -> None:
    def publish(url: str = endpoint.url, body: Any = 1, **more: Any) -> Any:
        given = {"content_based_deduplication": True, "delay": "1d", "headers": {"X-A": "1"}, **more}
        return client(lambda q: q.message.publish_json(url=url, body=body, **given))

    first = publish()
    assert publish(retries=9, label="other", method="PUT", headers={"x-a": "1"}).message_id == first.message_id
    different = [
        publish(body=2),
        publish(url=endpoint.url + "/x"),
        publish(headers={"X-A": "2"}),
        publish(headers={"Content-Type": "text/x"}),
    ]
    assert not any(one.deduplicated for one in different)


# -- failures, retries, dead letters


def test_a_failing_endpoint_is_tried_again_and_the_log_says_so(
    broker: RunningBroker, client: Client, endpoint: Endpoint, user: AccountCredentials
) -> None:
    """docs/protocol.md B2."""
    endpoint.answer = answering((500, {}, b"oops"), 503, 201)
    sent = client(lambda q: q.message.publish_json(url=endpoint.url, body=1, retry_delay="1 + retried"))
    received = endpoint.wait_for(3)
    assert [one.headers["Upstash-Retried"] for one in received] == ["0", "1", "2"]
    for one in received:
        verify(one, endpoint.url, user)
    broker.wait_for(State.DELIVERED, sent.message_id)
    failed_attempt = ["ACTIVE", "ERROR", "RETRY"]
    assert states(client, sent.message_id) == ["CREATED", *failed_attempt * 2, "ACTIVE", "DELIVERED"]
    newest_first = client(lambda q: q.log.list(filter={"message_id": sent.message_id})).logs
    assert newest_first[0].retry_delay_expression == "1 + retried"
    first_error = [entry for entry in newest_first if entry.state is LogState.ERROR][-1]
    assert first_error.response_status == 500
    assert base64.b64decode(first_error.response_body) == b"oops"
    assert first_error.error == "the destination answered 500"
    retry = [entry for entry in newest_first if entry.state is LogState.RETRY][-1]
    assert retry.next_delivery_time >= retry.time


def test_a_message_that_fails_for_good_is_a_dead_letter_with_the_last_answer(
    broker: RunningBroker, client: Client, endpoint: Endpoint
) -> None:
    """docs/protocol.md B12, B27."""
    endpoint.answer = answering(NOT_FOUND)
    message_id = publish_dead(broker, client, endpoint, body="x", label="red", retry_delay="7000 * retried")
    [entry] = client(lambda q: q.dlq.list()).messages
    assert entry.message_id == message_id
    assert (entry.response_status, entry.response_body) == (404, "404 Not Found")
    assert entry.response_headers["X-Why"] == ["gone"]
    assert entry.retry_delay_expression == "7000 * retried"
    assert (entry.label, entry.body, entry.max_retries) == ("red", "x", 0)
    assert client(lambda q: q.dlq.get(entry.dlq_id)) == entry
    assert states(client, message_id) == ["CREATED", "ACTIVE", "ERROR", "FAILED"]
    with pytest.raises(QStashError, match="404"):
        client(lambda q: q.dlq.get("1-1"))


def test_never_again_means_never_again(broker: RunningBroker, client: Client, endpoint: Endpoint) -> None:
    endpoint.answer = answering((489, {"Upstash-NonRetryable-Error": "true"}, b"no such order"))
    sent = client(lambda q: q.message.publish(url=endpoint.url, retries=5))
    broker.wait_for(State.FAILED, sent.message_id)
    assert len(endpoint.received) == 1
    [entry] = client(lambda q: q.dlq.list()).messages
    assert (entry.message_id, entry.response_status, entry.response_body) == (sent.message_id, 489, "no such order")


def test_an_endpoint_that_asks_for_time_gets_it(broker: RunningBroker, client: Client, endpoint: Endpoint) -> None:
    endpoint.answer = answering((429, {"Retry-After": "0"}, b""), (429, {"Retry-After": "50"}, b""))
    sent = client(lambda q: q.message.publish(url=endpoint.url))
    endpoint.wait_for(2)
    event = broker.wait_for(State.RETRY, sent.message_id)
    assert event.next_delivery_ms is not None
    retries = [
        entry.next_delivery_time - entry.time
        for entry in client(lambda q: q.log.list(filter={"message_id": sent.message_id, "state": LogState.RETRY})).logs
    ]
    assert retries[-1] == 0


def test_an_attempt_ends_at_its_timeout_and_says_so(broker: RunningBroker, client: Client, endpoint: Endpoint) -> None:
    release = threading.Event()

    def hang(received: Received) -> Answer:
        release.wait(10)
        return 200, {}, b""

    endpoint.answer = hang
    try:
        message_id = publish_dead(broker, client, endpoint, timeout="150ms")
    finally:
        release.set()
    [entry] = client(lambda q: q.dlq.list()).messages
    assert (entry.message_id, entry.response_status, entry.response_body) == (message_id, 0, None)
    [error] = client(lambda q: q.log.list(filter={"message_id": message_id, "state": LogState.ERROR})).logs
    assert "within 0.15s" in error.error
    assert error.response_status == 0


def test_a_destination_where_nobody_listens_is_a_dead_letter_without_an_answer(
    broker: RunningBroker, client: Client, endpoint: Endpoint
) -> None:
    endpoint.close()
    publish_dead(broker, client, endpoint)
    [entry] = client(lambda q: q.dlq.list()).messages
    assert (entry.response_status, entry.response_body, entry.response_headers) == (0, None, None)


def test_a_redirect_is_not_followed(broker: RunningBroker, client: Client, endpoint: Endpoint) -> None:
    endpoint.answer = answering((302, {"Location": f"{endpoint.url}/elsewhere"}, b""))
    message_id = publish_dead(broker, client, endpoint, url=f"{endpoint.url}/start")
    assert [one.path for one in endpoint.wait_for(1)] == ["/start"]
    assert len(endpoint.received) == 1
    [error] = client(lambda q: q.log.list(filter={"message_id": message_id, "state": LogState.ERROR})).logs
    assert f"{endpoint.url}/elsewhere" in error.error


def test_dead_letters_are_listed_oldest_first_by_filter_and_page(
    broker: RunningBroker, client: Client, endpoint: Endpoint
) -> None:
    endpoint.answer = lambda received: (int(received.path[1:4]), {}, b"")
    ids = [publish_dead(broker, client, endpoint, url=f"{endpoint.url}/{500 + n}", label=f"l{n % 2}") for n in range(5)]

    def found(**filters: Any) -> list[str]:
        return [entry.message_id for entry in client(lambda q: q.dlq.list(filter=filters)).messages]

    everything = client(lambda q: q.dlq.list())
    assert [entry.message_id for entry in everything.messages] == ids
    assert everything.cursor is None
    assert found(message_id=ids[3]) == [ids[3]]
    assert found(url=f"{endpoint.url}/502") == [ids[2]]
    assert found(response_status=504) == [ids[4]]
    assert found(label="l1") == [ids[1], ids[3]]
    assert found(label="l1", response_status=503) == [ids[3]]
    assert found(caller_ip="127.0.0.1") == ids
    assert found(caller_ip="192.0.2.1") == []
    failed_ms = int(everything.messages[2].dlq_id.partition("-")[0])
    assert ids[2] in found(from_time=failed_ms, to_time=failed_ms)
    assert ids[0] not in found(from_time=failed_ms + 1)
    assert found(url_group="g") == found(queue="q") == found(schedule_id="s") == []

    paged: list[str] = []
    cursor = None
    while True:
        page = client(lambda q, cursor=cursor: q.dlq.list(count=2, cursor=cursor))
        assert len(page.messages) <= 2
        paged += [entry.message_id for entry in page.messages]
        if (cursor := page.cursor) is None:
            break
    assert paged == ids


# -- cancel


def test_a_single_cancel_ends_a_message_that_waits(client: Client, endpoint: Endpoint, broker: RunningBroker) -> None:
    """docs/protocol.md B5, B7."""
    endpoint.answer = answering(NOT_FOUND)
    delayed = client(lambda q: q.message.publish(url=endpoint.url, delay="1h")).message_id
    retrying = client(lambda q: q.message.publish(url=endpoint.url, retries=3)).message_id
    broker.wait_for(State.RETRY, retrying)
    for message_id in (delayed, retrying):
        client(lambda q, message_id=message_id: q.message.cancel(message_id))
        assert states(client, message_id)[-2:] == ["CANCEL_REQUESTED", "CANCELED"]
        with pytest.raises(QStashError, match="404"):
            client(lambda q, message_id=message_id: q.message.cancel(message_id))
    assert client(lambda q: q.dlq.list()).messages == []
    with pytest.raises(QStashError, match="404"):
        client(lambda q: q.message.cancel("msg_unknown"))
    with pytest.raises(QStashError, match="404"):
        client(lambda q: q.message.get("msg_unknown"))


def test_a_single_cancel_answers_how_many(
    broker: RunningBroker, client: Client, endpoint: Endpoint, user: AccountCredentials
) -> None:
    """Another official client reads the body (docs/protocol.md B7)."""
    sent = client(lambda q: q.message.publish(url=endpoint.url, delay="1h"))
    answer = httpx.delete(
        f"{broker.url}/v2/messages/{sent.message_id}", headers={"Authorization": f"Bearer {user.token}"}
    )
    assert (answer.status_code, answer.json()) == (200, {"cancelled": 1})


def test_a_message_under_way_that_is_cancelled_is_not_tried_again(
    broker: RunningBroker, client: Client, endpoint: Endpoint
) -> None:
    arrived, release = threading.Event(), threading.Event()

    def wait(received: Received) -> Answer:
        arrived.set()
        release.wait(10)
        return 500, {}, b""

    endpoint.answer = wait
    sent = client(lambda q: q.message.publish(url=endpoint.url, retry_delay="0"))
    assert arrived.wait(10)
    client(lambda q: q.message.cancel(sent.message_id))
    release.set()
    broker.wait_for(State.CANCELED, sent.message_id)
    assert len(endpoint.received) == 1
    assert states(client, sent.message_id) == ["CREATED", "ACTIVE", "CANCEL_REQUESTED", "ERROR", "CANCELED"]


# -- logs


def test_a_hundred_failures_leave_four_hundred_entries_in_one_page(
    broker: RunningBroker, client: Client, endpoint: Endpoint
) -> None:
    """docs/protocol.md B13."""
    endpoint.answer = answering(NOT_FOUND)
    ids = [client(lambda q: q.message.publish(url=endpoint.url, retries=0)).message_id for _ in range(100)]
    for message_id in ids:
        broker.wait_for(State.FAILED, message_id)
    page = client(lambda q: q.log.list())
    assert len(page.logs) == 400
    assert page.cursor is None
    assert [entry.time for entry in page.logs] == sorted((entry.time for entry in page.logs), reverse=True)
    paged: list[Any] = []
    cursor = None
    while True:
        part = client(lambda q, cursor=cursor: q.log.list(count=150, cursor=cursor))
        paged += part.logs
        if (cursor := part.cursor) is None:
            break
    assert paged == page.logs


def test_logs_are_filtered_by_everything_the_client_offers(
    broker: RunningBroker, client: Client, endpoint: Endpoint
) -> None:
    first = client(lambda q: q.message.publish(url=f"{endpoint.url}/1", label="red", delay="1h")).message_id
    second = client(lambda q: q.message.publish(url=f"{endpoint.url}/2", label="blue")).message_id
    broker.wait_for(State.DELIVERED, second)

    def found(**filters: Any) -> list[tuple[str, str]]:
        logs = client(lambda q: q.log.list(filter=filters)).logs
        return [(entry.message_id, entry.state.value) for entry in reversed(logs)]

    created = [(first, "CREATED"), (second, "CREATED")]
    blue = [(second, "CREATED"), (second, "ACTIVE"), (second, "DELIVERED")]
    assert found() == [created[0], *blue]
    assert found(message_id=second) == blue
    assert found(message_ids=[first, second]) == [created[0], *blue]
    assert found(state=LogState.CREATED) == created
    assert found(state=LogState.IN_PROGRESS) == [(second, "ACTIVE")]
    assert found(url=f"{endpoint.url}/2") == blue
    assert found(label="red") == [created[0]]
    assert found(label="red", state=LogState.DELIVERED) == []
    assert found(url_group="g") == found(queue="q") == found(schedule_id="s") == []
    [entry] = client(lambda q: q.log.list(filter={"message_id": first})).logs
    assert entry.next_delivery_time == entry.time + 3_600_000
    assert (entry.label, entry.method, entry.max_retries) == ("red", "POST", 3)
    assert (first, "CREATED") in found(from_time=entry.time, to_time=entry.time)
    assert found(to_time=entry.time - 1) == []


# -- accounts and keys


def test_the_keys_are_those_of_the_public_user_and_come_at_once(
    broker: RunningBroker, client: Client, user: AccountCredentials
) -> None:
    """By this answer official SDKs in development mode recognise the server (docs/protocol.md B25, B30)."""
    keys = client(lambda q: q.signing_key.get())
    assert user.keys is not None
    assert (keys.current, keys.next) == (user.keys.current, user.keys.next)
    public = DEV_CREDENTIALS[0]
    probe = httpx.get(f"{broker.url}/v2/keys", headers={"Authorization": f"Bearer {public.token}"}, timeout=2)
    assert probe.json() == {
        "current": "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r",
        "next": "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs",
    }


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[RunningBroker]:
    running = RunningBroker(BrokerSettings(path=str(tmp_path / "broker.db")))
    yield running
    running.stop()


def test_the_four_public_users_do_not_see_each_other(own_broker: RunningBroker, endpoint: Endpoint, kind: str) -> None:
    endpoint.answer = answering(NOT_FOUND)
    clients = [Client(kind, user.token, own_broker.url) for user in DEV_CREDENTIALS]
    try:
        ids = [
            publish_dead(own_broker, one, endpoint, url=f"{endpoint.url}/{n}", deduplication_id="same")
            for n, one in enumerate(clients)
        ]
        assert len(set(ids)) == 4, "a deduplication id belongs to its account"
        for received in endpoint.wait_for(4):
            number = int(received.path[1:])
            verify(received, f"{endpoint.url}/{number}", DEV_CREDENTIALS[number])
            with pytest.raises(SignatureError):
                verify(received, f"{endpoint.url}/{number}", DEV_CREDENTIALS[(number + 1) % 4])
        for number, one in enumerate(clients):
            assert {entry.message_id for entry in one(lambda q: q.log.list()).logs} == {ids[number]}
            [letter] = one(lambda q: q.dlq.list()).messages
            assert letter.message_id == ids[number]
            other = clients[(number + 1) % 4]
            for refused in (
                lambda q, n=number: q.message.get(ids[n]),
                lambda q, n=number: q.message.cancel(ids[n]),
                lambda q, letter=letter: q.dlq.get(letter.dlq_id),
            ):
                with pytest.raises(QStashError, match="404"):
                    other(refused)
            elsewhere = {"message_id": ids[number]}
            assert other(lambda q, which=elsewhere: q.log.list(filter=which)).logs == []
            assert other(lambda q, which=elsewhere: q.dlq.list(filter=which)).messages == []
    finally:
        for one in clients:
            one.close()


# -- refusals reach the user as sentences


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": "no-such-group"}, "endpoint has invalid scheme, add http:// or https://"),
        ({"url": "ftp://h.example/x"}, "endpoint has invalid scheme, add http:// or https://"),
        ({"delay": "10"}, 'time: missing unit in duration \\"10\\"'),
        ({"delay": "400d"}, "Upstash-Delay"),
        ({"retries": -1}, "Upstash-Retries"),
        ({"retry_delay": "__import__('os')"}, "Upstash-Retry-Delay"),
        ({"timeout": "3h"}, "Upstash-Timeout"),
        ({"method": "BREW"}, "Upstash-Method"),
        ({"flow_control": {"key": "k", "rate": 0}}, "Upstash-Flow-Control-Value should be"),
        ({"callback": "ftp://h.example/"}, "Upstash-Callback"),
    ],
)
def test_a_refused_publish_says_which_option_and_stores_nothing(
    client: Client, endpoint: Endpoint, options: dict[str, Any], text: str
) -> None:
    given = {"url": endpoint.url, **options}
    with pytest.raises(QStashError) as refused:
        client(lambda q: q.message.publish(**given))
    assert "status: 400" in str(refused.value)
    assert text in str(refused.value)
    assert client(lambda q: q.log.list()).logs == []


def test_a_body_beyond_the_limit_is_refused_with_both_numbers(client: Client, endpoint: Endpoint) -> None:
    with pytest.raises(QStashError, match=r"status: 413.*message too large: 1048577 > 1048576"):
        client(lambda q: q.message.publish(url=endpoint.url, body="x" * (1024 * 1024 + 1)))


def test_a_wrong_token_is_refused(broker: RunningBroker, kind: str) -> None:
    stranger = Client(kind, "wrong", broker.url)
    try:
        with pytest.raises(QStashError, match=r'status: 401, body: \{"error":"unauthorized'):
            stranger(lambda q: q.message.publish(url="http://127.0.0.1:1/"))
    finally:
        stranger.close()
