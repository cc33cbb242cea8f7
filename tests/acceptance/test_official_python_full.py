"""The official `qstash` package, unchanged, driving every API it has beyond publishing: groups, queues, schedules ...

The numbers B1 to B30 are those of the conformance checklist (docs/protocol.md, appendix B).
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from qstash.chat import custom
from qstash.errors import QStashError
from qstash.log import LogState
from qstash.schedule import ScheduleState

from qtasks.broker.core.values import AccountCredentials
from qtasks.protocol.messages import State
from tests.acceptance.test_official_python import NOT_FOUND, Client, answering, publish_dead, states, verify
from tests.support.running import PATIENCE_S, Answer, Endpoint, RunningBroker


@pytest.fixture(params=["sync", "async"])
def client(broker: RunningBroker, user: AccountCredentials, request: pytest.FixtureRequest) -> Iterator[Client]:
    made = Client(request.param, user.token, broker.url)
    yield made
    made.close()


# -- URL groups


def test_a_group_lives_its_whole_life(client: Client, endpoint: Endpoint, user: AccountCredentials) -> None:
    """docs/protocol.md B18, B4."""
    client(lambda q: q.url_group.delete("my-group"))
    one, two = {"url": f"{endpoint.url}/one", "name": "First endpoint"}, {"url": f"{endpoint.url}/two"}
    client(lambda q: q.url_group.upsert_endpoints(url_group="my-group", endpoints=[one, two]))
    group = client(lambda q: q.url_group.get("my-group"))
    assert [(each.url, each.name) for each in group.endpoints] == [(one["url"], "First endpoint"), (two["url"], None)]
    assert group.created_at <= group.updated_at
    assert [each.name for each in client(lambda q: q.url_group.list())] == ["my-group"]
    sent = client(lambda q: q.message.publish_json(url_group="my-group", body={"a": 1}))
    assert [each.url for each in sent] == [one["url"], two["url"]]
    for received in endpoint.wait_for(2):
        assert received.headers["Upstash-Topic-Name"] == "my-group"
        verify(received, endpoint.url + received.path, user)
    message = client(lambda q: q.message.get(sent[0].message_id))
    assert (message.url_group, message.endpoint) == ("my-group", "First endpoint")
    client(lambda q: q.url_group.remove_endpoints(url_group="my-group", endpoints=[{"name": "First endpoint"}]))
    assert [each.url for each in client(lambda q: q.url_group.get("my-group")).endpoints] == [two["url"]]
    client(lambda q: q.url_group.delete("my-group"))
    with pytest.raises(QStashError, match="404"):
        client(lambda q: q.url_group.get("my-group"))


# -- batch and queues


def test_a_batch_mixes_urls_groups_and_queues(client: Client, endpoint: Endpoint) -> None:
    """docs/protocol.md B3."""
    client(lambda q: q.url_group.upsert_endpoints("g", [{"url": f"{endpoint.url}/a"}, {"url": f"{endpoint.url}/b"}]))
    answers = client(
        lambda q: q.message.batch_json(
            [
                {"url": f"{endpoint.url}/url", "body": {"n": 1}, "headers": {"test-header": "v"}, "label": "l"},
                {"url_group": "g", "body": [1]},
                {"queue": "q", "url": f"{endpoint.url}/queued"},
            ]
        )
    )
    assert len(answers) == 3
    assert [each.url for each in answers[1]] == [f"{endpoint.url}/a", f"{endpoint.url}/b"]
    arrived = {received.path: received for received in endpoint.wait_for(4)}
    assert sorted(arrived) == ["/a", "/b", "/queued", "/url"]
    assert arrived["/url"].headers["Test-Header"] == "v"
    assert arrived["/queued"].body == b"null"
    text = client(
        lambda q: q.message.batch(
            [{"url": endpoint.url, "body": "x", "headers": {"content-type": "text/x"}, "retries": 0}] * 3
        )
    )
    assert len(text) == 3
    assert {received.headers["Content-Type"] for received in endpoint.wait_for(7)[4:]} == {"text/x"}


def test_a_queue_delivers_one_after_the_other_even_through_retries(client: Client, endpoint: Endpoint) -> None:
    """docs/protocol.md B17."""
    client(lambda q: q.queue.upsert("q", parallelism=1))
    endpoint.answer = answering(500, 200)
    for number in range(3):
        sent = client(
            lambda q, n=number: q.message.enqueue_json(queue="q", url=endpoint.url, body=n, retry_delay="100")
        )
    assert client(lambda q: q.message.get(sent.message_id)).queue == "q"
    assert [received.body for received in endpoint.wait_for(4)] == [b"0", b"0", b"1", b"2"]


def test_a_queue_is_made_changed_paused_and_deleted(client: Client, endpoint: Endpoint) -> None:
    """docs/protocol.md B17."""
    for parallelism in (1, 2):
        client(lambda q, p=parallelism: q.queue.upsert("q", parallelism=p))
        assert client(lambda q: q.queue.get("q")).parallelism == parallelism
    client(lambda q: q.queue.pause("q"))
    assert client(lambda q: q.queue.get("q")).paused is True
    client(lambda q: q.message.enqueue(queue="q", url=endpoint.url, body="x"))
    assert client(lambda q: q.queue.get("q")).lag == 1
    assert endpoint.received == []
    client(lambda q: q.queue.resume("q"))
    endpoint.wait_for(1)
    client(lambda q: q.queue.upsert("q", parallelism=3, paused=True))
    [queue] = client(lambda q: q.queue.list())
    assert (queue.name, queue.parallelism, queue.paused) == ("q", 3, True)
    client(lambda q: q.queue.delete("q"))
    assert client(lambda q: q.queue.list()) == []


# -- callbacks


def test_a_callback_brings_the_answer_and_a_failure_callback_the_dead_letter(
    client: Client, endpoint: Endpoint, user: AccountCredentials
) -> None:
    endpoint.answer = lambda received: NOT_FOUND if received.path == "/work" else (200, {}, b"")
    sent = client(
        lambda q: q.message.publish_json(
            url=f"{endpoint.url}/work",
            body={"a": "é"},
            retries=0,
            callback=f"{endpoint.url}/callback?x=1",
            callback_headers={"Forward-Mine": "yes"},
            failure_callback=f"{endpoint.url}/failed",
        )
    )
    arrived = {received.path: received for received in endpoint.wait_for(3)}
    for path in ("/callback?x=1", "/failed"):
        verify(arrived[path], endpoint.url + path, user)
        told = json.loads(arrived[path].body)
        assert (told["status"], told["retried"], told["maxRetries"]) == (404, 0, 0)
        assert told["sourceMessageId"] == sent.message_id
        assert base64.b64decode(told["body"]) == b"404 Not Found"
        assert json.loads(base64.b64decode(told["sourceBody"])) == {"a": "é"}
        assert told["header"]["X-Why"] == ["gone"]
    assert arrived["/callback?x=1"].headers["Mine"] == "yes"
    letter = client(lambda q: q.dlq.get(json.loads(arrived["/failed"].body)["dlqId"]))
    assert letter.message_id == sent.message_id


# -- dead letters and cancellation


def test_dead_letters_are_read_and_deleted_one_and_many(
    broker: RunningBroker, client: Client, endpoint: Endpoint
) -> None:
    """docs/protocol.md B12, B14."""
    endpoint.answer = answering(NOT_FOUND)
    made = [publish_dead(broker, client, endpoint, retry_delay="1000", label="l") for _ in range(5)]
    letters = client(lambda q: q.dlq.list(filter={"label": "l"})).messages
    assert [letter.message_id for letter in letters] == made
    assert (letters[0].response_status, letters[0].response_body) == (404, "404 Not Found")
    assert letters[0].retry_delay_expression == "1000"
    first = client(lambda q: q.dlq.list(count=2))
    rest = client(lambda q: q.dlq.list(cursor=first.cursor))
    assert (len(first.messages), len(rest.messages), rest.cursor) == (2, 3, None)
    client(lambda q: q.dlq.delete(letters[0].dlq_id))
    with pytest.raises(QStashError, match="404"):
        client(lambda q: q.dlq.delete(letters[0].dlq_id))
    dlq_ids = [letter.dlq_id for letter in letters]
    assert client(lambda q: q.dlq.delete_many(dlq_ids)) == 4
    assert client(lambda q: q.dlq.delete_many(dlq_ids)) == 0
    assert client(lambda q: q.dlq.list()).messages == []


def test_many_messages_are_cancelled_and_then_all(client: Client, endpoint: Endpoint) -> None:
    """docs/protocol.md B5."""
    endpoint.answer = answering(NOT_FOUND)
    made = [client(lambda q: q.message.publish(url=endpoint.url, retries=3)).message_id for _ in range(2)]
    assert client(lambda q: q.message.cancel_many(made)) == 2
    for _ in range(2):
        client(lambda q: q.message.publish(url=endpoint.url, retries=3))
    assert client(lambda q: q.message.cancel_all()) == 2


def test_a_hundred_failures_are_four_hundred_entries_of_one_page(
    broker: RunningBroker, client: Client, endpoint: Endpoint
) -> None:
    """docs/protocol.md B13."""
    endpoint.answer = answering(NOT_FOUND)
    items = [{"url": endpoint.url, "retries": 0}] * 100
    sent = client(lambda q: q.message.batch(items))
    for each in sent:
        broker.wait_for(State.FAILED, each.message_id)
    assert len(client(lambda q: q.log.list()).logs) == 400


# -- schedules


def test_a_schedule_lives_its_whole_life(client: Client) -> None:
    """docs/protocol.md B19."""
    schedule_id = client(
        lambda q: q.schedule.create_json(destination="https://example.com", cron="1 1 1 1 1", body={"a": 1})
    )
    shown = client(lambda q: q.schedule.get(schedule_id))
    assert (shown.schedule_id, shown.cron, shown.destination) == (schedule_id, "1 1 1 1 1", "https://example.com")
    assert [each.schedule_id for each in client(lambda q: q.schedule.list())] == [schedule_id]
    assert shown.paused is False
    client(lambda q: q.schedule.pause(schedule_id))
    assert client(lambda q: q.schedule.get(schedule_id)).paused is True
    client(lambda q: q.schedule.resume(schedule_id))
    assert client(lambda q: q.schedule.get(schedule_id)).paused is False
    client(lambda q: q.schedule.delete(schedule_id))
    assert client(lambda q: q.schedule.list()) == []


def test_a_schedule_keeps_everything_it_was_given(client: Client) -> None:
    """docs/protocol.md B20, B22."""
    client(
        lambda q: q.schedule.create(
            destination="https://example.com/",
            cron="CRON_TZ=Europe/Berlin 0 9 * * *",
            schedule_id="mine",
            body="x",
            method="PUT",
            retries=5,
            retry_delay="1000",
            delay="1h30m3s",
            timeout="10s",
            callback="https://cb.example/x?y=1",
            failure_callback="https://fcb.example/",
            headers={"Test-Header": "v"},
            queue="q",
            label="l",
            flow_control={"key": "k", "parallelism": 2},
        )
    )
    shown = client(lambda q: q.schedule.get("mine"))
    assert shown.cron == "CRON_TZ=Europe/Berlin 0 9 * * *"
    assert (shown.body, shown.method, shown.retries, shown.delay, shown.timeout) == ("x", "PUT", 5, 5403, 10)
    assert (shown.callback, shown.failure_callback) == ("https://cb.example/x?y=1", "https://fcb.example/")
    assert (shown.headers, shown.queue, shown.label) == ({"Test-Header": ["v"]}, "q", "l")
    assert shown.retry_delay_expression == "1000"
    flow = shown.flow_control
    assert (flow.key, flow.parallelism, flow.rate, flow.period) == ("k", 2, None, 1)
    assert shown.next_schedule_time > time.time() * 1000
    client(lambda q: q.schedule.create(destination="https://other.example/", cron="* * * * *", schedule_id="mine"))
    [shown] = client(lambda q: q.schedule.list())
    assert (shown.destination, shown.body, shown.callback) == ("https://other.example/", None, None)


def test_a_schedule_that_has_run_shows_how_it_went(
    broker: RunningBroker, client: Client, endpoint: Endpoint, user: AccountCredentials
) -> None:
    schedule_id = client(lambda q: q.schedule.create(destination=endpoint.url, cron="* * * * *", body="tick"))
    account = broker.broker.accounts[user.name]

    async def bring_forward() -> None:
        now_ms = broker.broker.clock.now_ms() // 60_000 * 60_000
        await broker.broker.store.write(
            lambda db: db.execute("UPDATE schedules SET next_ms = ? WHERE account = ?", (now_ms, account))
        )
        broker.broker.scheduler.wake()

    broker.call(bring_forward())
    [received] = endpoint.wait_for(1)
    assert (received.body, received.headers["Upstash-Schedule-Id"]) == (b"tick", schedule_id)
    verify(received, endpoint.url, user)
    message_id = received.headers["Upstash-Message-Id"]
    broker.wait_for(State.DELIVERED, message_id)
    shown = client(lambda q: q.schedule.get(schedule_id))
    assert shown.last_schedule_states == {message_id: ScheduleState.SUCCESS}
    assert shown.last_schedule_time < shown.next_schedule_time
    logs = client(lambda q: q.log.list(filter={"schedule_id": schedule_id})).logs
    assert {entry.schedule_id for entry in logs} == {schedule_id}


@pytest.mark.parametrize("cron", ["", "* * * *", "99 * * * *", "0 0 31 2 *"])
def test_a_bad_cron_is_explained(client: Client, cron: str) -> None:
    with pytest.raises(QStashError, match="Invalid cron expression"):
        client(lambda q: q.schedule.create(destination="https://example.com", cron=cron))


# -- flow control


def test_a_flow_control_key_is_read_paused_pinned_and_reset(client: Client, endpoint: Endpoint) -> None:
    """docs/protocol.md B23."""
    sent = client(lambda q: q.message.publish(url=endpoint.url, flow_control={"key": "k", "rate": 1, "period": "1h"}))
    assert client(lambda q: q.flow_control.get("k")).key == "k"
    endpoint.wait_for(1)
    client(lambda q: q.message.publish(url=endpoint.url, flow_control={"key": "k", "rate": 1, "period": "1h"}))
    info = client(lambda q: q.flow_control.get("k"))
    assert (info.rate_max, info.rate_count, info.rate_period, info.wait_list_size) == (1, 1, 3600, 1)
    client(lambda q: q.flow_control.pause("k"))
    assert client(lambda q: q.flow_control.get("k")).is_paused is True
    client(lambda q: q.flow_control.resume("k"))
    client(lambda q: q.flow_control.reset_rate("k"))
    endpoint.wait_for(2)
    client(lambda q: q.flow_control.pin("k", {"parallelism": 3, "rate": 20, "period": 120}))
    info = client(lambda q: q.flow_control.get("k"))
    assert (info.parallelism_max, info.rate_max, info.rate_period) == (3, 20, 120)
    assert (info.is_pinned_parallelism, info.is_pinned_rate) == (True, True)
    client(lambda q: q.flow_control.unpin("k", {"parallelism": True}))
    info = client(lambda q: q.flow_control.get("k"))
    assert (info.is_pinned_parallelism, info.is_pinned_rate) == (False, True)
    assert client(lambda q: q.message.get(sent.message_id)).flow_control.key == "k"


def test_the_global_parallelism_is_numbers(client: Client) -> None:
    """docs/protocol.md B24."""
    found = client(lambda q: q.flow_control.get_global_parallelism())
    assert found.parallelism_max > 0
    assert found.parallelism_count >= 0


def test_a_key_never_starts_more_than_its_parallelism(client: Client, endpoint: Endpoint) -> None:
    running, most, both = 0, 0, threading.Barrier(2)

    def work(received: Any) -> Answer:
        nonlocal running, most
        running += 1
        most = max(most, running)
        both.wait(PATIENCE_S)  # two run at once, and a third would be seen here
        running -= 1
        return 200, {}, b""

    endpoint.answer = work
    items = [{"url": endpoint.url, "flow_control": {"key": "k", "parallelism": 2}}] * 12
    client(lambda q: q.message.batch(items))
    endpoint.wait_for(12)
    assert most == 2


# -- signing keys


def test_keys_rotate_and_receivers_with_the_old_pair_still_understand(
    client: Client, endpoint: Endpoint, user: AccountCredentials
) -> None:
    """docs/protocol.md B25."""
    before = client(lambda q: q.signing_key.get())
    assert user.keys is not None
    assert (before.current, before.next) == (user.keys.current, user.keys.next)
    after = client(lambda q: q.signing_key.rotate())
    assert after.current == before.next
    client(lambda q: q.message.publish(url=endpoint.url, body="x"))
    [received] = endpoint.wait_for(1)
    verify(received, endpoint.url, user)


# -- language models


def test_a_providers_answer_comes_to_the_callback_and_its_limits_delay_the_retry(
    broker: RunningBroker, client: Client, endpoint: Endpoint
) -> None:
    limited: Answer = (429, {"X-RateLimit-Reset-Tokens": "6m0s"}, b"{}")
    endpoint.answer = lambda received: limited if "completions" in received.path else (200, {}, b"")
    body = {"model": "m", "messages": [{"role": "user", "content": "hello there"}]}
    sent = client(
        lambda q: q.message.publish_json(
            api={"name": "llm", "provider": custom(base_url=endpoint.url, token="key")},
            body=body,
            callback=f"{endpoint.url}/callback",
        )
    )
    asked, _ = endpoint.wait_for(2)
    assert (asked.path, asked.headers["Authorization"]) == ("/v1/chat/completions", "Bearer key")
    assert json.loads(asked.body) == body
    broker.wait_for(State.RETRY, sent.message_id)
    [entry] = client(lambda q: q.log.list(filter={"message_id": sent.message_id, "state": LogState.RETRY})).logs
    assert entry.next_delivery_time - entry.time == 360_000
    assert states(client, sent.message_id) == ["CREATED", "ACTIVE", "ERROR", "RETRY"]
