"""The chat endpoint and ``api/llm``: an OpenAI-compatible server, or an echo that says it is one (2.13, 5.11)."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import date, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from qtasks.broker.llm import echo
from qtasks.broker.llm.language_model import LanguageModel, completions_url, with_texts
from qtasks.broker.ports import DeliveryRequest, Failure
from qtasks.protocol.messages import Response
from tests.support.api import Service, header
from tests.support.broker import ScriptedTransport, VirtualClock

pytestmark = pytest.mark.anyio

ASKED = {"model": "any", "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "How are you?"}]}
ECHOED = "This is the built-in echo model of qtasks, not a language model. You said: How are you?"


@pytest.mark.parametrize(
    "base",
    [
        "http://llm.example",
        "http://llm.example/",
        "http://llm.example/v1",
        "http://llm.example/v1/",
        "http://llm.example/chat/completions",
        "http://llm.example/v1/chat/completions",
    ],
)
def test_a_server_may_be_named_in_any_of_the_usual_ways(base: str) -> None:
    assert completions_url(base) == "http://llm.example/v1/chat/completions"


async def test_the_echo_answers_and_says_what_it_is(service: Service) -> None:
    answered = await service.call("POST", "/llm/v1/chat/completions", json_body=ASKED)
    assert answered.status == 200
    answer = answered.json
    assert (answer["object"], answer["model"]) == ("chat.completion", echo.MODEL)
    [choice] = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": ECHOED}
    assert choice["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert (await service.call("POST", "/llm/v1/chat/completions", json_body=ASKED)).json == answer


async def test_the_echo_streams_word_by_word(service: Service) -> None:
    answered = await service.call("POST", "/llm/v1/chat/completions", json_body={**ASKED, "stream": True})
    assert answered.headers["content-type"] == "text/event-stream"
    events = answered.body.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks: list[dict[str, Any]] = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == ECHOED
    assert chunks[-1]["choices"][0]["delta"] == {"content": ""}
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] == len(ECHOED.split())
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


@pytest.mark.parametrize("body", ["", "{", "[]", "{}", '{"messages": "hi"}'])
async def test_what_is_no_chat_request_is_refused(service: Service, body: str) -> None:
    assert (await service.call("POST", "/llm/v1/chat/completions", body=body)).status == 400


async def test_a_message_to_api_llm_brings_the_answer_to_its_callback(service: Service) -> None:
    lines = {"Upstash-Callback": "http://c.example/", "Content-Type": "application/json"}
    answered = await service.call("POST", "/v2/publish/api/llm", lines, json.dumps(ASKED))
    assert answered.status == 201
    [request] = await service.run()
    callback = json.loads(request.body)
    assert (request.url, callback["status"]) == ("http://c.example/", 200)
    answer = json.loads(base64.b64decode(callback["body"]))
    assert answer["choices"][0]["message"]["content"] == ECHOED


async def test_api_llm_needs_a_callback_and_other_apis_do_not_exist(service: Service) -> None:
    for target in ("api/llm", "api/email", "api/other"):
        assert (await service.call("POST", f"/v2/publish/{target}", json_body=ASKED)).status == 400


async def test_without_a_model_both_say_what_to_set(service: Service) -> None:
    bare = await Service.open(llm_echo=False)
    lines = {"Upstash-Callback": "http://c.example/"}
    for target in ("/llm/v1/chat/completions", "/v2/publish/api/llm"):
        answered = await bare.call("POST", target, lines, json_body=ASKED)
        assert answered.status == 501
        assert "QTASKS_LLM_URL" in answered.error
    await bare.close()


async def test_a_configured_server_gets_the_request_and_nothing_that_identifies_the_message() -> None:
    service = await Service.open(llm_url="http://10.1.2.3:11434", destinations="public")
    service.answer(Response(status=200, headers=(("Content-Type", "application/json"),), body=b'{"id":"x"}'))
    answered = await service.call("POST", "/llm/v1/chat/completions", json_body=ASKED)
    assert (answered.status, answered.body) == (200, b'{"id":"x"}')
    lines = {"Upstash-Callback": "https://c.example/", "Upstash-Forward-Authorization": "Bearer key"}
    await service.call("POST", "/v2/publish/api/llm", lines, json.dumps(ASKED))
    direct, published, _ = [*service.transport.sent, *await service.run()]
    assert direct.url == published.url == "http://10.1.2.3:11434/v1/chat/completions"
    assert json.loads(direct.body) == json.loads(published.body) == ASKED
    assert header(published, "Authorization") == "Bearer key"
    assert not [name for name, _ in published.headers if name.lower().startswith("upstash-")]
    await service.close()


async def test_a_providers_limits_reach_the_caller_and_delay_the_retry() -> None:
    service = await Service.open(llm_url="http://llm.example")
    limited = Response(
        status=429, headers=(("x-ratelimit-limit-requests", "5"), ("x-ratelimit-reset-requests", "6m0s")), body=b"{}"
    )
    service.answer(limited)
    answered = await service.call("POST", "/llm/v1/chat/completions", json_body=ASKED)
    assert (answered.status, answered.headers["x-ratelimit-limit-requests"]) == (429, "5")
    lines = {"Upstash-Callback": "http://c.example/"}
    published = await service.call("POST", "/v2/publish/api/llm", lines, json.dumps(ASKED))
    await service.run()
    page = await service.get(f"/v2/events?state=RETRY&messageId={published.json['messageId']}")
    assert page["events"][0]["nextDeliveryTime"] == service.clock.now_ms() + 360_000
    await service.close()


async def test_a_server_that_is_down_is_a_502() -> None:
    service = await Service.open(llm_url="http://llm.example")
    service.answer(Failure("connection_refused", "connection refused"))
    answered = await service.call("POST", "/llm/v1/chat/completions", json_body=ASKED)
    assert (answered.status, "connection refused" in answered.error) == (502, True)
    await service.close()


async def test_a_message_to_a_model_that_is_gone_is_a_dead_letter() -> None:
    transport = ScriptedTransport()
    model = LanguageModel(None, transport, VirtualClock(), has_echo=False, to_model=transport)
    outcome = await model.send(
        DeliveryRequest("http://llm.qtasks.internal/v1/chat/completions", "POST", (), b"{}", 1000)
    )
    assert isinstance(outcome, Failure)
    assert outcome.final
    assert transport.sent == []


# --- the echo in a form that is asked for


class Colour(StrEnum):
    RED = "red"


class Node(BaseModel):
    """Everything that a schema of pydantic's may have, itself included."""

    name: Annotated[str, Field(max_length=20)]
    long: Annotated[str, Field(min_length=200)]
    count: Annotated[int, Field(ge=3)]
    below: Annotated[float, Field(lt=0, le=-1)]
    on: bool
    nothing: None
    colour: Colour
    kind: Literal["node"] = "node"
    when: datetime
    day: date
    id: UUID
    either: int | str
    maybe: str | None
    pair: tuple[int, bool]
    some: Annotated[list[int], Field(min_length=2)]
    by_name: dict[str, int]
    children: list[Node] = []
    parent: Node | None = None


def formed(schema: object) -> str:
    asked = {**ASKED, "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}
    answer = json.loads(echo.answer(asked, now_s=0).body)
    return str(answer["choices"][0]["message"]["content"])


def test_the_echo_keeps_to_a_schema() -> None:
    node = Node.model_validate_json(formed(Node.model_json_schema()))
    assert node.name == ECHOED[:20]
    assert (node.count, node.colour, node.some, node.children) == (3, Colour.RED, [0, 0], [])
    assert formed(Node.model_json_schema()) == formed(Node.model_json_schema())


WORDS = [
    "type",
    "properties",
    "items",
    "prefixItems",
    "anyOf",
    "allOf",
    "enum",
    "const",
    "required",
    "format",
    "$ref",
    "$defs",
    "minLength",
    "maxLength",
    "minItems",
    "minimum",
    "maximum",
    "exclusiveMinimum",
]
schemas: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["string", "object", "array"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=5),
    max_leaves=20,
)


@given(schemas)
def test_whatever_the_schema_the_echo_answers_or_refuses(schema: object) -> None:
    with contextlib.suppress(ValueError):
        formed(schema)


def test_a_schema_that_leads_back_to_itself_many_times_over_ends() -> None:
    names = [f"p{number}" for number in range(50)]
    node = {"type": "object", "required": names, "properties": {name: {"$ref": "#/$defs/Node"} for name in names}}
    assert len(formed({"$ref": "#/$defs/Node", "$defs": {"Node": node}})) < 100_000


async def test_a_schema_that_cannot_be_read_is_refused(service: Service) -> None:
    schema = {"type": "string", "maxLength": "many"}
    asked = {**ASKED, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    answered = await service.call("POST", "/llm/v1/chat/completions", json_body=asked)
    assert (answered.status, "cannot be read" in answered.body.decode()) == (400, True)


async def passed_on(*pieces: bytes) -> list[bytes]:
    async def arriving() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    return [piece async for piece in with_texts(arriving())]


@pytest.mark.parametrize("empty", [b"{}", b"{ }", b"{\t}"])
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
async def test_an_empty_delta_of_a_model_is_passed_on_with_an_empty_text(empty: bytes, end: bytes) -> None:
    event = b'data: {"choices":[{"delta": %b,"finish_reason":"stop"}]}' % empty + end
    meant = b'data: {"choices":[{"delta": {"content":""},"finish_reason":"stop"}]}' + end
    assert b"".join(await passed_on(event)) == meant
    for cut in range(1, len(event)):
        assert b"".join(await passed_on(event[:cut], event[cut:])) == meant


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"delta":{"content":"a"}}\n\n',
        b'data: {"delta":{"tool_calls":[{"function":{"arguments":"{}"}}]}}\n\n',
        b'data: {"delta":{"content":"\\"delta\\":{}"}}\n\n',
        b"data: [DONE]\n\n",
        b": a comment without an end",
        b"x" * 200_000,
    ],
)
async def test_everything_else_of_a_stream_is_passed_on_as_it_is(event: bytes) -> None:
    assert b"".join(await passed_on(event[:7], event[7:])) == event


async def test_a_complete_event_does_not_wait_for_the_next_one_nor_a_long_line_for_its_end() -> None:
    event = b'data: {"delta":{"content":"a"}}\n\n'
    assert await passed_on(event, event[:5], event[5:]) == [event, event]
    long = b"x" * (64 * 1024 + 1)
    assert await passed_on(long, b"y") == [long, b"y"]
