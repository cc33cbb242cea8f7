"""No call, however odd, makes the broker fail: every route, with odd paths, filters, headers and JSON bodies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qtasks.broker.api.api_request import ApiRequest, ApiResponse
from qtasks.broker.api.routes import ROUTES
from qtasks.broker.broker import Broker
from qtasks.broker.settings import DEV_CREDENTIALS, BrokerSettings
from tests.support.broker import ScriptedTransport

HOOK = "http://127.0.0.1:1/x"


class Counter:
    """A broker that delivers nothing, called without a socket."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        settings = BrokerSettings(path=":memory:")
        self._broker = self._runner.run(Broker.open(settings, transport=ScriptedTransport()))

    def ask(self, method: str, path: str, query: str, headers: tuple[tuple[str, str], ...], body: bytes) -> ApiResponse:
        async def read_body(limit: int) -> bytes:
            return body

        async def handle() -> ApiResponse:
            lines = (("Authorization", f"Bearer {DEV_CREDENTIALS[0].token}"), *headers)
            reply = await self._broker.api.handle(ApiRequest(method, path, query, lines, "127.0.0.1", read_body))
            return await reply.whole()

        return self._runner.run(handle())

    def close(self) -> None:
        self._runner.run(self._broker.stop())
        self._runner.close()


@pytest.fixture(scope="module")
def counter() -> Iterator[Counter]:
    made = Counter()
    yield made
    made.close()


ODD = st.sampled_from(
    [
        "",
        "0",
        "-1",
        "1e400",
        "NaN",
        "'",
        '"',
        "%",
        "%00",
        "%ff",
        "\x00",
        "é",
        "\ud800",
        "٣",
        "..",
        "\\",
        "a b",
        "9" * 30,
    ]
)
NAME = st.one_of(st.sampled_from(["q", "g", "s", "k"]), ODD, st.text(max_size=20), st.just("x" * 200))
VALUE: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), NAME),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAME, inner, max_size=3)),
    max_leaves=6,
)
ENDPOINT = st.fixed_dictionaries({}, optional={"url": st.one_of(st.just(HOOK), VALUE), "name": VALUE})
ITEM = st.fixed_dictionaries(
    {"destination": st.one_of(st.sampled_from([HOOK, "g", "api/llm"]), NAME)},
    optional={
        "headers": st.one_of(
            VALUE, st.dictionaries(st.sampled_from(["Upstash-Delay", "Upstash-Retries", "X"]), NAME, max_size=2)
        ),
        "body": VALUE,
        "queue": VALUE,
    },
)
OBJECT = st.fixed_dictionaries(
    {},
    optional={
        "queueName": NAME,
        "parallelism": VALUE,
        "paused": VALUE,
        "endpoints": st.one_of(VALUE, st.lists(ENDPOINT, max_size=3)),
        "headers": VALUE,
        "messageIds": VALUE,
        "dlqIds": VALUE,
        "label": VALUE,
        "count": VALUE,
        "messages": VALUE,
        "stream": VALUE,
    },
)
BODY = st.one_of(
    st.just(b""),
    st.binary(max_size=20),
    st.builds(lambda value: json.dumps(value).encode(), st.one_of(VALUE, OBJECT, OBJECT, st.lists(ITEM, max_size=3))),
)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "Upstash-Cron",
                "Upstash-Schedule-Id",
                "Upstash-Queue-Name",
                "Upstash-Callback",
                "Upstash-Flow-Control-Key",
                "Upstash-Flow-Control-Value",
                "Upstash-Deduplication-Id",
                "Upstash-Redact-Fields",
                "Upstash-Header-Forward",
                "X-Own",
            ]
        ),
        st.one_of(NAME, st.sampled_from(["* * * * *", "rate=1", "true", HOOK, "body"])),
    ),
    max_size=4,
)
FILTERS = ["count", "cursor", "label", "url", "host", "path", "state", "fromDate", "toDate", "dlqIds", "messageIds"]
OTHERS = [
    "flowControlKey",
    "responseStatus",
    "search",
    "rate",
    "parallelism",
    "period",
    "upstash-cron",
    "upstash-delay",
]
PARAMETERS = st.sampled_from([*FILTERS, *OTHERS])
QUERY = st.lists(st.builds("{}={}".format, PARAMETERS, st.one_of(ODD, NAME)), max_size=3).map("&".join)


@st.composite
def paths(draw: st.DrawFn, parts: tuple[str, ...]) -> str:
    chosen = [
        draw(NAME) if part == "{}" else draw(st.sampled_from([HOOK, "g", ""])) if part == "*" else part
        for part in parts
    ]
    return "/" + "/".join(chosen) + draw(st.sampled_from(["", "", "", "/"]))


@settings(max_examples=1_500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), query=QUERY, headers=HEADERS, body=BODY)
def test_no_call_to_any_route_makes_the_broker_fail(
    counter: Counter, data: st.DataObject, query: str, headers: list[tuple[str, str]], body: bytes
) -> None:
    route = data.draw(st.sampled_from(ROUTES))
    path = data.draw(paths(route.path))
    reply = counter.ask(route.method, path, query, tuple(headers), body)
    assert reply.status in (200, 201, 202, 400, 403, 404, 405, 412, 413, 414, 431, 501), (route, reply)
    if reply.status >= 400:
        answer = json.loads(reply.body)
        assert isinstance(answer["error"], str | dict)  # the chat endpoint answers as its model does
    if reply.status == 501:
        assert b"not served" in reply.body
