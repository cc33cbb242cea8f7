"""Dead letters and cancellation, one, many and by filter (docs/protocol.md 2.5, 2.9, 5.9, 5.13)."""

from __future__ import annotations

from typing import Any

import pytest

from qtasks.broker.ports import Failure
from qtasks.protocol.messages import Response
from tests.support.api import HOOK, Service, header

pytestmark = pytest.mark.anyio

NOT_FOUND = Response(status=404, headers=(("Content-Type", "text/plain"),), body=b"404 Not Found")


async def fail(service: Service, url: str = HOOK, body: str = "", **headers: str) -> dict[str, Any]:
    """Publish a message that fails for good; its dead letter."""
    service.answer(NOT_FOUND)
    message_id = await service.publish(url, body, **{"Retries": "0", **headers})
    await service.run()
    [letter] = (await service.get(f"/v2/dlq?messageId={message_id}"))["messages"]
    service.clock.advance(1)
    assert isinstance(letter, dict)
    return letter


async def ids(service: Service, query: str = "") -> list[str]:
    return [letter["messageId"] for letter in (await service.get(f"/v2/dlq{query}"))["messages"]]


async def test_a_dead_letter_tells_what_was_sent_and_answered(service: Service) -> None:
    """docs/protocol.md B12."""
    letter = await fail(service, Retry_Delay="1000")
    assert (letter["responseStatus"], letter["responseBody"]) == (404, "404 Not Found")
    assert letter["responseHeader"] == {"Content-Type": ["text/plain"]}
    assert letter["retryDelayExpression"] == "1000"
    assert await service.get(f"/v2/dlq/{letter['dlqId']}") == letter
    assert (await service.call("DELETE", f"/v2/dlq/{letter['dlqId']}")).status == 200
    assert await ids(service) == []
    for method in ("DELETE", "GET"):
        assert (await service.call(method, f"/v2/dlq/{letter['dlqId']}")).status == 404
    assert (await service.call("DELETE", "/v2/dlq/nonsense")).status == 404
    unreadable = await service.call("GET", "/v2/dlq?dlqIds=nonsense")
    assert (unreadable.status, unreadable.error) == (
        400,
        "dlqIds: expected an id such as 1725323658779-0, got 'nonsense'",
    )


async def test_no_answer_is_status_0(service: Service) -> None:
    service.answer(Failure("dns", "no such host"))
    await service.publish(Retries="0")
    await service.run()
    [letter] = (await service.get("/v2/dlq"))["messages"]
    assert (letter["responseStatus"], letter["error"]) == (0, "no such host")


@pytest.mark.parametrize("style", ["query", "comma", "body"])
async def test_many_are_deleted_by_id_and_those_that_are_gone_are_skipped(service: Service, style: str) -> None:
    """docs/protocol.md B14."""
    letters = [(await fail(service))["dlqId"] for _ in range(5)]
    dlq_ids = [*letters[:4], letters[0], "1-1", "nonsense"]
    if style == "body":
        answered = await service.call("DELETE", "/v2/dlq", json_body={"dlqIds": dlq_ids})
    else:
        query = (
            "&".join(f"dlqIds={dlq_id}" for dlq_id in dlq_ids) if style == "query" else "dlqIds=" + ",".join(dlq_ids)
        )
        answered = await service.call("DELETE", f"/v2/dlq?{query}")
    assert (answered.status, answered.json) == (200, {"deleted": 4})
    again = await service.call("DELETE", "/v2/dlq", json_body={"dlqIds": dlq_ids})
    assert again.json == {"deleted": 0}
    assert len(await ids(service)) == 1


async def test_an_empty_list_of_ids_deletes_nothing(service: Service) -> None:
    await fail(service)
    assert (await service.call("DELETE", "/v2/dlq", json_body={"dlqIds": []})).json == {"deleted": 0}
    assert (await service.call("POST", "/v2/dlq/retry", json_body={"dlqIds": []})).json == {"responses": []}
    assert len(await ids(service)) == 1


async def test_a_filter_deletes_page_by_page(service: Service) -> None:
    for number in range(5):
        await fail(service, Label="old" if number % 2 else "new")
    first = (await service.call("DELETE", "/v2/dlq?label=new&count=2")).json
    assert first["deleted"] == 2
    second = (await service.call("DELETE", f"/v2/dlq?label=new&count=2&cursor={first['cursor']}")).json
    assert second == {"deleted": 1}
    assert (await service.call("DELETE", "/v2/dlq?label=new")).json == {"deleted": 0}
    assert len(await ids(service)) == 2
    assert (await service.call("DELETE", "/v2/dlq")).json == {"deleted": 2}


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("DELETE", "/v2/dlq?labeel=x"),
        ("DELETE", "/v2/dlq?host=x"),
        ("POST", "/v2/dlq/retry?path=/x"),
        ("DELETE", "/v2/messages?labeel=x"),
        ("DELETE", "/v2/messages?responseStatus=404"),
        ("DELETE", "/v2/messages?messageIds="),
        ("DELETE", "/v2/messages?label=&count=10"),
        ("DELETE", "/v2/messages?queueName=,"),
        ("DELETE", "/v2/dlq?dlqIds="),
        ("DELETE", "/v2/dlq?url=%20"),
        ("POST", "/v2/dlq/retry?topicName="),
        ("DELETE", "/v2/messages/"),
        ("DELETE", "/v2/dlq/"),
        ("DELETE", "/v2/dlq/?qstash_token=x"),
        ("DELETE", "/v2/messages?count=501"),
        ("DELETE", "/v2/messages?fromDate=yesterday"),
        ("DELETE", "/v2/dlq?cursor=x"),
        ("POST", "/v2/dlq/retry?cursor=x"),
    ],
)
async def test_a_typo_never_means_everything(service: Service, method: str, target: str) -> None:
    """docs/protocol.md B15."""
    await fail(service)
    await service.publish(Delay="1d")
    assert (await service.call(method, target)).status == 400
    assert len(await ids(service)) == 1
    assert (await service.call("DELETE", "/v2/messages")).json == {"cancelled": 1}


async def test_an_empty_id_in_a_body_never_means_everything(service: Service) -> None:
    await service.publish(Delay="1d")
    answered = await service.call("DELETE", "/v2/messages", json_body={"messageIds": [""]})
    assert (answered.status, answered.error) == (
        400,
        "messageIds has an empty value; leave it out to select without it",
    )
    assert (await service.call("DELETE", "/v2/messages", json_body={"messageIds": []})).json == {"cancelled": 1}


async def test_unknown_names_on_lists_are_ignored(service: Service) -> None:
    """docs/compatibility.md A36."""
    await fail(service)
    assert len(await ids(service, "?source=workflow&order=earliestFirst")) == 1
    assert len((await service.get("/v2/events?api=x"))["events"]) == 4


async def test_lists_and_actions_understand_the_same_filters(service: Service) -> None:
    """docs/protocol.md B15, B26."""
    first = await fail(
        service, "http://a.example/x,y?q=1", Label="l1,l2", Flow_Control_Key="k,1", Flow_Control_Value="rate=9"
    )
    two = await fail(service, "http://b.example/z", Label="l3")
    queries = {
        "label=l2": [first],
        "label=l2,l3": [first, two],
        "label=l2&label=l3": [first, two],
        "url=http://a.example/x,y?q=1".replace("?", "%3F"): [first],
        "url=http://a.example/x,y%3Fq=1&url=http://b.example/z": [first, two],
        "flowControlKey=k,1": [first],
        "url=http://b.example/z,http://a.example/": [two],
        "responseStatus=404": [first, two],
        "responseStatus=500": [],
        "callerIp=203.0.113.7": [first, two],
        "callerIP=1.1.1.1": [],
        "queueName=q": [],
        "topicName=g": [],
        "scheduleId=s": [],
        f"messageId={first['messageId']}": [first],
        f"dlqIds={two['dlqId']}": [two],
        f"toDate={first['dlqId'].split('-')[0]}": [first],
        f"fromDate={two['dlqId'].split('-')[0]}": [two],
        "label=l1&responseStatus=500": [],
    }
    for query, expected in queries.items():
        assert await ids(service, "?" + query) == [letter["messageId"] for letter in expected], query
    for query, hosts in {
        "host=a.example": ["a"],
        "host=a.example:80": ["a"],
        "host=a.example:81": [],
        "host=%25.example": [],
        "path=/z": ["b"],
        "path=/x,y": ["a"],
        "path=/z&host=a.example": [],
        "label=none": [],
    }.items():
        page = await service.get(f"/v2/logs?state=FAILED&{query}")
        assert [entry["url"][7] for entry in page["events"]] == hosts, query
        assert "cursor" not in page
        assert page["events"] == page["logs"]


async def test_a_retry_is_a_new_message_in_place_of_the_entry(service: Service) -> None:
    letter = await fail(service, body="payload", Forward_A="1", Method="PUT", Delay="0s", Label="l", Timeout="9s")
    answered = await service.call("POST", f"/v2/dlq/retry/{letter['dlqId']}")
    assert answered.status == 201
    assert answered.json["messageId"] != letter["messageId"]
    assert await ids(service) == []
    assert (await service.call("POST", f"/v2/dlq/retry/{letter['dlqId']}")).status == 404
    service.answer(200)
    [request] = await service.run()
    assert (request.method, request.body, header(request, "A"), request.timeout_ms) == ("PUT", b"payload", "1", 9000)
    assert header(request, "Upstash-Retried") == "0"
    message = await service.get(f"/v2/messages/{answered.json['messageId']}")
    assert (message["maxRetries"], message["label"]) == (0, "l")
    assert "CREATED" in [event.state for event in service.events if event.message.id == message["messageId"]]


async def test_headers_of_a_retry_override_what_was_sent_before(service: Service) -> None:
    letter = await fail(service, Forward_A="1", Forward_B="2", Callback="http://c.example/")
    lines = {"Upstash-Retries": "5", "Upstash-Forward-A": "9", "Upstash-Delay": "1m", "Upstash-Label": "again"}
    answered = await service.call("POST", f"/v2/dlq/retry/{letter['dlqId']}", lines)
    message = await service.get(f"/v2/messages/{answered.json['messageId']}")
    assert (message["maxRetries"], message["label"], message["callback"]) == (5, "again", "http://c.example/")
    assert message["header"] == {"A": ["9"], "B": ["2"]}
    assert message["notBefore"] - message["createdAt"] == 60_000
    bad = await service.call("POST", f"/v2/dlq/retry/{letter['dlqId']}", {"Upstash-Retries": "many"})
    assert bad.status in (400, 404)


async def test_many_are_retried_by_id_by_filter_and_page_by_page(service: Service) -> None:
    """docs/protocol.md B16."""
    letters = [await fail(service, Label="odd" if number % 2 else "even") for number in range(5)]
    by_id = await service.call("POST", f"/v2/dlq/retry?dlqIds={letters[0]['dlqId']}&dlqIds=1-1")
    assert (by_id.status, len(by_id.json["responses"]), "cursor" in by_id.json) == (201, 1, False)
    first = (await service.call("POST", "/v2/dlq/retry?label=odd&count=1")).json
    assert len(first["responses"]) == 1
    second = (await service.call("POST", f"/v2/dlq/retry?label=odd&count=1&cursor={first['cursor']}")).json
    assert len(second["responses"]) == 1
    assert "cursor" not in second
    assert (await service.call("POST", "/v2/dlq/retry?label=none")).json == {"responses": []}
    assert len((await service.call("POST", "/v2/dlq/retry")).json["responses"]) == 2
    assert await ids(service) == []


async def test_large_ones_are_all_retried_by_id_with_one_call(service: Service) -> None:
    letters = [await fail(service, body="x" * 1024 * 1024) for _ in range(12)]
    answered = await service.call(
        "POST", "/v2/dlq/retry", json_body={"dlqIds": [letter["dlqId"] for letter in letters]}
    )
    assert (len(answered.json["responses"]), "cursor" in answered.json) == (12, False)
    assert await ids(service) == []


async def test_a_retried_message_of_a_queue_goes_through_its_queue_again(service: Service) -> None:
    service.answer(404)
    await service.post(f"/v2/enqueue/q/{HOOK}", {"Upstash-Retries": "0"})
    await service.run()
    [letter] = (await service.get("/v2/dlq?queueName=q"))["messages"]
    await service.post("/v2/queues/q/pause")
    await service.post(f"/v2/dlq/retry/{letter['dlqId']}")
    assert await service.run() == []
    assert (await service.get("/v2/queues/q"))["lag"] == 1


# -- cancel


async def test_a_single_cancel_says_how_many(service: Service) -> None:
    """docs/protocol.md B7."""
    message_id = await service.publish(Delay="1d")
    assert (await service.call("DELETE", f"/v2/messages/{message_id}")).json == {"cancelled": 1}
    assert (await service.call("DELETE", f"/v2/messages/{message_id}")).status == 404


async def test_many_are_cancelled_by_id_in_both_styles_then_all(service: Service) -> None:
    """docs/protocol.md B5, B6."""
    made = [await service.publish(Delay="1d") for _ in range(5)]
    assert (await service.call("DELETE", "/v2/messages", json_body={"messageIds": made[:2]})).json == {"cancelled": 2}
    query = "&".join(f"messageIds={message_id}" for message_id in made[1:4])
    assert (await service.call("DELETE", f"/v2/messages?{query}&label=ignored")).json == {"cancelled": 2}
    assert (await service.call("DELETE", "/v2/messages/", json_body={"messageIds": []})).json == {"cancelled": 1}
    assert (await service.call("DELETE", "/v2/messages")).json == {"cancelled": 0}


async def test_messages_waiting_for_a_retry_are_cancelled_too(service: Service) -> None:
    """docs/protocol.md B5."""
    service.answer(404)
    made = [await service.publish() for _ in range(2)]
    await service.run()
    assert (await service.call("DELETE", "/v2/messages", json_body={"messageIds": made})).json == {"cancelled": 2}
    assert await ids(service) == []


async def test_a_filter_cancels_exactly_what_matches(service: Service) -> None:
    """docs/protocol.md B8."""
    flow = {"Flow_Control_Value": "rate=1"}
    for number in range(3):
        await service.publish(
            f"http://h{number}.example/p{number}?x", Delay="1d", Flow_Control_Key=f"k{number}", **flow
        )
        await service.publish(f"http://h{number}.example/same", Delay="1d", Label="l")
    cancel = [
        ("flowControlKey=k0&flowControlKey=k1", 2),
        ("path=/p2,/p1", 1),
        ("host=h0.example", 1),
        ("label=l&count=1", 1),
        ("url=http://h2.example/same", 1),
        ("topicName=g", 0),
        ("fromDate=0&toDate=1", 0),
        ("", 0),
    ]
    for query, count in cancel:
        assert (await service.call("DELETE", f"/v2/messages?{query}")).json == {"cancelled": count}, query


async def test_a_body_may_filter_as_the_query_does(service: Service) -> None:
    for label in "aab":
        await service.publish(Delay="1d", Label=label)
    answered = await service.call("DELETE", "/v2/messages", json_body={"label": "a", "count": 1})
    assert answered.json == {"cancelled": 1}
    assert (await service.call("DELETE", "/v2/messages", json_body={"labeel": "a"})).status == 400
    assert (await service.call("DELETE", "/v2/messages", json_body=["a"])).status == 400
    assert (await service.call("DELETE", "/v2/messages", json_body={"label": {"a": 1}})).status == 400


async def test_cancelling_more_than_a_slice_takes_all_and_no_other_accounts(service: Service) -> None:
    items = [{"destination": HOOK, "headers": {"Upstash-Delay": "1d"}}] * 700
    for _ in range(4):
        await service.call("POST", "/v2/batch", json_body=items)
    only = await service.publish(Delay="1d", Label="last")
    assert (await service.call("DELETE", "/v2/messages?label=last")).json == {"cancelled": 1}
    assert await service.states(only) == ["CREATED", "CANCEL_REQUESTED", "CANCELED"]
    assert (await service.call("DELETE", "/v2/messages?count=499")).json == {"cancelled": 499}
    service.user = 1
    await service.publish(Delay="1d")
    assert (await service.call("DELETE", "/v2/messages")).json == {"cancelled": 1}
    service.user = 0
    assert (await service.call("DELETE", "/v2/messages")).json == {"cancelled": 2301}


@pytest.mark.parametrize("target", ["/v2/messages", "/v2/dlq"])
async def test_any_number_of_ids_is_taken_and_of_other_values_a_thousand(service: Service, target: str) -> None:
    letter = await fail(service)
    waiting = await service.publish(Delay="1d")
    ids = [*(f"1-{number}" for number in range(40_000)), letter["dlqId"], waiting]
    done = await service.call("DELETE", target, json_body={"messageIds" if target == "/v2/messages" else "dlqIds": ids})
    assert (done.status, list(done.json.values())) == (200, [1])
    for name in ("label", "url", "flowControlKey"):
        values = [f"http://{number}" for number in range(1001)]
        answered = await service.call("DELETE", target, json_body={name: values})
        assert (answered.status, answered.error) == (400, f"{name}: too many values: 1001 > 1000")
        assert (await service.call("DELETE", target, json_body={name: values[1:]})).status == 200


async def test_a_host_matches_with_and_without_its_port_and_so_do_a_thousand(service: Service) -> None:
    hosts = (
        "http://a.example/",
        "http://a.example:81/",
        "http://a.example.com/",
        "http://[fd00::1]:82/",
        "http://b_c/",
    )
    for url in hosts:
        await service.publish(url, Delay="1d")

    async def found(*expected: str) -> list[str]:
        page = await service.get("/v2/events?order=earliestFirst&host=" + ",".join(expected))
        return [entry["url"] for entry in page["events"]]

    assert await found("A.example") == [hosts[0], hosts[1]]
    assert await found("a.example:80") == [hosts[0]]
    assert await found("[fd00::1]", "b-c", "a.example.com:81") == [hosts[3]]
    assert await found(*map(str, range(999)), "b_c") == [hosts[4]]
