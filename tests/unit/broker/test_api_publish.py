"""Publish, enqueue and batch through the API (docs/protocol.md 2.1 to 2.4, 3, 5.5)."""

from __future__ import annotations

import hashlib
import itertools
import json
from typing import Any

import pytest

from tests.support.api import HOOK, Service, header
from tests.support.broker import START_MS

pytestmark = pytest.mark.anyio


async def group(service: Service, *urls: str, name: str = "g") -> None:
    body = {"endpoints": [{"url": url, "name": f"e{place}"} for place, url in enumerate(urls)]}
    assert (await service.call("POST", f"/v2/topics/{name}/endpoints", json_body=body)).status == 200


async def test_a_publish_to_a_url_is_answered_with_its_id_and_url(service: Service) -> None:
    answered = await service.call("POST", f"/v2/publish/{HOOK}?a=1&upstash-retries=3&b=x%2Fy", body="hi")
    assert answered.status == 201
    assert answered.json["url"] == f"{HOOK}?a=1&b=x%2Fy"
    message = await service.get(f"/v2/messages/{answered.json['messageId']}")
    assert (message["maxRetries"], message["body"], message["callerIP"]) == (3, "hi", "203.0.113.7")


async def test_a_publish_to_a_group_is_one_message_an_endpoint_in_order(service: Service) -> None:
    """docs/protocol.md B4; docs/compatibility.md A1."""
    await group(service, "http://a.example/", "http://b.example/x?y=1")
    answered = await service.call("POST", "/v2/publish/g", {"Upstash-Retries": "7"}, "hello")
    assert answered.status == 201
    assert [entry["url"] for entry in answered.json] == ["http://a.example/", "http://b.example/x?y=1"]
    sent = await service.run()
    assert [request.url for request in sent] == ["http://a.example/", "http://b.example/x?y=1"]
    assert {header(request, "Upstash-Topic-Name") for request in sent} == {"g"}
    message = await service.get(f"/v2/messages/{answered.json[1]['messageId']}")
    assert (message["topicName"], message["endpointName"], message["maxRetries"]) == ("g", "e1", 7)


async def test_a_groups_default_headers_apply_unless_the_request_says_otherwise(service: Service) -> None:
    await group(service, HOOK)
    defaults = {"headers": {"Upstash-Retries": "9", "Upstash-Header-Forward": ["true"], "Upstash-Method": "PUT"}}
    assert (await service.call("PATCH", "/v2/topics/g", json_body=defaults)).status == 200
    await service.call("POST", "/v2/publish/g?upstash-method=PATCH", {"X-Own": "1", "Upstash-Retries": "2"})
    [request] = await service.run()
    assert (request.method, header(request, "X-Own"), header(request, "Authorization")) == ("PATCH", "1", None)
    assert (await service.get("/v2/topics/g"))["headers"]["Upstash-Retries"] == ["9"]


async def test_a_destination_that_is_neither_url_nor_group_is_refused_in_the_known_words(service: Service) -> None:
    for target in ("missing", "https%3A%2F%2Fe.com", "ftp://x"):
        answered = await service.call("POST", f"/v2/publish/{target}")
        assert answered.status == 400
        assert "endpoint has invalid scheme, add http:// or https://" in answered.error


async def test_a_duplicate_is_answered_with_the_first_id_and_202(service: Service) -> None:
    first = await service.call("POST", f"/v2/publish/{HOOK}", {"Upstash-Deduplication-Id": "x"})
    again = await service.call("POST", f"/v2/publish/{HOOK}/other", {"Upstash-Deduplication-Id": "x"})
    assert (first.status, again.status) == (201, 202)
    assert again.json["messageId"] == first.json["messageId"]
    assert again.json["deduplicated"] is True
    assert len(await service.run()) == 1
    service.user = 1
    assert (await service.call("POST", f"/v2/publish/{HOOK}", {"Upstash-Deduplication-Id": "x"})).status == 201


async def test_in_a_group_each_endpoint_is_deduplicated_on_its_own(service: Service) -> None:
    await group(service, "http://a.example/")
    lines = {"Upstash-Deduplication-Id": "x"}
    assert (await service.call("POST", "/v2/publish/g", lines)).status == 201
    await group(service, "http://a.example/", "http://b.example/")
    mixed = await service.call("POST", "/v2/publish/g", lines)
    assert mixed.status == 201
    assert [entry.get("deduplicated") for entry in mixed.json] == [True, None]
    assert (await service.call("POST", "/v2/publish/g", lines)).status == 202
    assert (await service.call("POST", f"/v2/publish/{HOOK}", lines)).status == 201


async def test_content_is_url_body_type_and_forwarded_headers(service: Service) -> None:
    base = {"Upstash-Content-Based-Deduplication": "True", "Content-Type": "text/plain", "Upstash-Forward-A": "1"}

    async def status(url: str = HOOK, body: str = "x", **options: str) -> int:
        lines = {**base, **{name.replace("_", "-"): value for name, value in options.items()}}
        return (await service.call("POST", f"/v2/publish/{url}", lines, body)).status

    assert await status() == 201
    assert await status(Upstash_Delay="1h", Upstash_Retries="1", Upstash_Label="l", Upstash_Method="PUT") == 202
    assert await status(body="y") == 201
    assert await status(url=f"{HOOK}2") == 201
    assert await status(Content_Type="text/html") == 201
    assert await status(Upstash_Forward_A="2") == 201
    service.clock.advance(10 * 60 * 1000)
    assert await status() == 201


async def test_enqueue_makes_the_queue_and_delivers_in_order(service: Service) -> None:
    """docs/compatibility.md A30."""
    for body in "abc":
        answered = await service.call("POST", f"/v2/enqueue/q/{HOOK}", body=body)
        assert answered.status == 201
    queue = await service.get("/v2/queues/q")
    assert (queue["parallelism"], queue["lag"], queue["paused"]) == (1, 3, False)
    assert (await service.get(f"/v2/messages/{answered.json['messageId']}"))["queueName"] == "q"
    assert [request.body for request in await service.run()] == [b"a", b"b", b"c"]


@pytest.mark.parametrize(
    "lines",
    [
        {"Upstash-Delay": "1s"},
        {"Upstash-Not-Before": "1900000000"},
        {"Upstash-Callback": "http://c.example/", "Upstash-Callback-Delay": "1s"},
        {"Upstash-Failure-Callback": "http://c.example/", "Upstash-Failure-Callback-Not-Before": "1900000000"},
    ],
)
async def test_nothing_of_a_queue_can_be_delayed(service: Service, lines: dict[str, str]) -> None:
    """docs/compatibility.md A10, A15."""
    answered = await service.call("POST", f"/v2/enqueue/q/{HOOK}", lines)
    assert answered.status == 400
    assert "queue" in answered.error
    assert await service.get("/v2/queues") == []


async def test_a_group_is_enqueued_endpoint_by_endpoint(service: Service) -> None:
    await group(service, "http://a.example/", "http://b.example/")
    answered = await service.call("POST", "/v2/enqueue/q/g", body="1")
    assert len(answered.json) == 2
    assert [request.url for request in await service.run()] == ["http://a.example/", "http://b.example/"]


async def test_a_batch_answers_each_item_at_its_place(service: Service) -> None:
    """docs/protocol.md B3; docs/compatibility.md A12."""
    await group(service, "http://a.example/", "http://b.example/")
    items = [
        {"destination": HOOK, "headers": {"upstash-forward-content-type": "text/x"}, "body": "one"},
        {"destination": "g", "headers": None, "body": None, "queue": ""},
        {"destination": "missing"},
        {"destination": HOOK, "queue": "q", "headers": {"Upstash-Delay": "5s"}},
        {"destination": HOOK, "headers": {"Upstash-Retries": "many"}},
        {"destination": HOOK, "headers": {"X": ["not a text"]}},
        {"destination": HOOK, "queue": "q", "body": "two", "headers": {"Upstash-Deduplication-Id": "d"}},
        {"destination": HOOK, "queue": "q", "headers": {"Upstash-Deduplication-Id": "d"}},
    ]
    answered = await service.call("POST", "/v2/batch", {"Upstash-Retries": "99"}, json_body=items)
    assert answered.status == 201
    answers = answered.json
    assert len(answers) == len(items)
    assert [entry["url"] for entry in answers[1]] == ["http://a.example/", "http://b.example/"]
    assert [place for place, entry in enumerate(answers) if "error" in entry] == [2, 3, 4, 5]
    assert "Upstash-Retries" in answers[4]["error"]
    assert answers[7] == {**answers[6], "deduplicated": True}
    assert (await service.get(f"/v2/messages/{answers[0]['messageId']}"))["maxRetries"] == 3
    sent = await service.run()
    assert sorted(request.body for request in sent) == [b"", b"", b"one", b"two"]
    assert header(next(entry for entry in sent if entry.body == b"one"), "Content-Type") == "text/x"


def batch_item(number: int, destination: str, queue: str | None, options: dict[str, str]) -> dict[str, Any]:
    """As our client sends it: most of its lines are those of other items, some are its own."""
    url = f"http://c.example/_end?call={number}"
    ids = {"Qtasks-Call-Id": f"call_{number}", "Qtasks-End-Callback": url, "Upstash-Failure-Callback": url}
    ids |= {"Upstash-Deduplication-Id": f"once_{number}", "Upstash-Callback": "http://c.example/done"}
    headers = {"Content-Type": "application/json", **ids, **options}
    return {"destination": destination, "queue": queue, "headers": headers, "body": f'{{"number":{number}}}'}


async def test_items_of_a_batch_are_the_messages_that_they_are_alone() -> None:
    """Whatever they have in common."""
    options: list[dict[str, str]] = [
        {},
        {"Upstash-Retries": "1"},
        {"upstash-retries": "1", "Upstash-Failure-Callback-Retries": "3"},
        {"Upstash-Retries": "1001"},
        {"Upstash-Not-Before": "99999999999"},
        {"Upstash-Delay": "1h", "Upstash-Label": "a,b"},
        {"Upstash-Failure-Callback": "http://other.example/x?y=1"},
        {"Qtasks-End-Callback": "http://169.254.169.254/_end?call=1"},
        {"Upstash-Callback": "http://10.0.0.1/?x", "Upstash-Method": "PUT"},
        {"Upstash-Header-Forward": "true", "X-Own": "1"},
        {"X-Own": "2"},
    ]
    faulty = [{"Upstash-Deduplication-Id": "a:b"}, {"Qtasks-Call-Id": "not an id"}]
    places = [HOOK, f"{HOOK}?x=1", f"{HOOK}?upstash-retries=2", "g", "api/llm", "missing", "http://169.254.169.254/"]
    kinds = [*itertools.product(places, [None, "q"], options), *itertools.product([HOOK], [None], faulty)]
    items = [batch_item(number, *kind) for number, kind in enumerate([*kinds, *kinds])]
    together, alone = [await prepared_service() for _ in range(2)]
    answers = (await together.call("POST", "/v2/batch", json_body=items)).json
    for item, answer in zip(items, answers, strict=True):
        way = "publish" if item["queue"] is None else f"enqueue/{item['queue']}"
        answered = await alone.call("POST", f"/v2/{way}/{item['destination']}", item["headers"], item["body"])
        assert await shown(together, answer) == await shown(alone, answered.json), item
    assert len({answer["error"] for answer in answers if "error" in answer}) > 6
    await together.close()
    await alone.close()


async def prepared_service() -> Service:
    service = await Service.open()
    await group(service, "http://a.example/", "http://b.example/")
    defaults = {"headers": {"Upstash-Header-Forward": "true", "Upstash-Timeout": "9s"}}
    await service.call("PATCH", "/v2/topics/g", json_body=defaults)
    return service


async def shown(service: Service, answer: Any) -> Any:
    """What the API shows of the messages that were accepted, without their ids; the answer if there are none."""
    if "error" in answer:
        return answer
    messages = []
    for entry in answer if isinstance(answer, list) else [answer]:
        message = await service.get(f"/v2/messages/{entry['messageId']}")
        messages.append({name: value for name, value in message.items() if name not in {"messageId", "createdAt"}})
    return messages


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ("{", 400, "JSON"),
        ("{}", 400, "array"),
        ('[{"body": "x"}]', 400, "item 0 of the batch has no destination"),
        ('[{"destination": 7}]', 400, "no destination"),
        (json.dumps([{"destination": HOOK}] * 1001), 413, "1001 > 1000"),
    ],
)
async def test_a_batch_that_is_none_is_refused_whole(service: Service, body: str, status: int, text: str) -> None:
    answered = await service.call("POST", "/v2/batch", body=body)
    assert answered.status == status
    assert text in answered.error


async def test_a_batch_is_bounded_before_and_after_its_fan_out(service: Service) -> None:
    assert (await service.call("POST", "/v2/batch", body=b" " * (4 * 1024 * 1024 + 1))).status == 413
    await group(service, *(f"http://h{n}.example/" for n in range(101)))
    answered = await service.call("POST", "/v2/batch", json_body=[{"destination": "g"}] * 100)
    assert answered.status == 413
    assert "10100 > 10000" in answered.error
    assert await service.get("/v2/events") == {"events": [], "logs": []}


async def test_an_oversized_item_fails_alone(service: Service) -> None:
    items = [{"destination": HOOK, "body": "x" * (1024 * 1024 + 1)}, {"destination": HOOK, "body": "y"}]
    first, second = (await service.call("POST", "/v2/batch", json_body=items)).json
    assert first["error"].startswith("message too large")
    assert "messageId" in second


async def test_an_empty_batch_is_an_empty_answer(service: Service) -> None:
    answered = await service.call("POST", "/v2/batch", json_body=[])
    assert (answered.status, answered.json) == (201, [])


async def test_what_is_redacted_is_shown_nowhere_and_delivered_everywhere(service: Service) -> None:
    service.answer(500)
    message_id = await service.publish(
        body='{"hello":"world"}',
        Redact_Fields="body,header[X-Key]",
        Forward_X_Key="secret",
        Retries="0",
        Failure_Callback="http://f.example/",
    )
    sent = await service.run()
    assert (sent[0].body, header(sent[0], "X-Key")) == (b'{"hello":"world"}', "secret")
    hidden = "REDACTED:93a23971a914e5eacbf0a8d25154cda309c3c1c72fbb9914d47c60f3cb681588"
    pages = [
        await service.get(f"/v2/messages/{message_id}"),
        *(await service.get("/v2/events"))["events"],
        *(await service.get("/v2/dlq"))["messages"],
    ]
    assert pages[0]["body"] == hidden
    assert pages[0]["header"]["X-Key"] == ["REDACTED:" + hashlib.sha256(b"secret").hexdigest()]
    everything = json.dumps(pages)
    for secret in ("hello", "secret", "eyJoZWxsbyI6IndvcmxkIn0"):
        assert secret not in everything
    [letter] = (await service.get("/v2/dlq?url=" + HOOK))["messages"]
    service.answer(200)
    await service.post(f"/v2/dlq/retry/{letter['dlqId']}")
    assert (await service.run())[0].body == b'{"hello":"world"}'


async def test_labels_are_shown_first_and_all(service: Service) -> None:
    """docs/protocol.md B27."""
    message = await service.get(f"/v2/messages/{await service.publish(Label=' a, b,,c')}")
    assert (message["label"], message["labels"]) == ("a", ["a", "b", "c"])


async def test_watchers_are_told_of_every_message_that_is_made(service: Service) -> None:
    await group(service, "http://a.example/", "http://b.example/")
    await service.call("POST", "/v2/publish/g", {"Upstash-Callback": "http://c.example/"})
    await service.run()
    created = [event.message.url for event in service.events if event.state == "CREATED"]
    assert created == ["http://a.example/", "http://b.example/", "http://c.example/", "http://c.example/"]


async def test_a_time_too_far_ahead_is_over_a_limit(service: Service) -> None:
    far = str(START_MS // 1000 + 367 * 86_400)
    assert (await service.call("POST", f"/v2/publish/{HOOK}", {"Upstash-Not-Before": far})).status == 412


async def test_a_nested_callback_is_held_against_the_policy_too(service: Service) -> None:
    blocked = {"Upstash-Callback": HOOK, "Upstash-Callback-Failure-Callback": "http://169.254.169.254/"}
    answered = await service.call("POST", f"/v2/publish/{HOOK}", blocked)
    assert answered.status == 400
    assert "169.254.169.254" in answered.error


async def test_paths_are_case_insensitive_and_a_trailing_slash_is_ignored(service: Service) -> None:
    """docs/protocol.md B28."""
    assert (await service.call("POST", f"/v2/Schedules/{HOOK}", {"Upstash-Cron": "* * * * *"})).status == 200
    assert len(await service.get("/V2/Schedules/")) == 1
    assert await service.get("/v2/queues/") == []


async def test_a_header_line_given_twice_is_one_text(service: Service) -> None:
    """What a client has joined stays joined (docs/protocol.md B29)."""
    await service.call("POST", f"/v2/publish/{HOOK}", {"Upstash-Forward-X": "value-uppercase, value-lowercase"})
    [request] = await service.run()
    assert header(request, "X") == "value-uppercase, value-lowercase"
