"""Large pages are streams of slices with the same JSON as small ones; bulk retries take a few messages at a time."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import apsw
import pytest

from qtasks.broker.api import dead_letters, pages
from qtasks.broker.api.api_request import ApiRequest, ApiResponse
from qtasks.broker.settings import DEV_CREDENTIALS
from qtasks.broker.store.verbs.reads import queries
from qtasks.errors import StoreError
from qtasks.protocol import strict_json
from qtasks.protocol.messages import Response
from tests.support.api import HOOK, Service

pytestmark = pytest.mark.anyio
LATER: Mapping[str, str] = {"Upstash-Delay": "1d"}


async def response(service: Service, target: str) -> ApiResponse:
    """The answer to a GET, its stream not yet read."""

    async def nothing(limit: int) -> bytes:
        return b""

    path, _, query = target.partition("?")
    token = ("Authorization", f"Bearer {DEV_CREDENTIALS[0].token}")
    return await service.broker.api.handle(ApiRequest("GET", path, query, (token,), "203.0.113.7", nothing))


async def published(service: Service, count: int, size: int) -> list[str]:
    """Publish messages for tomorrow; their ids, the newest first."""
    return [await service.publish(HOOK, f"{n:09}" * (size // 9), Delay="1d") for n in range(count)][::-1]


async def walked(service: Service, target: str, name: str) -> list[dict[str, Any]]:
    """The items of all pages."""
    items: list[dict[str, Any]] = []
    page = await service.get(target)
    while True:
        items += page[name]
        if "cursor" not in page:
            return items
        page = await service.get(f"{target}{'&' if '?' in target else '?'}cursor={page['cursor']}")


async def test_a_small_page_is_one_piece(service: Service) -> None:
    await published(service, 3, 9)
    assert (await response(service, "/v2/logs")).stream is None


async def test_a_large_page_is_a_stream_of_small_pieces_with_both_lists(service: Service) -> None:
    message_ids = await published(service, 20, pages.SLICE_BYTES // 4)
    answer = await response(service, "/v2/logs")
    assert answer.stream is not None
    pieces = [piece async for piece in answer.stream]
    assert max(map(len, pieces)) < 3 * pages.SLICE_BYTES
    page = json.loads(b"".join(pieces))
    assert [entry["messageId"] for entry in page["logs"]] == message_ids
    assert (page["events"], list(page)) == (page["logs"], ["events", "logs"])


@pytest.mark.parametrize("order", ["latestFirst", "earliestFirst"])
@pytest.mark.parametrize("count", [1, 7, 99, 100, 101, 230])
async def test_slices_of_any_number_make_the_pages_that_were_asked_for(
    service: Service, order: str, count: int
) -> None:
    message_ids = await published(service, 230, 9)
    page = await service.get(f"/v2/logs?count={count}&order={order}")
    assert (len(page["logs"]), "cursor" in page) == (count, count < 230)
    entries = await walked(service, f"/v2/logs?count={count}&order={order}", "logs")
    assert [entry["messageId"] for entry in entries] == message_ids[:: 1 if order == "latestFirst" else -1]


async def test_a_page_that_is_too_large_ends_early_and_the_next_one_continues(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGE_BYTES", 4 * pages.SLICE_BYTES)
    message_ids = await published(service, 40, pages.SLICE_BYTES // 4)
    page = await service.get("/v2/logs")
    assert 0 < len(page["logs"]) < 40
    assert page["events"] == page["logs"]
    assert [entry["messageId"] for entry in await walked(service, "/v2/logs", "logs")] == message_ids


async def test_messages_that_come_during_a_page_are_in_neither_list_of_it(service: Service) -> None:
    message_ids = await published(service, 8, pages.SLICE_BYTES // 2)
    answer = await response(service, "/v2/logs")
    assert answer.stream is not None
    pieces = [await anext(answer.stream)]
    await published(service, 1, 9)
    page = json.loads(b"".join(pieces + [piece async for piece in answer.stream]))
    assert [entry["messageId"] for entry in page["events"]] == message_ids
    assert page["events"] == page["logs"]


async def test_an_error_in_a_later_slice_never_ends_as_a_whole_page(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await published(service, 8, pages.SLICE_BYTES // 2)
    answer = await response(service, "/v2/logs")
    assert answer.stream is not None

    def fail(*_: object, **__: object) -> None:
        raise apsw.CorruptError("a page of the database is damaged")

    monkeypatch.setattr(queries, "log", fail)
    received: list[bytes] = []
    with pytest.raises(StoreError, match="damaged"):
        await collect(answer.stream, received)
    with pytest.raises(json.JSONDecodeError):
        json.loads(b"".join(received))


async def collect(stream: AsyncIterator[bytes], received: list[bytes]) -> None:
    while True:
        received.append(await anext(stream))


async def test_an_error_in_the_first_slice_is_an_ordinary_answer(service: Service) -> None:
    assert (await service.call("GET", "/v2/logs?cursor=nonsense")).status == 400
    assert (await service.call("GET", "/v2/dlq?cursor=nonsense")).status == 400


async def test_large_dead_letters_are_listed_and_retried_a_few_at_a_time(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.answer(Response(status=404))
    body = "x" * (dead_letters.RETRY_BYTES // 4)
    message_ids = [await service.publish(HOOK, body, Retries="0") for _ in range(12)]
    await service.run()
    answer = await response(service, "/v2/dlq")
    assert answer.stream is not None
    letters = json.loads((await answer.whole()).body)["messages"]
    assert [letter["messageId"] for letter in letters] == message_ids
    sizes: list[int] = []
    retry = dead_letters._retry

    async def note(context: Any, change: Any, some: Any, overrides: Any) -> Any:
        sizes.append(len(some))
        return await retry(context, change, some, overrides)

    monkeypatch.setattr(dead_letters, "_retry", note)
    answered = await service.call("POST", "/v2/dlq/retry?count=11", LATER)
    assert (len(answered.json["responses"]), "cursor" in answered.json) == (11, True)
    assert (sum(sizes), max(sizes)) == (11, 5)
    ids = ",".join(letter["dlqId"] for letter in letters)
    answered = await service.call("POST", f"/v2/dlq/retry?dlqIds={ids}", LATER)
    assert (len(answered.json["responses"]), "cursor" in answered.json) == (1, False)


@pytest.mark.parametrize("text", [b'["a,b,c,d", "e"]', b'{"a": "\\",,,,", "b": 2}'])
def test_commas_in_texts_are_no_values(text: bytes) -> None:
    assert strict_json.loads(text, max_values=2) == json.loads(text)


def test_too_many_values_are_refused_before_they_are_read() -> None:
    assert strict_json.loads(b"[1, 2, 3]", max_values=3) == [1, 2, 3]
    with pytest.raises(ValueError, match="more than 3 values"):
        strict_json.loads(b'[1, {"a": 2}, [], 4]', max_values=3)


async def test_a_body_with_too_many_values_is_refused(service: Service) -> None:
    answered = await service.call("POST", "/v2/batch", body=b"[" + b"1," * 300_000 + b"1]")
    assert (answered.status, "more than 250000 values" in answered.error) == (400, True)


# -- lists without pages


async def test_a_list_of_large_schedules_is_a_stream_in_order_of_creation(service: Service) -> None:
    created = []
    for n in range(5):
        headers = {"Upstash-Cron": "0 0 1 1 *"}
        body = f"{n:09}" * (pages.SLICE_BYTES // 15)
        created.append((await service.post(f"/v2/schedules/{HOOK}", headers, body))["scheduleId"])
        service.clock.advance(1)
    answer = await response(service, "/v2/schedules")
    assert answer.stream is not None
    assert [one["scheduleId"] for one in json.loads((await answer.whole()).body)] == created


async def test_a_list_of_large_groups_is_a_stream_by_name(service: Service) -> None:
    for name in ("b", "a", "c"):
        endpoints = [{"url": f"{HOOK}/{'x' * 200}/{n}"} for n in range(1000)]
        answered = await service.call("POST", f"/v2/topics/{name}/endpoints", json_body={"endpoints": endpoints})
        assert answered.status == 200
    answer = await response(service, "/v2/topics")
    assert answer.stream is not None
    groups = json.loads((await answer.whole()).body)
    assert [(group["name"], len(group["endpoints"])) for group in groups] == [("a", 1000), ("b", 1000), ("c", 1000)]


@pytest.mark.parametrize("count", [0, 1, 100, 101, 250])
async def test_a_list_of_many_queues_is_complete(service: Service, count: int) -> None:
    for n in range(count):
        assert (await service.call("POST", "/v2/queues", json_body={"queueName": f"q{n:03}"})).status == 200
    assert [queue["name"] for queue in await service.get("/v2/queues")] == [f"q{n:03}" for n in range(count)]


async def test_what_goes_away_during_a_list_is_left_out(service: Service) -> None:
    for n in range(4):
        headers = {"Upstash-Cron": "0 0 1 1 *", "Upstash-Schedule-Id": f"s{n}"}
        await service.post(f"/v2/schedules/{HOOK}", headers, "x" * pages.SLICE_BYTES)
        service.clock.advance(1)
    answer = await response(service, "/v2/schedules")
    assert answer.stream is not None
    assert (await service.call("DELETE", "/v2/schedules/s2")).status == 200
    assert [one["scheduleId"] for one in json.loads((await answer.whole()).body)] == ["s0", "s1", "s3"]
