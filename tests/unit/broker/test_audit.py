"""The audit: each change of an operator is one row, written with the change; a publish is none."""

from __future__ import annotations

from typing import Any

import pytest

from qtasks.broker.console.console_context import Role
from qtasks.broker.console.views import again, audit_table, dead_letters, failure_table, queue_table, schedule_table
from qtasks.broker.core.operator_changes import Actor, OperatorChange
from qtasks.broker.core.values import Retention
from qtasks.broker.store.verbs import audit, retention
from qtasks.protocol.messages import Response
from tests.support.api import HOOK, Service
from tests.support.broker import START_MS
from tests.support.view_caller import Console

pytestmark = pytest.mark.anyio


async def changes(service: Service, role: Role = Role.OPERATOR, **query: Any) -> list[dict[str, Any]]:
    """The rows of the audit, the newest first."""
    seen = await Console(service, role).see(audit_table.list_changes, **query)
    return list(seen["changes"])


async def told(service: Service, **query: Any) -> list[tuple[str, str, int]]:
    """What, subject and count of the rows, the oldest first."""
    return [(row["what"], row["subject"], row["count"]) for row in reversed(await changes(service, **query))]


async def dead(service: Service, count: int) -> list[str]:
    """The ids of `count` new dead letters."""
    service.answer(Response(status=489, headers=(("Upstash-NonRetryable-Error", "true"),)))
    for _ in range(count):
        await service.publish()
    await service.run()
    return [letter["dlqId"] for letter in (await service.get("/v2/dlq"))["messages"]]


async def test_a_change_tells_when_who_from_where_what_and_why(service: Service) -> None:
    await service.call("POST", "/v2/queues", json_body={"queueName": "mail", "parallelism": 2})
    service.clock.advance(1_000)
    await service.post("/v2/queues/mail/pause", {"Qtasks-Note": "the%20provider%20is%20down%20%E2%80%94%20Ada"})
    assert (await changes(service))[0] == {
        "id": 2,
        "timeMs": START_MS + 1_000,
        "who": "development",
        "origin": "api",
        "what": "queue.pause",
        "subject": "mail",
        "count": 1,
        "note": "the provider is down — Ada",
    }


async def test_a_note_that_is_too_long_is_refused_and_changes_nothing(service: Service) -> None:
    await service.call("POST", "/v2/queues", json_body={"queueName": "mail"})
    refused = await service.call("POST", "/v2/queues/mail/pause", {"Qtasks-Note": "x" * 201})
    assert (refused.status, "at most 200 characters" in refused.error) == (400, True)
    assert (await service.get("/v2/queues/mail"))["paused"] is False
    assert await told(service) == [("queue.set", "mail", 1)]


async def test_every_kind_of_change_has_its_word(service: Service) -> None:
    endpoints = {"endpoints": [{"url": HOOK, "name": "hook"}]}
    await service.call("POST", "/v2/queues", json_body={"queueName": "mail"})
    await service.post("/v2/queues/mail/resume")
    await service.call("DELETE", "/v2/queues/mail")
    for action in ("pause", "resume", "pin?rate=3", "unpin?rate=true", "resetRate"):
        await service.post(f"/v2/flowControl/openai/{action}")
    schedule = (await service.post(f"/v2/schedules/{HOOK}", {"Upstash-Cron": "0 9 * * *"}))["scheduleId"]
    await service.post(f"/v2/schedules/{schedule}/pause")
    await service.post(f"/v2/schedules/{schedule}/resume")
    await Console(service).ask(schedule_table.run_now, schedule, body={})
    await service.call("DELETE", f"/v2/schedules/{schedule}")
    by_publish = (await service.post(f"/v2/publish/{HOOK}", {"Upstash-Cron": "0 9 * * *"}))["scheduleId"]
    await service.call("POST", "/v2/topics/orders/endpoints", json_body=endpoints)
    await service.call("PATCH", "/v2/topics/orders", json_body={"headers": {"Upstash-Retries": "3"}})
    await service.call("DELETE", "/v2/topics/orders/endpoints", json_body=endpoints)
    await service.post("/v2/keys/rotate")
    assert await told(service, count=500) == [
        ("queue.set", "mail", 1),
        ("queue.resume", "mail", 1),
        ("queue.delete", "mail", 0),
        ("flow.pause", "openai", 1),
        ("flow.resume", "openai", 1),
        ("flow.pin", "openai", 1),
        ("flow.unpin", "openai", 1),
        ("flow.reset", "openai", 1),
        ("schedule.set", schedule, 1),
        ("schedule.pause", schedule, 1),
        ("schedule.resume", schedule, 1),
        ("schedule.run", schedule, 1),
        ("schedule.delete", schedule, 1),
        ("schedule.set", by_publish, 1),
        ("url-group.set", "orders", 1),
        ("url-group.headers", "orders", 1),
        ("url-group.remove", "orders", 1),
        ("keys.rotate", "", 1),
    ]


async def test_publishes_deliveries_and_reads_leave_no_row(service: Service) -> None:
    message_id = await service.publish()
    await service.publish(Delay="1h", Flow_Control_Key="k", Flow_Control_Value="rate=1")
    await service.post(f"/v2/enqueue/mail/{HOOK}")
    await service.run()
    for path in (f"/v2/events?messageId={message_id}", "/v2/queues", "/v2/keys", "/v2/dlq"):
        await service.get(path)
    assert await told(service) == []


async def test_what_changes_nothing_leaves_no_row(service: Service) -> None:
    for method, path in (
        ("POST", "/v2/queues/unknown/pause"),
        ("DELETE", "/v2/queues/unknown"),
        ("DELETE", "/v2/schedules/unknown"),
        ("DELETE", "/v2/topics/unknown"),
        ("DELETE", "/v2/messages/msg_unknown"),
        ("DELETE", "/v2/dlq/1-1"),
        ("DELETE", "/v2/messages?label=nothing"),
    ):
        await service.call(method, path)
    assert await told(service) == []


async def test_a_change_in_many_transactions_is_one_row_with_the_whole_count(service: Service) -> None:
    await service.call("POST", "/v2/queues", json_body={"queueName": "mail"})
    await service.post("/v2/queues/mail/pause")
    for _ in range(150):
        await service.publish(Label="nightly")
    for _ in range(120):
        await service.post(f"/v2/enqueue/mail/{HOOK}")
    cancelled = await service.call("DELETE", "/v2/messages?label=nightly")
    assert cancelled.json == {"cancelled": 150}
    await service.call("DELETE", "/v2/queues/mail")
    assert (await told(service))[2:] == [("message.cancel", "label=nightly", 150), ("queue.delete", "mail", 120)]


async def test_dead_letters_that_are_retried_and_deleted_are_counted(service: Service) -> None:
    first, second, *others = await dead(service, 9)
    console = Console(service)
    await service.call("DELETE", f"/v2/dlq/{first}")
    await service.post(f"/v2/dlq/retry/{second}")
    await console.see(dead_letters.retry_dead_letters, body={"ids": others[:6]})
    await console.see(dead_letters.delete_dead_letters, body={"filter": "url:http*", "expected": 1})
    assert await told(service) == [
        ("dlq.delete", first, 1),
        ("dlq.retry", second, 1),
        ("dlq.retry", f"{', '.join(others[:5])} and 1 more", 6),
        ("dlq.delete", "url:http*", 1),
    ]


async def test_a_failure_that_is_retried_and_a_message_that_is_repeated_are_told(service: Service) -> None:
    [letter] = await dead(service, 1)
    console = Console(service)
    [failure] = (await console.see(failure_table.list_failures))["failures"]
    status, _ = await console.ask(again.publish_again, failure["sampleId"], body={})
    assert status == 201
    await console.see(failure_table.retry_failure, failure["fingerprint"], body={"expected": 1})
    assert await told(service) == [
        ("message.again", failure["sampleId"], 1),
        ("dlq.retry", f"failure {failure['fingerprint']}", 1),
    ]
    assert letter not in [each["dlqId"] for each in (await service.get("/v2/dlq"))["messages"]]


async def test_rows_are_found_by_words_in_any_case_and_read_in_pages(service: Service) -> None:
    for name in ("mail", "reports", "MAILINGS"):
        await service.post(f"/v2/flowControl/{name}/pause")
        await service.post(f"/v2/flowControl/{name}/resume")
    assert await told(service, filter="Mail flow.PAUSE") == [("flow.pause", "mail", 1), ("flow.pause", "MAILINGS", 1)]
    console, cursor, seen = Console(service), None, []
    while True:
        page = await console.see(audit_table.list_changes, count=4, **({} if cursor is None else {"cursor": cursor}))
        seen += [row["id"] for row in page["changes"]]
        if (cursor := page["cursor"]) is None:
            break
    assert seen == [6, 5, 4, 3, 2, 1]


async def test_who_sees_no_payloads_sees_no_filter_and_cannot_search_in_one(service: Service) -> None:
    await dead(service, 1)
    await Console(service).see(dead_letters.delete_dead_letters, body={"filter": "url:*", "expected": 1})
    await service.post("/v2/flowControl/mail/pause")
    pause, delete = await changes(service, Role.METADATA)
    assert (pause["subject"], delete["subject"]) == ("mail", audit_table.HIDDEN)
    assert await changes(service, Role.METADATA, filter="url:") == []
    assert len(await changes(service, Role.VIEWER, filter="url:")) == 1


async def test_accounts_see_only_their_own_changes(service: Service) -> None:
    await service.post("/v2/flowControl/mail/pause")
    service.user = 1
    assert await told(service) == []


async def test_rows_are_removed_when_nothing_they_tell_of_can_be_there_any_more(service: Service) -> None:
    kept = Retention(delivered_ms=1_000, failed_ms=5_000)
    await service.post("/v2/flowControl/old/pause")
    service.clock.advance(3_000)
    await service.post("/v2/flowControl/young/pause")
    service.clock.advance(3_000)
    await service.broker.store.write(retention.prune, kept, now_ms=service.clock.now_ms())
    assert await told(service) == [("flow.pause", "young", 1)]


async def test_the_number_of_rows_is_bounded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "KEPT", 3)
    for number in range(5):
        await service.post(f"/v2/flowControl/{number}/pause")
    await service.broker.store.write(retention.prune, Retention(), now_ms=service.clock.now_ms())
    assert [subject for _, subject, _ in await told(service)] == ["2", "3", "4"]


# -- pauses


NOTE = {"Qtasks-Note": "provider%20down"}


async def paused(service: Service, what: str) -> dict[str, Any]:
    """What the API tells of the pause of a queue, a key or a schedule."""
    shown = await service.get(what)
    return {name: value for name, value in shown.items() if name.startswith("pause") and name != "paused"}


async def three(service: Service) -> list[str]:
    """The paths of a queue, a flow-control key and a schedule, none of them paused."""
    await service.call("POST", "/v2/queues", json_body={"queueName": "mail"})
    await service.post("/v2/flowControl/openai/resume")
    schedule = (await service.post(f"/v2/schedules/{HOOK}", {"Upstash-Cron": "0 9 * * *"}))["scheduleId"]
    return ["/v2/queues/mail", "/v2/flowControl/openai", f"/v2/schedules/{schedule}"]


async def test_a_pause_tells_since_when_by_whom_and_why_until_it_is_resumed(service: Service) -> None:
    for path in await three(service):
        assert await paused(service, path) == {}
        await service.post(f"{path}/pause", NOTE)
        since = service.clock.now_ms()
        service.clock.advance(5_000)
        known = {"pausedAt": since, "pausedBy": "development", "pauseNote": "provider down"}
        assert await paused(service, path) == known
        await service.post(f"{path}/pause")
        assert await paused(service, path) == known, "a second pause without a note changes nothing"
        await service.post(f"{path}/pause", {"Qtasks-Note": "still"})
        assert await paused(service, path) == {**known, "pauseNote": "still"}
        await service.post(f"{path}/resume")
        assert await paused(service, path) == {}
        await service.post(f"{path}/pause")
        assert await paused(service, path) == {"pausedAt": since + 5_000, "pausedBy": "development"}


async def test_what_is_made_anew_has_no_note_of_its_predecessor(service: Service) -> None:
    queue, _, schedule = await three(service)
    for path in (queue, schedule):
        await service.post(f"{path}/pause", NOTE)
        await service.call("DELETE", path)
    await service.call("POST", "/v2/queues", json_body={"queueName": "mail", "paused": True})
    assert "pauseNote" not in await paused(service, queue)


async def test_the_console_shows_the_pauses_of_queues_and_keys(service: Service) -> None:
    queue, key, _ = await three(service)
    await service.post(f"{queue}/pause", NOTE)
    await service.post(f"{key}/pause", NOTE)
    for view in (queue_table.list_queues, queue_table.list_flow_keys):
        [line] = await Console(service, Role.METADATA).see(view)
        assert (line["paused"], line["pausedBy"], line["pauseNote"]) == (True, "development", "provider down")


def test_the_name_of_a_user_controls_nothing_where_it_is_shown() -> None:
    change = OperatorChange(
        account=1, actor=Actor("Ada\x1b[31m\n\u202e" + "x" * 500), what="queue.set", subject="mail", now_ms=0
    )
    assert change.actor.name.startswith("Ada\ufffd[31m\ufffd\ufffdxxx")
    assert len(change.actor.name) == 150
