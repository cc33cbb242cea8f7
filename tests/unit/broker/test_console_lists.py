"""The overview, the messages, the failures and the dead letters of the console."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from qtasks.broker.console import bulk, filter_text
from qtasks.broker.console.console_context import Role
from qtasks.broker.console.table_rows import HIDDEN
from qtasks.broker.console.views import (
    audit_table,
    dead_letters,
    failure_table,
    messages,
    metrics,
    overview,
    task_table,
)
from qtasks.broker.ports import DeliveryRequest
from qtasks.broker.store.verbs.insight import search as search_verbs
from qtasks.protocol.messages import Response
from tests.support.api import Service
from tests.support.view_caller import Console

pytestmark = pytest.mark.anyio

TASKS = "http://127.0.0.1:8000/qtasks"
HOOK = "http://127.0.0.1:8000/hook"


@pytest.fixture(params=["file", "memory"])
async def service(request: pytest.FixtureRequest, tmp_path: Any) -> AsyncIterator[Service]:
    made = await Service.open(":memory:" if request.param == "memory" else str(tmp_path / "broker.db"))
    yield made
    await made.close()


@pytest.fixture
def console(service: Service) -> Console:
    return Console(service)


async def publish(service: Service, task: str, body: str = "{}", **headers: str) -> str:
    """A call of a task."""
    call = {"Qtasks-Interrupted-For": "1h", **headers}
    lines = {name if name.startswith("Qtasks") else f"Upstash-{name}": value for name, value in call.items()}
    message_id = (await service.post(f"/v2/publish/{TASKS}/{task}", lines, body))["messageId"]
    return str(message_id)


def failing(request: DeliveryRequest) -> Response:
    """Tasks named ``bad`` fail for good."""
    if "/bad" not in request.url:
        return Response(status=200)
    text = b'{"error":"ValueError: order %d is \\"late\\"","code":"x"}' % len(request.body)
    return Response(status=489, headers=(("Upstash-NonRetryable-Error", "true"),), body=text)


async def search(console: Console, text: str, **query: Any) -> list[str]:
    """The ids of the messages that a filter finds."""
    seen = await console.see(messages.list_messages, filter=text, **query)
    return [row["messageId"] for row in seen["messages"]]


async def test_an_empty_broker_shows_a_checklist(console: Console) -> None:
    shown = await console.see(overview.show)
    assert shown["checklist"] == {"broker": True, "dispatcher": False, "message": False, "run": False}
    assert shown["now"] == {"scheduled": 0, "waiting": 0, "running": 0, "retrying": 0, "dead": 0}
    assert (shown["oldestWaiting"], shown["destinations"], shown["behind"]) == (None, [], 0)
    assert len(shown["series"]["points"]) == 60


async def test_a_muted_failure_is_counted_and_comes_back_after_its_time(service: Service, console: Console) -> None:
    service.transport.answer = failing
    await publish(service, "bad")
    await service.run()
    [failure] = (await console.see(failure_table.list_failures))["failures"]
    assert failure["muted"] is None
    seen = await console.see(failure_table.mute_failure, failure["fingerprint"], body={"hours": 2})
    assert seen["failure"]["muted"]["untilMs"] == service.clock.now_ms() + 7_200_000
    [muted] = (await console.see(failure_table.list_failures))["failures"]
    assert (muted["muted"], muted["attempts"]) == (seen["failure"]["muted"], 1)
    service.clock.advance(7_200_000)
    assert (await console.see(failure_table.list_failures))["failures"][0]["muted"] is None
    await console.see(failure_table.mute_failure, failure["fingerprint"], body={"hours": 1})
    ended = await console.see(failure_table.mute_failure, failure["fingerprint"], body={"hours": 0})
    assert ended["failure"]["muted"] is None
    changes = (await console.see(audit_table.list_changes))["changes"]
    assert [change["what"] for change in changes] == ["failure.unmute", "failure.mute", "failure.mute"]
    for hours in (-1, 721, "1", None, True):
        status, _ = await console.ask(failure_table.mute_failure, failure["fingerprint"], body={"hours": hours})
        assert status == 400, hours
    assert (await console.ask(failure_table.mute_failure, "unknown", body={"hours": 1}))[0] == 404


async def test_an_application_that_was_announced_needs_no_message_to_be_known(console: Console) -> None:
    console.service.broker.questions.announce(console.viewer.account, f"{TASKS}/")
    assert (await console.see(overview.show))["checklist"]["dispatcher"] is True
    [known] = (await console.see(task_table.list_tasks))["dispatchers"]
    assert known["prefix"] == f"{TASKS}/"


async def test_the_overview_says_what_is_paused_and_what_runs_next(service: Service, console: Console) -> None:
    for name in ("daily", "nightly"):
        lines = {
            "Upstash-Cron": "0 9 * * *",
            "Upstash-Schedule-Id": name,
            "Qtasks-End-Callback": f"{TASKS}/_end?task=x",
        }
        await service.post(f"/v2/schedules/{TASKS}/report", lines)
    await service.call("PATCH", "/v2/schedules/nightly/pause")
    await service.post("/v2/queues", body='{"queueName": "mails"}')
    await service.post("/v2/queues/mails/pause")
    shown = await console.see(overview.show)
    assert shown["held"] == {"queues": 1, "keys": 0, "schedules": 1}
    [following] = shown["nextSchedules"]
    assert (following["scheduleId"], following["task"]) == ("daily", "report"), "though it has never run"


async def test_the_overview_counts_what_was_done_and_what_waits(service: Service, console: Console) -> None:
    service.transport.answer = failing
    for task in ("good", "good", "bad"):
        await publish(service, task)
    await service.run()
    waiting = await publish(service, "good", Delay="1h")
    oldest = await publish(service, "good")
    shown = await console.see(overview.show, minutes=5)
    assert shown["now"] == {"scheduled": 1, "waiting": 1, "running": 0, "retrying": 0, "dead": 1}
    assert shown["oldestWaiting"]["messageId"] == oldest != waiting
    assert (shown["checklist"]["message"], shown["checklist"]["run"]) == (True, True)
    points = shown["series"]["points"]
    assert [sum(point[name] for point in points) for name in ("created", "delivered", "failed")] == [5, 2, 1]
    good, bad = shown["destinations"]
    assert (good["task"], good["destination"], good["delivered"]) == ("good", f"{TASKS}/good", 2)
    assert (bad["task"], bad["failed"], bad["dead"], bad["timeToEmptyS"]) == ("bad", 1, 1, None)
    assert good["timeToEmptyS"] == round(60 / good["perMinute"], 0)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "good bad hook late"),
        ("task:good", "good"),
        ("task:good,bad", "good bad"),
        ("-task:good", "bad hook late"),
        (f"url:{HOOK}", "hook"),
        (f"url:{TASKS}/*", "good bad late"),
        ("status:failed", "bad"),
        ("status:delivered,scheduled", "good hook late"),
        ("status:scheduled", "late"),
        ("-status:failed status:delivered", "good hook"),
        ("task:good status:failed", ""),
        ("hoo", "hook"),
        ("error:valueerror", "bad"),
        ('error:"order 2"', "bad"),
        ("error:other", ""),
        ("-error:ValueError", "good hook late"),
        ("label:red", "good"),
        ("queue:q1", "hook"),
        ("-queue:q1", "good bad late"),
        ("arg.user.id:42", "hook"),
        ("arg.0:7", "good"),
        ("arg.name:ann", "good"),
        ("after:1h", "good bad hook late"),
        ("before:1h", ""),
        ("task:good label:blue", ""),
    ],
)
async def test_a_filter_finds_the_messages_that_it_describes(
    service: Service, console: Console, text: str, names: str
) -> None:
    service.transport.answer = failing
    call = '{"v":1,"id":"call_1","args":[7],"kwargs":{"name":"ann"}}'
    ids = {"good": await publish(service, "good", call, Label="red")}
    ids["bad"] = await publish(service, "bad")
    hook = await service.post(f"/v2/enqueue/q1/{HOOK}?secret=1", body='{"user":{"id":42}}')
    ids["hook"] = hook["messageId"]
    ids["late"] = await publish(service, "late", Delay="1h")
    await service.run()
    assert await search(console, text) == [ids[name] for name in reversed(names.split())]
    assert await search(console, ids["bad"]) == [ids["bad"]]


async def test_pages_go_on_where_the_last_one_ended(service: Service, console: Console) -> None:
    ids = [await publish(service, "good") for _ in range(7)]
    pages: list[list[str]] = []
    cursor: Any = 2**50
    while cursor is not None:
        seen = await console.see(messages.list_messages, filter="task:good", count=3, cursor=cursor)
        pages.append([row["messageId"] for row in seen["messages"]])
        cursor = seen["cursor"]
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [message_id for page in pages for message_id in page] == ids[::-1]


async def test_a_search_one_by_one_says_how_far_it_got_and_goes_on(
    service: Service, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [await service.publish(HOOK, f'{{"n":{number % 5}}}') for number in range(20)]
    monkeypatch.setattr(messages, "SCAN_MOST", 8)
    monkeypatch.setattr("qtasks.broker.store.verbs.insight.search.messages.__kwdefaults__", {"scan": 4})
    seen = await console.see(messages.list_messages, filter="arg.n:1")
    assert seen["scanned"] == {"messages": 8, "of": 8}
    assert [row["messageId"] for row in seen["messages"]] == [ids[16]]
    seen = await console.see(messages.list_messages, filter="arg.n:1", cursor=seen["cursor"])
    assert [row["messageId"] for row in seen["messages"]] == [ids[11], ids[6]][: len(seen["messages"])]


async def test_a_search_for_many_texts_looks_at_few_messages_at_a_time_so_that_others_read_between(
    service: Service, console: Console
) -> None:
    ids = [await service.publish(HOOK, f'{{"n":{{"m":"v{number}"}}}}', Delay="1d") for number in range(20)]
    words = [f"-arg.n.m:{','.join(f'w{45 * word + number}' for number in range(45))}" for word in range(8)]
    assert await search(console, " ".join(words)) == ids[::-1]
    criteria = filter_text.read(" ".join(words), now_ms=0)
    step = await service.broker.store.read_long(
        search_verbs.messages, console.viewer.account, criteria, below=None, count=50
    )
    assert step.looked_at < len(ids)
    assert step.below is not None, "the next step goes on"


async def test_a_row_tells_what_happened_to_a_message(service: Service, console: Console) -> None:
    service.transport.answer = failing
    await publish(service, "bad", Label="red")
    await service.run()
    [row] = (await console.see(messages.list_messages))["messages"]
    assert (row["task"], row["status"], row["attempts"], row["labels"]) == ("bad", "failed", 1, ["red"])
    assert row["error"] == 'ValueError: order 2 is "late"'
    assert row["finishedMs"] == row["createdMs"] == service.clock.now_ms()


async def test_failures_are_grouped_and_retried(service: Service, console: Console) -> None:
    service.transport.answer = failing
    for length in (2, 3, 4):
        await publish(service, "bad", "x" * length)
    await service.run()
    [group] = (await console.see(failure_table.list_failures))["failures"]
    assert (group["task"], group["attempts"], group["messages"], group["deadLetters"]) == ("bad", 3, 3, 3)
    assert (len(group["sparkline"]), sum(group["sparkline"])) == (24, 3)
    shown = await console.see(failure_table.show_failure, group["fingerprint"], count=2)
    assert (len(shown["rows"]), shown["messages"]) == (2, 3)
    assert group["sampleId"] in await search(console, "task:bad")
    shown = await console.see(failure_table.show_failure, group["fingerprint"], cursor=shown["cursor"])
    assert len(shown["rows"]) == 1
    refused, document = await console.ask(failure_table.retry_failure, group["fingerprint"], body={"expected": 2})
    assert (refused, document["matching"]) == (409, 3)
    done = await console.see(failure_table.retry_failure, group["fingerprint"], body={"expected": 3})
    assert done == {"retried": 3, "left": 0}
    assert (await console.see(failure_table.list_failures))["failures"][0]["deadLetters"] == 0
    assert (await console.ask(failure_table.show_failure, "unknown"))[0] == 404


async def test_dead_letters_are_listed_by_filter_and_retried_in_portions(
    service: Service, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "PORTION", 2)
    service.transport.answer = failing
    for task in ("bad", "bad2", "bad", "bad"):
        await publish(service, task)
        await service.run()
        service.clock.advance(1_000)
    seen = await console.see(dead_letters.list_dead_letters, filter="task:bad", count=2)
    assert (seen["matching"], len(seen["deadLetters"])) == (3, 2)
    assert seen["deadLetters"][0]["responseStatus"] == 489
    rest = await console.see(dead_letters.list_dead_letters, filter="task:bad", count=2, cursor=seen["cursor"])
    assert (len(rest["deadLetters"]), rest["cursor"]) == (1, None)
    body = {"filter": "task:bad", "expected": 3}
    assert (await console.ask(dead_letters.retry_dead_letters, body={**body, "expected": 2}))[0] == 409
    done = await console.see(dead_letters.retry_dead_letters, body=body)
    assert (done["done"], done["left"]) == (2, 1)
    service.clock.advance(1_000)
    await service.run()  # they fail again, and are none of those that were to be retried
    done = await console.see(dead_letters.retry_dead_letters, body={**body, "untilMs": done["untilMs"]})
    assert (done["done"], done["left"]) == (1, 0)
    ids = [row["deadLetterId"] for row in (await console.see(dead_letters.list_dead_letters))["deadLetters"]]
    assert await console.see(dead_letters.delete_dead_letters, body={"ids": ids[:1]}) == {"done": 1, "left": 0}
    assert (await console.see(dead_letters.list_dead_letters))["matching"] == len(ids) - 1


async def test_who_sees_no_payloads_sees_no_text_of_an_endpoint(service: Service) -> None:
    service.transport.answer = failing
    await publish(service, "bad")
    await service.run()
    console = Console(service, Role.METADATA)
    [row] = (await console.see(messages.list_messages))["messages"]
    [group] = (await console.see(failure_table.list_failures))["failures"]
    [letter] = (await console.see(dead_letters.list_dead_letters))["deadLetters"]
    assert row["error"] == group["error"] == letter["error"] == HIDDEN
    for text in ("error:ValueError", "-error:x", "arg.n:1"):
        for view in (messages.list_messages, failure_table.list_failures, dead_letters.list_dead_letters):
            assert (await console.ask(view, filter=text))[0] == 403


async def test_an_account_sees_only_its_own(service: Service) -> None:
    service.transport.answer = failing
    await publish(service, "bad")
    await service.run()
    service.user = 1
    console = Console(service)
    assert (await console.see(messages.list_messages))["messages"] == []
    assert (await console.see(failure_table.list_failures))["failures"] == []
    assert (await console.see(dead_letters.list_dead_letters))["deadLetters"] == []
    assert (await console.see(overview.show))["now"]["dead"] == 0


async def test_a_filter_that_cannot_be_read_says_where(console: Console) -> None:
    for view in (messages.list_messages, failure_table.list_failures, dead_letters.list_dead_letters):
        status, document = await console.ask(view, filter="task:a status:odd")
        assert status == 422
        assert document["problems"][0]["at"] == 7


async def test_a_monitoring_system_reads_the_same_counters(service: Service, console: Console) -> None:
    service.transport.answer = failing
    for task in ("good", "good", "bad"):
        await publish(service, task)
    await service.run()
    await publish(service, "good")
    service.clock.advance(2_000)
    text = await console.text(metrics.show)
    samples = {
        (sample.name, sample.labels.get("task"), sample.labels.get("status"), sample.labels.get("le")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["qtasks_messages_created_total", "good", None, None] == 3
    assert samples["qtasks_messages_delivered_total", "good", None, None] == 2
    assert samples["qtasks_messages_failed_total", "bad", None, None] == 1
    assert samples["qtasks_messages", "bad", "dead", None] == samples["qtasks_messages", "good", "waiting", None] == 1
    assert samples["qtasks_attempt_duration_seconds_count", "good", None, None] == 2
    assert samples["qtasks_attempt_duration_seconds_bucket", "good", None, "+Inf"] == 2
    assert samples["qtasks_wait_seconds_count", None, None, None] == 3
    assert samples["qtasks_oldest_waiting_seconds", None, None, None] == 2
    assert samples["qtasks_log_entries_behind", None, None, None] == 0


async def test_the_dashboard_for_grafana_asks_for_metrics_that_exist(console: Console) -> None:
    board = (Path(__file__).parents[3] / "docs" / "grafana-dashboard.json").read_text()
    names = {name.removesuffix("_bucket") for name in re.findall(r"qtasks_\w+", board)}
    text = await console.text(metrics.show)
    assert names
    assert not {name for name in names if f"# TYPE {name} " not in text}
