"""One message of the console, why it waits, publishing it again, schedules, queues, endpoints, and the system."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qtasks.broker.console.console_context import Role
from qtasks.broker.console.table_rows import HIDDEN
from qtasks.broker.console.views import again, endpoints, message_page, overview, queue_table, schedule_table, system
from qtasks.broker.core.values import AccountCredentials
from qtasks.broker.ports import Failure
from qtasks.broker.settings import DEV_CREDENTIALS, DeliveryLimits
from qtasks.protocol.messages import Response
from qtasks.tasks.encode import envelope
from tests.support.api import HOOK, Service
from tests.support.broker import START_MS
from tests.support.view_caller import Console

pytestmark = pytest.mark.anyio

TASK = "http://127.0.0.1:8000/qtasks/add"
REFUSED = Failure("connection_refused", "connection refused", interrupted=True)


async def waiting(service: Service, message_id: str) -> Any:
    return (await Console(service).see(message_page.show, message_id))["waiting"]


async def call(service: Service, body: bytes, call_id: str, **headers: str) -> str:
    """Publish a call as the framework does."""
    lines = {
        "Qtasks-Call-Id": call_id,
        "Qtasks-End-Callback": f"http://127.0.0.1:8000/qtasks/_end?task=add&call={call_id}",
        "Qtasks-Interrupted-For": "1h",
        **{f"Upstash-{name.replace('_', '-')}": value for name, value in headers.items()},
    }
    return str((await service.post(f"/v2/publish/{TASK}", lines, body))["messageId"])


# -- why it waits


async def test_a_delay_says_until_when(service: Service) -> None:
    message_id = await service.publish(Delay="1h")
    assert await waiting(service, message_id) == {
        "reason": "delay",
        "text": "It was published with a delay, which is not over.",
        "untilMs": START_MS + 3_600_000,
        "subject": None,
    }


async def test_a_retry_says_when(service: Service) -> None:
    service.answer(500)
    message_id = await service.publish(Retry_Delay="5000")
    await service.run()
    assert (await waiting(service, message_id))["reason"] == "retry"
    assert (await waiting(service, message_id))["untilMs"] == START_MS + 5_000


async def test_a_message_in_a_queue_knows_its_place(service: Service) -> None:
    await service.post("/v2/queues", body=json.dumps({"queueName": "mails", "parallelism": 1}))
    ids = [str((await service.post(f"/v2/enqueue/mails/{HOOK}"))["messageId"]) for _ in range(4)]
    assert (await waiting(service, ids[0]))["reason"] == "due"
    assert await waiting(service, ids[1]) == {
        "reason": "queue",
        "text": "The queue mails runs 1 at a time; this message is the next.",
        "untilMs": None,
        "subject": "mails",
    }
    assert (await waiting(service, ids[2]))["text"].endswith("1 message stands before it.")
    assert (await waiting(service, ids[3]))["text"].endswith("2 messages stand before it.")
    await service.post("/v2/queues/mails/pause")
    assert (await waiting(service, ids[0]))["reason"] == "queue-paused", "it keeps its slot and waits"
    assert (await waiting(service, ids[3]))["text"] == "The queue mails is paused."


async def test_a_message_of_a_key_knows_its_limit(service: Service) -> None:
    headers = {"Flow_Control_Key": "api", "Flow_Control_Value": "rate=1, period=10s"}
    ids = [await service.publish(**headers) for _ in range(3)]
    await service.run()
    shown = await waiting(service, ids[2])
    assert (shown["reason"], shown["subject"], shown["untilMs"]) == ("rate", "api", START_MS + 10_000)
    assert shown["text"] == "The key api starts 1 in 10 s, and has started them; 1 message stands before it."
    await service.post("/v2/flowControl/api/pause")
    assert (await waiting(service, ids[2]))["reason"] == "key-paused"


async def test_a_message_behind_a_host_that_does_not_answer(service: Service) -> None:
    service.answer(REFUSED)
    message_id = await call(service, b"{}", "call_1")
    other = await call(service, b"{}", "call_2")
    await service.run()
    reasons = {(await waiting(service, each))["reason"] for each in (message_id, other)}
    assert reasons <= {"probe", "retry"}
    assert "probe" in reasons
    await Console(service).see(overview.show)  # counts what has happened
    [prefix] = await Console(service).see(endpoints.list_endpoints)
    assert prefix["prefix"] == "127.0.0.1:8000/qtasks/"
    assert prefix["down"]["sinceMs"] == START_MS
    assert prefix["waiting"] >= 1


async def test_a_message_that_nothing_holds_up_is_next(service: Service) -> None:
    assert (await waiting(service, await service.publish()))["reason"] == "due"
    await service.run()


async def test_what_has_ended_waits_for_nothing(service: Service) -> None:
    message_id = await service.publish()
    await service.run()
    assert await waiting(service, message_id) is None


# -- one message


async def test_the_attempts_of_a_message(service: Service) -> None:
    service.answer(REFUSED, Response(status=500, body=b"\xff no"), 200)
    message_id = await call(service, b"{}", "call_1", Retry_Delay="1000")
    counted = []
    for _ in range(3):
        await service.run()
        counted.append((await Console(service).see(message_page.show, message_id))["row"]["attempts"])
        service.clock.advance(2_000)
    assert counted == [0, 1, 2], "what was interrupted is made again"
    shown = await Console(service).see(message_page.show, message_id)
    outcomes = [(attempt["number"], attempt["outcome"]) for attempt in shown["attempts"]]
    assert outcomes == [(1, "interrupted"), (1, "failed"), (2, "delivered")], "an interrupted attempt spends no number"
    assert shown["attempts"][1]["response"] == {"status": 500, "header": None, "bodyBase64": "/yBubw=="}
    assert shown["attempts"][1]["nextMs"] == shown["attempts"][1]["endedMs"] + 1_000
    assert shown["attempts"][2]["timing"]["queuedMs"] == 1_000
    assert (shown["row"]["callId"], shown["row"]["task"]) == ("call_1", "add")
    assert shown["log"][0]["state"] == "CREATED"
    assert (await Console(service).see(message_page.show, "call_1"))["row"] == shown["row"], "also by its call"


async def test_a_message_knows_its_callbacks_and_they_know_it(service: Service) -> None:
    message_id = await service.publish(Callback=f"{HOOK}/back")
    await service.run()
    [callback] = (await Console(service).see(message_page.show, message_id))["callbacks"]
    assert callback["destination"] == f"{HOOK}/back"
    shown = await Console(service).see(message_page.show, callback["messageId"])
    assert shown["parent"]["messageId"] == message_id


async def test_without_payloads_nothing_of_them_is_shown(service: Service) -> None:
    secret = "very-secret"
    service.answer(Response(status=500, headers=(("X-Secret", secret),), body=secret.encode()))
    message_id = await service.publish(f"{HOOK}?key={secret}", secret, Retries="0", Forward_Authorization=secret)
    await service.run()
    await service.post(f"/v2/schedules/{HOOK}", {"Upstash-Cron": "0 9 * * *", "Upstash-Forward-X": secret}, secret)
    console = Console(service, Role.METADATA)
    shown = await console.see(message_page.show, message_id)
    schedule = await console.see(schedule_table.list_schedules)
    assert secret not in json.dumps([shown, schedule])
    assert shown["attempts"][0]["response"] == {"status": 500}
    assert shown["attempts"][0]["error"] == HIDDEN
    assert secret in json.dumps(await Console(service, Role.VIEWER).see(message_page.show, message_id))


async def test_other_accounts_see_nothing(service: Service) -> None:
    message_id = await service.publish()
    service.user = 1
    assert (await Console(service).ask(message_page.show, message_id))[0] == 404
    assert (await Console(service).ask(again.publish_again, message_id, body={}))[0] == 404


# -- again


async def test_a_message_is_published_again_as_it_was_or_with_another_body(service: Service) -> None:
    message_id = await service.publish(HOOK, '{"n": 12345678901234567890}', Forward_X="1", Retries="1")
    first = (await service.run())[0]
    for body, content in ({}, first.body), ({"body": "other ä"}, "other ä".encode()):
        status, document = await Console(service).ask(again.publish_again, message_id, body=body)
        assert status == 201
        assert document["messageId"] != message_id
        [request] = await service.run()
        assert (request.url, request.body, request.method) == (first.url, content, first.method)


async def test_a_task_runs_again_as_a_call_of_its_own(service: Service) -> None:
    old = envelope.new_call_id()
    body = envelope.encode(envelope.Envelope(old, [2**70, 1.0], {"text": f"not {old}"}))
    message_id = await call(service, body, old)
    await service.run()
    _, document = await Console(service).ask(again.publish_again, message_id, body={})
    [request] = await service.run()
    new = envelope.decode(request.body)
    assert new.call_id is not None
    assert new.call_id != old
    assert envelope.MADE_ID.fullmatch(new.call_id)
    assert (new.args, dict(new.kwargs)) == ([2**70, 1.0], {"text": f"not {old}"}), "nothing else has changed"
    shown = await Console(service).see(message_page.show, document["messageId"])
    assert shown["row"]["callId"] == new.call_id
    service.answer(Response(status=489, headers=(("Upstash-NonRetryable-Error", "true"),)))
    _, third = await Console(service).ask(again.publish_again, document["messageId"], body={})
    ends = [each for each in await service.run() if "_end" in each.url]
    assert new.call_id not in ends[0].url, "its end is reported as its own"
    assert third["messageId"]


async def test_arguments_that_belong_to_one_call_are_not_published_again(service: Service) -> None:
    body = envelope.encode(envelope.Envelope("call_x", coded="abc"))
    message_id = await call(service, body, "call_x")
    status, document = await Console(service).ask(again.publish_again, message_id, body={})
    assert status == 409
    assert "only the application can call it again" in document["error"]


@pytest.mark.parametrize("body", [{"body": 7}, ["x"], {"body": "\ud800"}])
async def test_a_body_that_is_no_text_is_refused(service: Service, body: Any) -> None:
    message_id = await service.publish()
    assert (await Console(service).ask(again.publish_again, message_id, body=body))[0] == 400


# -- schedules


async def test_a_schedule_in_plain_english_with_its_runs(service: Service) -> None:
    created = await service.post(
        f"/v2/schedules/{HOOK}", {"Upstash-Cron": "CRON_TZ=Europe/Berlin */10 * * * *", "Upstash-Schedule-Id": "ten"}
    )
    for _ in range(2):
        service.clock.advance(600_000)
        await service.run()
    [shown] = (await Console(service).see(schedule_table.list_schedules))["schedules"]
    assert shown["schedule"]["scheduleId"] == created["scheduleId"]
    assert (shown["english"], shown["timeZone"]) == ("every 10 minutes (Europe/Berlin)", "Europe/Berlin")
    steps = {second - first for first, second in zip(shown["nextMs"], shown["nextMs"][1:], strict=False)}
    assert (len(shown["nextMs"]), steps) == (5, {600_000})
    assert [run["outcome"] for run in shown["recent"]] == ["fired", "fired"]
    run = shown["recent"][0]
    page = await Console(service).see(message_page.show, run["messages"][0])
    assert page["run"] == {"scheduleId": "ten", "tickMs": run["tickMs"]}
    assert 0 <= run["lateMs"] < 600_000


async def test_a_run_now_changes_nothing_of_the_schedule(service: Service) -> None:
    await service.post(f"/v2/schedules/{HOOK}", {"Upstash-Cron": "0 9 * * *", "Upstash-Schedule-Id": "nine"}, "body")
    before = await service.get("/v2/schedules/nine")
    status, document = await Console(service).ask(schedule_table.run_now, "nine", body={})
    assert (status, len(document["messages"])) == (201, 1)
    [request] = await service.run()
    assert request.body == b"body"
    assert (await service.get("/v2/schedules/nine")) == before
    assert (await Console(service).ask(schedule_table.run_now, "none", body={}))[0] == 404


async def test_a_schedule_whose_group_is_gone_says_so(service: Service) -> None:
    await service.post("/v2/topics/team/endpoints", body=json.dumps({"endpoints": [{"url": HOOK}]}))
    await service.post("/v2/schedules/team", {"Upstash-Cron": "0 9 * * *", "Upstash-Schedule-Id": "team-run"})
    await service.call("DELETE", "/v2/topics/team")
    status, document = await Console(service).ask(schedule_table.run_now, "team-run", body={})
    assert (status, "no URL group" in document["error"]) == (409, True)


# -- queues, keys, system


async def test_queues_and_keys_show_what_waits_and_how_quickly(service: Service) -> None:
    await service.post("/v2/queues", body=json.dumps({"queueName": "mails", "parallelism": 2}))
    for _ in range(6):
        await service.post(
            f"/v2/enqueue/mails/{HOOK}",
            {"Upstash-Flow-Control-Key": "k", "Upstash-Flow-Control-Value": "parallelism=1"},
        )
    [queue] = await Console(service).see(queue_table.list_queues)
    assert (queue["waiting"], queue["running"], queue["timeToEmptyS"]) == (6, 0, None)
    assert queue["oldestMs"] == START_MS
    await service.run()
    [queue] = await Console(service).see(queue_table.list_queues)
    [key] = await Console(service).see(queue_table.list_flow_keys)
    assert (queue["waiting"], queue["perMinute"], queue["timeToEmptyS"]) == (0, 1.2, 0)
    assert (key["name"], key["parallelism"], key["waiting"], key["perMinute"]) == ("k", 1, 0, 1.2)


async def test_the_system_shows_no_secret() -> None:
    credentials = AccountCredentials("default", "the-own-token", DEV_CREDENTIALS[0].keys)
    service = await Service.open(
        llm_url="http://user:pass@127.0.0.1:11434",
        limits=DeliveryLimits(in_flight=7),
        credentials=(credentials, DEV_CREDENTIALS[0]),
    )
    try:
        shown = await Console(service).see(system.show)
        text = json.dumps(shown)
        assert not any(secret in text for secret in ("the-own-token", "pass@", "sig_"))
        assert shown["limits"]["inFlight"] == 7
        assert shown["readiness"]["ready"] is True
        assert shown["tokens"] == [
            {"name": "(of the configuration)", "role": "operator", "createdMs": None, "usedMs": None}
        ]
        model = {"name": "llm_url", "value": "http://127.0.0.1:11434", "default": "none", "source": "the program"}
        assert model in shown["configuration"]
        assert shown["keys"] == {"rotatedMs": None}
        service.user = 0
    finally:
        await service.close()


async def test_the_system_says_when_the_keys_were_rotated(service: Service) -> None:
    await service.post("/v2/keys/rotate")
    assert (await Console(service).see(system.show))["keys"] == {"rotatedMs": START_MS}
