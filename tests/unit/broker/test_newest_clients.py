"""What newest clients, gateways and proxies send, and what they need (docs/protocol.md 2.1 to 2.5, 2.14, 4.4)."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest

from qtasks.protocol.messages import Response
from tests.support.api import HOOK, Service, header

pytestmark = pytest.mark.anyio

WORKFLOW = [{"Upstash-Workflow-Init": "true"}, {"upstash-workflow-runid": "wfr_1"}, {"UPSTASH-WORKFLOW-RUNID": ""}]


async def is_empty(service: Service) -> bool:
    return await service.run() == [] and (await service.get("/v2/events"))["events"] == []


@pytest.mark.parametrize("workflow", WORKFLOW)
@pytest.mark.parametrize("target", ["publish/", "enqueue/q/", "schedules/"])
async def test_a_message_of_a_workflow_run_is_refused_and_not_stored(
    service: Service, target: str, workflow: Mapping[str, str]
) -> None:
    lines = {**workflow, **({"Upstash-Cron": "* * * * *"} if target == "schedules/" else {})}
    answered = await service.call("POST", f"/v2/{target}{HOOK}", lines, "step")
    assert (answered.status, "workflows are not served" in answered.error) == (501, True)
    assert await is_empty(service)
    assert await service.get("/v2/schedules") == []
    assert await service.get("/v2/queues") == []


async def test_a_publish_that_names_a_run_in_its_query_is_refused_as_well(service: Service) -> None:
    for target in (f"publish/{HOOK}?upstash-workflow-runid=wfr_1", f"publish/{HOOK}?a=1&Upstash-Workflow-Init=true"):
        assert (await service.call("POST", f"/v2/{target}")).status == 501
    assert await is_empty(service)


@pytest.mark.parametrize(
    "item",
    [
        *({"destination": HOOK, "headers": workflow} for workflow in WORKFLOW),
        {"destination": f"{HOOK}?upstash-workflow-init=true"},
        {"destination": "no destination at all", "headers": WORKFLOW[0]},
        {"destination": HOOK, "queue": "q", "body": {"a": 1}, "headers": {"X": 1, **WORKFLOW[1]}},
    ],
)
async def test_one_workflow_item_refuses_the_whole_batch(service: Service, item: Any) -> None:
    answered = await service.call("POST", "/v2/batch", json_body=[{"destination": HOOK}, item, {"destination": HOOK}])
    assert (answered.status, "workflows are not served" in answered.error) == (501, True)
    assert await is_empty(service)


async def test_a_batch_request_with_a_workflow_header_is_refused_whole(service: Service) -> None:
    answered = await service.call("POST", "/v2/batch", WORKFLOW[0], json_body=[{"destination": HOOK}])
    assert answered.status == 501
    assert await is_empty(service)


async def test_a_run_cannot_hide_in_the_defaults_of_a_group(service: Service) -> None:
    await service.call("POST", "/v2/topics/g/endpoints", json_body={"endpoints": [{"url": HOOK}]})
    assert (await service.call("PATCH", "/v2/topics/g", json_body={"headers": WORKFLOW[1]})).status == 501
    assert "headers" not in await service.get("/v2/topics/g")


async def test_workflow_headers_that_start_no_run_do_not_keep_a_message_back(service: Service) -> None:
    lines = {"Upstash-Workflow-Sdk-Version": "1", "Upstash-Forward-Upstash-Workflow-RunId": "mine"}
    await service.post(f"/v2/publish/{HOOK}?workflow-init=1", lines)
    [sent] = await service.run()
    assert header(sent, "Upstash-Workflow-Runid") == "mine"


async def test_headers_of_one_connection_are_left_out_of_deliveries_and_callbacks(service: Service) -> None:
    names = ["Content-Length", "host", "Connection", "Transfer-Encoding", "Keep-Alive", "Upgrade", "TE", "Expect"]
    lines = {f"Upstash-{of}Forward-{name}": "9" for name in names for of in ("", "Callback-", "Failure-Callback-")} | {
        f"Upstash-{of}Forward-X": "1" for of in ("", "Callback-", "Failure-Callback-")
    }
    lines |= {"Upstash-Callback": "http://cb.example/", "Upstash-Failure-Callback": "http://cb.example/failed"}
    service.answer(500, 200)
    message_id = (await service.post(f"/v2/publish/{HOOK}", {**lines, "Upstash-Retries": "0"}, "body"))["messageId"]
    sent = await service.run()
    assert sorted(request.url for request in sent) == [HOOK, "http://cb.example/", "http://cb.example/failed"]
    for request in sent:
        assert header(request, "X") == "1"
        assert not {name.lower() for name in names} & {name.lower() for name, _ in request.headers}
    assert (await service.get(f"/v2/messages/{message_id}"))["header"] == {"X": ["1"]}
    batch = [{"destination": HOOK, "headers": {"upstash-forward-content-length": "3", "upstash-forward-x": "2"}}]
    assert "error" not in (await service.call("POST", "/v2/batch", json_body=batch)).json[0]
    assert [header(request, "Content-Length") for request in await service.run()] == [None]


@pytest.mark.parametrize(
    ("selection", "cancelled"),
    [("?count=100", 150), ("?count=100&label=red", 75), ("?count=99", 99), ("?count=101", 101), ("", 150)],
)
async def test_a_bulk_cancel_of_a_hundred_is_one_of_all_that_match(
    service: Service, selection: str, cancelled: int
) -> None:
    items = [
        {"destination": HOOK, "headers": {"Upstash-Delay": "1h", "Upstash-Label": label}} for label in ("red", "blue")
    ]
    await service.call("POST", "/v2/batch", json_body=items * 75)
    assert (await service.call("DELETE", f"/v2/messages{selection}")).json == {"cancelled": cancelled}
    assert (await service.call("DELETE", "/v2/messages")).json == {"cancelled": 150 - cancelled}


async def test_a_count_in_the_body_of_a_bulk_cancel_means_the_same(service: Service) -> None:
    await service.call("POST", "/v2/batch", json_body=[{"destination": HOOK, "headers": {"Upstash-Delay": "1h"}}] * 120)
    assert (await service.call("DELETE", "/v2/messages", json_body={"count": 20})).json == {"cancelled": 20}
    assert (await service.call("DELETE", "/v2/messages", json_body={"count": 100})).json == {"cancelled": 100}


@pytest.mark.parametrize(
    ("body", "delivered"),
    [
        ("a text", b"a text"),
        ('{"a": 1}', b'{"a": 1}'),
        ({"a": [1, {"b": None}], "é": "😀"}, '{"a":[1,{"b":null}],"é":"😀"}'.encode()),
        ([1, "two", 3.5], b'[1,"two",3.5]'),
        ([], b"[]"),
        ({}, b"{}"),
        (0, b"0"),
        (-17, b"-17"),
        (1.0, b"1"),
        ({"n": 10**20, "id": 175928847299117063}, b'{"n":100000000000000000000,"id":175928847299117063}'),
        (True, b"true"),
        (False, b"false"),
        ("", b""),
        (None, b""),
    ],
)
async def test_the_body_of_a_batch_item_is_a_text_or_any_json_value(
    service: Service, body: object, delivered: bytes
) -> None:
    [answer] = (await service.call("POST", "/v2/batch", json_body=[{"destination": HOOK, "body": body}])).json
    assert "messageId" in answer
    assert [request.body for request in await service.run()] == [delivered]


async def test_a_json_body_of_a_batch_item_counts_by_its_text(service: Service) -> None:
    items = [{"destination": HOOK, "body": {"x": "é" * size}} for size in (524_284, 524_285)]
    answered = await service.call("POST", "/v2/batch", body=json.dumps(items, ensure_ascii=False))
    assert "messageId" in answered.json[0]
    assert answered.json[1] == {"error": "message too large: 1048578 > 1048576"}


@pytest.mark.parametrize("target", ["publish/", "enqueue/q/"])
@pytest.mark.parametrize(
    "merged", ["http:/h.example/a?x=http://y", "HTTPS:/h.example", "https:/u:p@h.example:8443/a/b"]
)
async def test_a_destination_whose_slashes_a_proxy_merged_is_read_as_meant(
    service: Service, target: str, merged: str
) -> None:
    meant = merged.replace(":/", "://", 1)
    assert (await service.post(f"/v2/{target}{merged}"))["url"] == meant
    assert [request.url for request in await service.run()] == [meant]


async def test_a_schedule_and_a_batch_read_merged_slashes_as_well(service: Service) -> None:
    created = await service.post("/v2/schedules/http:/h.example/x", {"Upstash-Cron": "0 0 1 1 *"})
    assert (await service.get(f"/v2/schedules/{created['scheduleId']}"))["destination"] == "http://h.example/x"
    [answer] = (await service.call("POST", "/v2/batch", json_body=[{"destination": "http:/h.example/y"}])).json
    assert answer["url"] == "http://h.example/y"


async def test_the_bodies_of_all_callbacks_are_what_javascript_would_write(service: Service) -> None:
    service.answer(Response(status=500, headers=(("X-Name", "Größe / 1"), ("X-Name", "2")), body="né".encode()), 200)
    lines = {
        "Upstash-Retries": "0",
        "Upstash-Callback": "http://cb.example/each",
        "Upstash-Failure-Callback": "http://cb.example/failed",
        "Qtasks-End-Callback": "http://cb.example/end",
    }
    await service.post(f"/v2/publish/{HOOK}", lines, "body")
    bodies = {request.url: request.body for request in await service.run() if request.url != HOOK}
    assert set(bodies) == {"http://cb.example/each", "http://cb.example/failed", "http://cb.example/end"}
    for body in bodies.values():
        content = json.loads(body)
        assert body == json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        assert base64.b64decode(content["body"]) == "né".encode()
        assert content["header"] == {"X-Name": ["Größe / 1", "2"]}
