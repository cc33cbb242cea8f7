"""The live stream of the console over a real socket: events, slow clients, and an end that delays no stop."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from qtasks.broker.broker import Broker
from qtasks.broker.console import console as console_module
from qtasks.broker.console.live_events import MOST_STREAMS, PER_SECOND, LiveEvents, event_json
from qtasks.broker.console.table_rows import HIDDEN
from qtasks.broker.settings import DEV_CREDENTIALS, BrokerSettings
from qtasks.protocol.messages import State
from tests.support.eventsource import EventSource
from tests.support.running import Answer, Endpoint, Received, RunningBroker


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[LiveEvents]:
    """The live events of every console that is made."""
    made: list[LiveEvents] = []

    class Kept(LiveEvents):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(console_module, "LiveEvents", Kept)
    return made


@pytest.fixture
def running(tmp_path: Path, streams: list[LiveEvents]) -> Iterator[RunningBroker]:
    broker = RunningBroker(BrokerSettings(path=str(tmp_path / "broker.db")))
    yield broker
    broker.stop()


def publish(running: RunningBroker, url: str, count: int = 1, **headers: str) -> list[str]:
    """Publish messages in one request; their ids."""
    lines = {"Authorization": f"Bearer {DEV_CREDENTIALS[0].token}"}
    batch = [{"destination": url, "headers": {f"Upstash-{name}": value for name, value in headers.items()}}] * count
    answer = httpx.post(f"{running.url}/v2/batch", headers=lines, json=batch)
    assert answer.status_code in (200, 201), answer.text
    return [each["messageId"] for each in answer.json()]


def test_a_page_sees_what_happens_to_a_message(running: RunningBroker) -> None:
    endpoint = Endpoint(lambda received: (500, {}, b""))
    with EventSource(f"{running.url}/console/api/events") as events:
        assert next(events).name == "now", "a page begins with the counts"
        [message_id] = publish(running, f"{endpoint.url}/hook?secret=1", Retries="0")
        seen: list[dict[str, Any]] = []
        while not seen or seen[-1]["state"] != "FAILED":
            event = next(events)
            if event.name == "message":
                seen.append(event.data)
        assert [(event["state"], event["status"]) for event in seen] == [
            ("CREATED", "waiting"),
            ("ACTIVE", "running"),
            ("FAILED", "failed"),
        ]
        assert {event["messageId"] for event in seen} == {message_id}
        assert {event["destination"] for event in seen} == {f"{endpoint.url}/hook"}, "without its query"
        assert seen[-1]["error"] == "the destination answered 500"
        while (event := next(events)).name != "now":
            pass
        assert event.data["dead"] == 1
    endpoint.close()


def failing_task(received: Received) -> Answer:
    """A dispatcher whose task fails for good; the report of that is taken."""
    if received.path.startswith("/qtasks/_end"):
        return 200, {}, b""
    return 489, {"Upstash-NonRetryable-Error": "true"}, b'{"error": "ValueError: user 4711 has no address"}'


def events_until_end(events: EventSource, task: str) -> list[dict[str, Any]]:
    """The events of messages, up to the one that ends the message of `task`."""
    seen: list[dict[str, Any]] = []
    while not seen or (seen[-1]["task"], seen[-1]["status"]) not in {(task, "failed"), (task, "delivered")}:
        event = next(events)
        if event.name == "message":
            seen.append(event.data)
    return seen


def test_a_failed_task_shows_its_own_error(running: RunningBroker) -> None:
    endpoint = Endpoint(failing_task)
    with EventSource(f"{running.url}/console/api/events") as events:
        next(events)
        call(running, endpoint, "greet")
        assert events_until_end(events, "greet")[-1]["error"] == "ValueError: user 4711 has no address"
    ended = running.wait_for(State.FAILED, running.events[0].message.id)
    assert event_json(ended, shows_error=False)["error"] == HIDDEN
    endpoint.close()


def test_reports_of_the_framework_are_shown_on_request(running: RunningBroker) -> None:
    endpoint = Endpoint(failing_task)
    plain = EventSource(f"{running.url}/console/api/events")
    asking = EventSource(f"{running.url}/console/api/events?reports=true")
    with plain, asking:
        next(plain)
        next(asking)
        call(running, endpoint, "greet")
        assert events_until_end(asking, "_end")[-1]["status"] == "delivered"
        call(running, endpoint, "leave")
        assert {event["task"] for event in events_until_end(plain, "leave")} == {"greet", "leave"}
    endpoint.close()


def call(running: RunningBroker, endpoint: Endpoint, task: str) -> None:
    """Publish a call of a task as the framework does."""
    headers = {
        "Authorization": f"Bearer {DEV_CREDENTIALS[0].token}",
        "Qtasks-End-Callback": f"{endpoint.url}/qtasks/_end?task={task}",
        "Qtasks-Interrupted-For": "1h",
    }
    answer = httpx.post(f"{running.url}/v2/publish/{endpoint.url}/qtasks/{task}", headers=headers, content=b"{}")
    assert answer.status_code == 201, answer.text


def test_other_accounts_see_no_event(running: RunningBroker) -> None:
    with EventSource(f"{running.url}/console/api/events") as events:
        next(events)
        other = {"Authorization": f"Bearer {DEV_CREDENTIALS[1].token}"}
        httpx.post(f"{running.url}/v2/publish/http://127.0.0.1:1/", headers={**other, "Upstash-Delay": "1d"})
        [own] = publish(running, "http://127.0.0.1:1/", Delay="1d")
        while (event := next(events)).name != "message":
            pass
        assert event.data["messageId"] == own


def test_a_burst_is_counted_and_not_kept(running: RunningBroker) -> None:
    with EventSource(f"{running.url}/console/api/events") as events:
        next(events)
        publish(running, "http://127.0.0.1:1/", 5 * PER_SECOND, Delay="1d")
        shown, skipped = 0, 0
        while shown + skipped < 5 * PER_SECOND:
            event = next(events)
            shown += event.name == "message"
            skipped += event.data["count"] if event.name == "skipped" else 0
        assert shown == PER_SECOND
        assert skipped == 4 * PER_SECOND


def test_slow_clients_hold_little_and_the_broker_goes_on(running: RunningBroker, streams: list[LiveEvents]) -> None:
    port = int(running.url.rpartition(":")[2])
    clients = []
    for _ in range(50):
        client = socket.create_connection(("127.0.0.1", port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"GET /console/api/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert client.recv(1), "the stream has begun; nothing more is read"
        clients.append(client)
    [live] = [each for each in streams if each._streams]
    assert len(live._streams) == 50
    [last] = publish(running, "http://127.0.0.1:1/", 500, Delay="1d")[-1:]
    running.wait_for(State.CREATED, last)
    assert all(len(stream.pending) <= PER_SECOND for stream in live._streams)
    assert httpx.get(f"{running.url}/console/api/queues").status_code == 200
    for client in clients:
        client.close()


def test_streams_are_bounded(running: RunningBroker) -> None:
    port = int(running.url.rpartition(":")[2])
    clients = []
    for _ in range(MOST_STREAMS):
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(b"GET /console/api/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert client.recv(1)
        clients.append(client)
    answer = httpx.get(f"{running.url}/console/api/events")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    assert json.loads(answer.text) == {"error": "too many pages listen to events"}
    for client in clients:
        client.close()


def test_streams_that_begin_in_the_same_moment_are_bounded(running: RunningBroker, streams: list[LiveEvents]) -> None:
    port = int(running.url.rpartition(":")[2])
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(MOST_STREAMS + 40)]
    assert httpx.get(f"{running.url}/healthz").status_code == 200, "the connections before it are accepted"
    sent = threading.Event()
    running._loop.call_soon_threadsafe(sent.wait)
    for client in clients:
        client.sendall(b"GET /console/api/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    sent.set()
    for client in clients:
        assert client.recv(1)
    [live] = [each for each in streams if each._streams]
    assert len(live._streams) <= MOST_STREAMS
    for client in clients:
        client.close()


def test_an_open_page_does_not_delay_the_stop(tmp_path: Path) -> None:
    broker = RunningBroker(BrokerSettings(path=str(tmp_path / "broker.db")))
    page = EventSource(f"{broker.url}/console/api/events")
    assert next(page).name == "now"
    began_s = time.monotonic()
    broker.stop()
    assert time.monotonic() - began_s < 3
    page.close()


def test_the_broker_is_watched_only_while_a_page_listens(running: RunningBroker) -> None:
    broker: Broker = running.broker
    before = len(broker.watchers._watchers)
    with EventSource(f"{running.url}/console/api/events") as events:
        next(events)
        assert len(broker.watchers._watchers) == before + 1
    deadline_s = time.monotonic() + 5
    while len(broker.watchers._watchers) != before:
        assert time.monotonic() < deadline_s
        httpx.get(f"{running.url}/healthz")  # the server notices the end of the connection
