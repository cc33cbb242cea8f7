"""Options of this broker: messages are found by call id and report their end (docs/compatibility.md)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qtasks.broker.core.values import Rooms
from qtasks.broker.ports import Failure
from qtasks.broker.store.verbs import sums
from qtasks.protocol.messages import State
from qtasks.qstash.conversation.transport import Reply
from qtasks.qstash.message import DeliveryStatus, get
from tests.support.api import HOOK, Service, header

pytestmark = pytest.mark.anyio

END = "http://127.0.0.1:8000/qtasks/_end?task=add&call=call_1"


async def publish(service: Service, call_id: str = "call_1", **headers: str) -> str:
    """Publish a message of a call with an end callback; return the message's id."""
    own = {"Qtasks-Call-Id": call_id, "Qtasks-End-Callback": END}
    options = {f"Upstash-{name.replace('_', '-')}": value for name, value in headers.items()}
    message_id = (await service.post(f"/v2/publish/{HOOK}", {**own, **options}))["messageId"]
    assert isinstance(message_id, str)
    return message_id


# -- by call id


async def test_a_message_is_found_and_cancelled_by_its_call_id(service: Service) -> None:
    message_id = await publish(service, Delay="1d")
    message = await service.get("/v2/messages/call_1")
    assert (message["messageId"], message["callId"]) == (message_id, "call_1")
    assert (await service.call("DELETE", "/v2/messages/call_1")).json == {"cancelled": 1}
    assert (await service.call("DELETE", "/v2/messages/call_1")).status == 404
    assert (await service.call("GET", "/v2/messages/call_2")).status == 404
    service.user = 1
    assert (await service.call("GET", "/v2/messages/call_1")).status == 404


async def test_a_message_without_a_call_id_shows_none(service: Service) -> None:
    assert "callId" not in await service.get(f"/v2/messages/{await service.publish(Delay='1d')}")


async def test_many_are_cancelled_by_call_id_and_none_twice(service: Service) -> None:
    first = await publish(service, "call_1", Delay="1d")
    await publish(service, "call_2", Delay="1d")
    answered = await service.call("DELETE", "/v2/messages", json_body={"messageIds": [first, "call_1", "call_2"]})
    assert answered.json == {"cancelled": 2}


async def test_of_the_messages_of_a_call_the_unfinished_come_first_then_the_newest(service: Service) -> None:
    service.answer(200)
    waiting = await publish(service, Delay="1h")
    later = await publish(service, Delay="2h")
    done = await publish(service)
    await service.run()
    found = []
    for _ in range(3):
        found.append((await service.get("/v2/messages/call_1"))["messageId"])
        await service.call("DELETE", "/v2/messages/call_1")
    assert found == [later, waiting, done]


async def test_an_id_of_a_message_wins_over_the_same_call_id(service: Service) -> None:
    message_id = await publish(service, Delay="1d")
    await publish(service, message_id, Delay="1d")
    assert (await service.get(f"/v2/messages/{message_id}"))["messageId"] == message_id


async def test_the_log_and_the_dead_letters_show_the_call(service: Service) -> None:
    service.answer(500)
    await publish(service, Retries="0")
    await service.broker.deliverer.run_once()
    assert {entry["callId"] for entry in (await service.get("/v2/events?label=&url=" + HOOK))["events"]} == {"call_1"}
    assert [letter["callId"] for letter in (await service.get("/v2/dlq"))["messages"]] == ["call_1"]


# -- end callbacks


async def test_a_cancel_by_anybody_is_reported(service: Service) -> None:
    service.answer(200)
    one, other = await publish(service, Delay="1d"), await publish(service, Delay="1d", Label="nightly")
    await service.call("DELETE", f"/v2/messages/{one}")
    await service.call("DELETE", "/v2/messages?label=nightly")
    requests = await service.run()
    assert [request.url for request in requests] == [END, END]
    bodies = [json.loads(request.body) for request in requests]
    assert [(body["sourceMessageId"], body["state"]) for body in bodies] == [(one, "CANCELED"), (other, "CANCELED")]
    assert [event.state for event in service.events if event.message.id == f"{one}_end"] == [
        State.CREATED,
        State.ACTIVE,
        State.DELIVERED,
    ]


async def test_the_messages_of_a_deleted_queue_are_reported(service: Service) -> None:
    service.answer(200)
    await service.post(f"/v2/enqueue/q/{HOOK}", {"Qtasks-End-Callback": END})
    await service.call("DELETE", "/v2/queues/q")
    assert [request.url for request in await service.run()] == [END]


async def test_the_messages_of_a_schedule_report_their_end(service: Service) -> None:
    lines = {"Upstash-Cron": "* * * * *", "Upstash-Retries": "0", "Qtasks-End-Callback": END}
    await service.post(f"/v2/schedules/{HOOK}", lines)
    service.answer(500)
    service.clock.advance(60_000)
    first, *reports = await service.run()
    assert first.url == HOOK
    assert reports[0].url == END
    assert json.loads(reports[0].body)["sourceMessageId"] == header(first, "Upstash-Message-Id")
    assert "scheduleId" in json.loads(reports[0].body)


async def test_a_report_that_finds_nobody_waits_and_comes_again(service: Service) -> None:
    service.answer(500, 500, 500, 200)
    message_id = await publish(service, Delay="1d")
    await service.call("DELETE", f"/v2/messages/{message_id}")
    for wait_s in (1, 2, 4):
        assert len(await service.run()) == 1
        service.clock.advance(wait_s * 1000 - 1)
        assert await service.run() == []
        service.clock.advance(1)
    assert len(await service.run()) == 1
    assert (await service.states(f"{message_id}_end"))[-1] == "DELIVERED"


async def test_the_url_of_a_report_obeys_the_destination_policy(service: Service) -> None:
    lines = {"Qtasks-End-Callback": "http://169.254.169.254/latest"}
    answered = await service.call("POST", f"/v2/publish/{HOOK}", lines)
    assert answered.status == 400
    assert "169.254.169.254" in answered.error


# -- the status of a message


async def status(service: Service, message_id: str) -> dict[str, Any]:
    """What the answer about a message says beyond what was published."""
    answered = await service.get(f"/v2/messages/{message_id}")
    names = ("state", "retried", "lastError", "nextDeliveryTime", "waitsFor", "dlqId")
    return {name: answered[name] for name in names if name in answered}


async def test_a_message_says_that_it_waits_for_its_delay(service: Service) -> None:
    message_id = await service.publish(Delay="1m")
    due_ms = service.clock.now_ms() + 60_000
    expected = {"state": "CREATED", "retried": 0, "nextDeliveryTime": due_ms, "waitsFor": "delay"}
    assert await status(service, message_id) == expected
    service.clock.advance(60_000)
    assert await status(service, message_id) == {"state": "CREATED", "retried": 0}


async def test_a_message_says_why_its_attempt_failed_and_when_the_next_one_is(service: Service) -> None:
    service.answer(503, Failure("connection_refused", "connection refused"), 200)
    message_id = await service.publish(Retry_Delay="5000")
    await service.run()
    service.clock.advance(5_000)
    await service.run()
    assert await status(service, message_id) == {
        "state": "RETRY",
        "retried": 2,
        "lastError": "connection refused",
        "nextDeliveryTime": service.clock.now_ms() + 5_000,
        "waitsFor": "retry",
    }
    service.clock.advance(5_000)
    await service.run()
    assert await status(service, message_id) == {"state": "DELIVERED", "retried": 2, "lastError": "connection refused"}


async def test_a_dead_letter_says_which_it_is_until_it_is_deleted(service: Service) -> None:
    service.answer(500)
    message_id = await service.publish(Retries="0")
    await service.run()
    [letter] = (await service.get("/v2/dlq"))["messages"]
    expected = {"state": "FAILED", "retried": 0, "lastError": "the destination answered 500"}
    assert await status(service, message_id) == {**expected, "dlqId": letter["dlqId"]}
    await service.call("DELETE", f"/v2/dlq/{letter['dlqId']}")
    assert await status(service, message_id) == expected


async def test_a_message_says_which_line_it_waits_in(service: Service) -> None:
    limited = {"Upstash-Flow-Control-Key": "k", "Upstash-Flow-Control-Value": "rate=1"}
    await service.call("POST", "/v2/queues", json_body={"queueName": "q", "paused": True})
    queued = (await service.post(f"/v2/enqueue/q/{HOOK}"))["messageId"]
    await service.post(f"/v2/publish/{HOOK}", limited)
    held = (await service.post(f"/v2/publish/{HOOK}", limited))["messageId"]
    await service.run()
    assert (await status(service, queued))["waitsFor"] == "queue q, which is paused"
    assert (await status(service, held))["waitsFor"] == "flow-control key k"
    await service.post("/v2/flowControl/k/pause")
    assert (await status(service, held))["waitsFor"] == "flow-control key k, which is paused"


async def test_a_message_says_that_its_host_takes_no_further_attempt(service: Service) -> None:
    message_id = await service.publish()
    await service.broker.store.claim(now_ms=service.clock.now_ms(), limit=1, rooms=Rooms(0))
    assert (await status(service, message_id))["waitsFor"] == "its host"


async def test_messages_say_that_nothing_listens(service: Service) -> None:
    service.answer(Failure("connection_refused", "connection refused", interrupted=True))
    interrupted = {"Qtasks-Interrupted-For": "1h"}
    tried = (await service.post(f"/v2/publish/{HOOK}", interrupted))["messageId"]
    await service.run()
    behind = (await service.post(f"/v2/publish/{HOOK}", interrupted))["messageId"]
    await service.run()
    expected = {"retried": 0, "waitsFor": "its host, which does not answer"}
    error = "interrupted, no retry is spent: connection refused"
    assert await status(service, tried) == {**expected, "state": "RETRY", "lastError": error}
    assert await status(service, behind) == {**expected, "state": "CREATED"}


async def test_a_message_that_may_end_the_process_says_that_it_waits_to_run_alone(service: Service) -> None:
    message_id = (await service.post(f"/v2/publish/{HOOK}", {"Qtasks-Interrupted-For": "1h"}))["messageId"]
    await service.broker.store.write(
        lambda db: db.execute(f"UPDATE messages SET {sums.changes(stage='2')}, lot = lot || 'alone'").fetchall()
    )
    assert (await status(service, message_id))["waitsFor"] == "its turn to run alone"


async def test_our_client_reads_the_status(service: Service) -> None:
    message_id = await publish(service, Delay="1m")
    answered = await service.call("GET", "/v2/messages/call_1")
    message = get("call_1").read(Reply(answered.status, tuple(answered.headers.items()), answered.body))
    assert (message.message_id, message.call_id) == (message_id, "call_1")
    assert message.status == DeliveryStatus(
        state="CREATED",
        retried=0,
        last_error=None,
        next_delivery_time=service.clock.now_ms() + 60_000,
        waits_for="delay",
        dlq_id=None,
    )
