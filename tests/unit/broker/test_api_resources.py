"""Queues, URL groups, flow-control keys, signing keys, scopes, accounts (docs/protocol.md 2.6 to 2.14)."""

from __future__ import annotations

import time

import pytest

from qtasks.broker.api.auth import TokenScope
from qtasks.broker.api.routes import ROUTES
from qtasks.broker.settings import DEV_CREDENTIALS
from qtasks.protocol import signing
from qtasks.protocol.messages import SigningKeys
from tests.support.api import HOOK, READ_ONLY, Service, header

pytestmark = pytest.mark.anyio


# -- queues


async def test_a_queue_is_made_changed_listed_and_deleted(service: Service) -> None:
    """docs/protocol.md B17."""
    assert await service.get("/v2/queues") == []
    for parallelism in (1, 2):
        body = {"queueName": "q", "parallelism": parallelism, "paused": False}
        assert (await service.call("POST", "/v2/queues", json_body=body)).status == 200
        assert (await service.get("/v2/queues/q"))["parallelism"] == parallelism
    [queue] = await service.get("/v2/queues")
    assert set(queue) == {"name", "createdAt", "updatedAt", "parallelism", "paused", "lag"}
    for _ in range(2):
        assert (await service.call("DELETE", "/v2/queues/q")).status == 200
    assert (await service.call("GET", "/v2/queues/q")).status == 404


async def test_an_upsert_keeps_what_it_does_not_name(service: Service) -> None:
    await service.call("POST", "/v2/queues", json_body={"queueName": "q", "parallelism": 3, "paused": True})
    await service.call("POST", "/v2/queues", json_body={"queueName": "q"})
    queue = await service.get("/v2/queues/q")
    assert (queue["parallelism"], queue["paused"]) == (3, True)


async def test_a_paused_queue_takes_and_does_not_deliver(service: Service) -> None:
    await service.call("POST", "/v2/queues", json_body={"queueName": "q"})
    await service.post("/v2/queues/q/pause")
    await service.post(f"/v2/enqueue/q/{HOOK}", {}, "1")
    assert await service.run() == []
    assert (await service.get("/v2/queues/q"))["paused"] is True
    await service.post("/v2/queues/q/resume")
    assert len(await service.run()) == 1
    assert (await service.call("POST", "/v2/queues/unknown/pause")).status == 404
    assert (await service.call("POST", "/v2/queues/unknown/resume")).status == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"queueName": "a b"}, 400),
        ({"queueName": ""}, 400),
        ({"queueName": 7}, 400),
        ({}, 400),
        ([], 400),
        ({"queueName": "q", "parallelism": 0}, 400),
        ({"queueName": "q", "parallelism": "2"}, 400),
        ({"queueName": "q", "parallelism": True}, 400),
        ({"queueName": "q", "parallelism": 1001}, 412),
        ({"queueName": "q", "paused": "no"}, 400),
    ],
)
async def test_a_bad_queue_is_refused(service: Service, body: object, status: int) -> None:
    assert (await service.call("POST", "/v2/queues", json_body=body)).status == status
    assert await service.get("/v2/queues") == []


async def test_a_deleted_queue_cancels_what_waits(service: Service) -> None:
    """docs/compatibility.md A20."""
    waiting = [(await service.post(f"/v2/enqueue/q/{HOOK}"))["messageId"] for _ in range(3)]
    await service.call("DELETE", "/v2/queues/q")
    assert await service.run() == []
    for message_id in waiting:
        assert await service.states(message_id) == ["CREATED", "CANCEL_REQUESTED", "CANCELED"]


# -- URL groups


async def test_a_group_is_made_changed_and_deleted(service: Service) -> None:
    """docs/protocol.md B18."""
    assert (await service.call("DELETE", "/v2/topics/g")).status == 200
    first, second = {"url": "http://a.example", "name": "First endpoint"}, {"url": "http://b.example"}
    assert (
        await service.call("POST", "/v2/topics/g/endpoints", json_body={"endpoints": [first, second]})
    ).status == 200
    group = await service.get("/v2/topics/g")
    assert group["endpoints"] == [first, second]
    assert (group["name"], await service.get("/v2/topics")) == ("g", [group])
    moved = {"url": "http://c.example", "name": "First endpoint"}
    await service.call("POST", "/v2/topics/g/endpoints", json_body={"endpoints": [moved, second]})
    assert (await service.get("/v2/topics/g"))["endpoints"] == [moved, second]
    removed = {"endpoints": [{"name": "First endpoint"}]}
    assert (await service.call("DELETE", "/v2/topics/g/endpoints", json_body=removed)).status == 200
    assert (await service.get("/v2/topics/g"))["endpoints"] == [second]
    await service.call("DELETE", "/v2/topics/g/endpoints", json_body={"endpoints": [{"url": "http://b.example"}]})
    assert (await service.call("GET", "/v2/topics/g")).status == 404
    assert (await service.call("DELETE", "/v2/topics/g/endpoints", json_body=removed)).status == 404


async def test_an_endpoint_is_known_by_its_name_or_where_there_is_none_by_its_url(service: Service) -> None:
    async def upsert(*endpoints: dict[str, str]) -> list[dict[str, str]]:
        assert (await service.call("POST", "/v2/topics/g/endpoints", json_body={"endpoints": endpoints})).status == 200
        listed: list[dict[str, str]] = (await service.get("/v2/topics/g"))["endpoints"]
        return listed

    a, b = {"url": "http://a.example"}, {"url": "http://b.example"}
    assert await upsert(a, b, a) == [a, b]
    assert await upsert({**b, "name": "two"}) == [a, {**b, "name": "two"}]
    assert await upsert({**b, "name": "three"}) == [a, {**b, "name": "two"}, {**b, "name": "three"}]
    assert await upsert({**a, "name": "two"}) == [a, {**a, "name": "two"}, {**b, "name": "three"}]
    assert await upsert(b) == [a, {**a, "name": "two"}, b]


async def test_a_group_of_ten_thousand_is_changed_without_keeping_the_store_busy(service: Service) -> None:
    many = [{"url": f"http://a.example/{number}", "name": f"e{number}"} for number in range(10_000)]
    before = time.process_time()
    for body in (many, [{**endpoint, "url": "http://b.example"} for endpoint in many]):
        assert (await service.call("POST", "/v2/topics/g/endpoints", json_body={"endpoints": body})).status == 200
    rest = {"endpoints": [{"name": endpoint["name"]} for endpoint in many[1:]]}
    assert (await service.call("DELETE", "/v2/topics/g/endpoints", json_body=rest)).status == 200
    assert (await service.get("/v2/topics/g"))["endpoints"] == [{"url": "http://b.example", "name": "e0"}]
    assert time.process_time() - before < 6  # endpoint, and fifteen where it grows with the square


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("a%20b", {"endpoints": [{"url": "http://a.example"}]}),
        ("g", {"endpoints": []}),
        ("g", {"endpoints": [{}]}),
        ("g", {"endpoints": [{"name": "only"}]}),
        ("g", {"endpoints": [{"url": "ftp://a.example"}]}),
        ("g", {"endpoints": [{"url": "http://169.254.169.254/"}]}),
        ("g", {"endpoints": ["http://a.example"]}),
        ("g", {"endpoints": [{"url": "http://a.example", "name": "x" * 257}]}),
        ("g", []),
    ],
)
async def test_a_bad_endpoint_is_refused(service: Service, name: str, body: object) -> None:
    assert (await service.call("POST", f"/v2/topics/{name}/endpoints", json_body=body)).status == 400
    assert await service.get("/v2/topics") == []


@pytest.mark.parametrize(
    "body",
    [{}, {"headers": {"Upstash-Retries": "many"}}, {"headers": {"Upstash-Cron": "* * * * *"}}, {"headers": {"A": 1}}],
)
async def test_bad_default_headers_are_refused(service: Service, body: object) -> None:
    await service.call("POST", "/v2/topics/g/endpoints", json_body={"endpoints": [{"url": HOOK}]})
    assert (await service.call("PATCH", "/v2/topics/g", json_body=body)).status == 400
    assert (await service.call("PATCH", "/v2/topics/unknown", json_body={"headers": {}})).status == 404


# -- flow control


async def test_a_key_is_readable_right_after_a_publish_and_can_be_pinned(service: Service) -> None:
    """docs/protocol.md B23."""
    await service.publish(Flow_Control_Key="k", Flow_Control_Value="parallelism=1, rate=2, period=1m", Delay="1h")
    key = await service.get("/v2/flowControl/k")
    assert key == {
        "flowControlKey": "k",
        "waitListSize": 0,
        "parallelismMax": 1,
        "parallelismCount": 0,
        "rateMax": 2,
        "rateCount": 0,
        "ratePeriod": 60,
        "ratePeriodStart": 0,
        "isPaused": False,
        "isPinnedParallelism": False,
        "isPinnedRate": False,
    }
    await service.post("/v2/flowControl/k/pin?parallelism=3&rate=20&period=120")
    pinned = await service.get("/v2/flowControl/k")
    assert (pinned["parallelismMax"], pinned["rateMax"], pinned["ratePeriod"]) == (3, 20, 120)
    assert pinned["isPinnedParallelism"] is pinned["isPinnedRate"] is True
    await service.post("/v2/flowControl/k/unpin?parallelism=true")
    half = await service.get("/v2/flowControl/k")
    assert (half["isPinnedParallelism"], half["isPinnedRate"], half["parallelismMax"]) == (False, True, 3)
    await service.post("/v2/flowControl/k/unpin?parallelism=true&rate=true")
    assert (await service.get("/v2/flowControl/k"))["isPinnedRate"] is False


async def test_a_paused_key_holds_and_a_reset_forgets_the_rate(service: Service) -> None:
    flow = {"Flow_Control_Key": "k/1", "Flow_Control_Value": "rate=1, period=1h"}
    await service.post("/v2/flowControl/k%2F1/pause")
    for _ in range(2):
        await service.publish(**flow)
    assert await service.run() == []
    key = await service.get("/v2/flowControl/k%2F1")
    assert (key["isPaused"], key["waitListSize"]) == (True, 2)
    await service.post("/v2/flowControl/k%2F1/resume")
    assert len(await service.run()) == 1
    assert (await service.get("/v2/flowControl/k%2F1"))["rateCount"] == 1
    await service.post("/v2/flowControl/k%2F1/resetRate")
    assert (await service.get("/v2/flowControl/k%2F1"))["rateCount"] == 0
    assert len(await service.run()) == 1
    await service.post("/v2/flowControl/k%2F1/reset")


@pytest.mark.parametrize("query", ["parallelism=0", "rate=x", "period=1m", "period=604801", "parallelism=-1"])
async def test_a_bad_pin_is_refused(service: Service, query: str) -> None:
    assert (await service.call("POST", f"/v2/flowControl/k/pin?{query}")).status == 400
    assert (await service.call("GET", "/v2/flowControl/k")).status == 404


async def test_keys_are_listed_and_searched(service: Service) -> None:
    for key in ("one", "two", "t%"):
        await service.publish(Flow_Control_Key=key, Flow_Control_Value="parallelism=5", Delay="1h")
    assert [key["flowControlKey"] for key in await service.get("/v2/flowControl")] == ["one", "t%", "two"]
    assert [key["flowControlKey"] for key in await service.get("/v2/flowControl?search=t%25")] == ["t%"]


async def test_the_global_parallelism_is_two_numbers(service: Service) -> None:
    """docs/protocol.md B24."""
    assert await service.get("/v2/globalParallelism") == {"parallelismMax": 512, "parallelismCount": 0}


async def test_flow_control_is_shown_as_official_clients_read_it(service: Service) -> None:
    """docs/protocol.md B22."""
    message = await service.get(
        f"/v2/messages/{await service.publish(Flow_Control_Key='k', Flow_Control_Value='parallelism=2', Delay='1h')}"
    )
    assert (message["parallelism"], message["period"], "rate" in message) == (2, 1, False)


# -- signing keys


async def test_keys_rotate_while_messages_are_on_their_way(service: Service) -> None:
    """docs/protocol.md B25, B30."""
    before = await service.get("/v2/keys")
    keys = DEV_CREDENTIALS[0].keys
    assert keys is not None
    assert before == {"current": keys.current, "next": keys.next}
    await service.publish()
    after = await service.post("/v2/keys/rotate")
    assert after["current"] == before["next"]
    assert after["next"] not in before.values()
    assert await service.get("/v2/keys") == after
    [request] = await service.run()
    token = header(request, "Upstash-Signature")
    assert token is not None
    signing.verify(
        token,
        body=request.body,
        url=HOOK,
        now_s=service.clock.now_ms() // 1000,
        keys=SigningKeys(before["current"], before["next"]),
    )


# -- who may do what


def sample(path: tuple[str, ...]) -> str:
    parts = ["http://h.example" if part == "*" else "x" if part == "{}" else part for part in path]
    return "/" + "/".join(parts)


async def test_a_read_only_token_changes_nothing(service: Service) -> None:
    for route in ROUTES:
        answered = await service.call(route.method, sample(route.path), token=READ_ONLY)
        if route.scope is TokenScope.READ:
            assert answered.status in (200, 404, 501), route
        else:
            assert (answered.status, answered.error) == (403, "this token may read only"), route


async def test_without_a_token_nothing_is_told(service: Service) -> None:
    for route in ROUTES:
        answered = await service.call(route.method, sample(route.path), token="wrong")
        assert answered.status == 401
        assert answered.error == "unauthorized: missing or invalid token"


def test_only_reads_may_be_read_only_and_all_but_the_keys_are() -> None:
    assert {route.method for route in ROUTES if route.scope is TokenScope.READ} == {"GET"}
    kept = [route.path for route in ROUTES if route.method == "GET" and route.scope is not TokenScope.READ]
    assert kept == [("v2", "keys")]


async def test_accounts_see_nothing_of_each_other(service: Service) -> None:
    service.answer(404)
    dead = await service.publish(Retries="0", Flow_Control_Key="k", Flow_Control_Value="rate=5")
    await service.run()
    [letter] = (await service.get("/v2/dlq"))["messages"]
    await service.post(f"/v2/enqueue/q/{HOOK}")
    await service.call("POST", "/v2/topics/g/endpoints", json_body={"endpoints": [{"url": HOOK}]})
    schedule = (await service.post(f"/v2/schedules/{HOOK}", {"Upstash-Cron": "* * * * *"}))["scheduleId"]
    service.user = 1
    for path in (
        f"/v2/messages/{dead}",
        f"/v2/dlq/{letter['dlqId']}",
        "/v2/queues/q",
        "/v2/topics/g",
        f"/v2/schedules/{schedule}",
        "/v2/flowControl/k",
    ):
        assert (await service.call("GET", path)).status == 404, path
    for path in ("/v2/queues", "/v2/topics", "/v2/schedules", "/v2/flowControl"):
        assert await service.get(path) == []
    assert (await service.get("/v2/events"))["events"] == []
    assert (await service.get("/v2/dlq"))["messages"] == []
    for method, path in (
        ("DELETE", f"/v2/dlq/{letter['dlqId']}"),
        ("POST", f"/v2/dlq/retry/{letter['dlqId']}"),
        ("DELETE", f"/v2/schedules/{schedule}"),
        ("PATCH", f"/v2/schedules/{schedule}/pause"),
        ("POST", "/v2/queues/q/pause"),
        ("POST", "/v2/publish/g"),
    ):
        assert (await service.call(method, path)).status in (400, 404), path
    assert (await service.call("DELETE", "/v2/dlq")).json == {"deleted": 0}


async def test_workflow_endpoints_say_that_they_are_not_served(service: Service) -> None:
    for method, path in (
        ("POST", "/v2/trigger/http://h.example/x"),
        ("POST", "/v2/batch/trigger"),
        ("GET", "/v2/workflows/logs"),
        ("GET", "/v2/workflows/events?groupBy=workflowRunId"),
        ("DELETE", "/v2/workflows/runs/wfr_1?cancel=true"),
        ("POST", "/v2/workflows/dlq/resume"),
        ("POST", "/v2/wait/event"),
        ("POST", "/v2/notify/run/event"),
        ("GET", "/v2/waiters/event"),
    ):
        answered = await service.call(method, path)
        assert answered.status == 501, path
        assert "workflows are not served" in answered.error
