"""The `openai` package, unchanged, as a client of the chat endpoint: of the echo, and of a server behind the broker."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from qtasks.broker.core.values import AccountCredentials
from qtasks.broker.settings import BrokerSettings
from tests.support.running import Answer, Endpoint, Received, RunningBroker

MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there"}]
ECHO = "This is the built-in echo model of qtasks, not a language model. You said: Hello there"
COMPLETION = {
    "id": "chatcmpl-7",
    "object": "chat.completion",
    "created": 1_700_000_000,
    "model": "llama-local",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
}


class Chat:
    """The official client, sync or async; a stream comes back as the list of its chunks."""

    def __init__(self, kind: str, broker: str, token: str | None) -> None:
        made: Any = openai.OpenAI if kind == "sync" else openai.AsyncOpenAI
        self._loop = asyncio.new_event_loop()
        self._client = made(base_url=f"{broker}/llm/v1", api_key=token, max_retries=0)

    def __call__(self, **request: Any) -> Any:
        answer = self._wait(self._client.chat.completions.create(messages=MESSAGES, **request))
        if not request.get("stream"):
            return answer
        return self._wait(_collected(answer)) if hasattr(answer, "__aiter__") else list(answer)

    def _wait(self, result: Any) -> Any:
        return self._loop.run_until_complete(result) if inspect.isawaitable(result) else result

    def close(self) -> None:
        self._wait(self._client.close())
        self._loop.close()


async def _collected(stream: Any) -> list[Any]:
    return [chunk async for chunk in stream]


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def connect(kind: str) -> Iterator[Callable[[str, str | None], Chat]]:
    made: list[Chat] = []

    def connect(broker: str, token: str | None) -> Chat:
        made.append(Chat(kind, broker, token))
        return made[-1]

    yield connect
    for chat in made:
        chat.close()


@pytest.fixture
def echo(broker: RunningBroker, user: AccountCredentials, connect: Callable[[str, str | None], Chat]) -> Chat:
    return connect(broker.url, user.token)


@pytest.fixture
def forwarded(endpoint: Endpoint, tmp_path: Path, connect: Callable[[str, str | None], Chat]) -> Iterator[Chat]:
    """A client of a broker with a language model's server behind it, `endpoint`, where no message could be sent."""
    url = endpoint.url.replace("127.0.0.1", "localhost")  # cookies are for names
    settings = BrokerSettings(path=str(tmp_path / "broker.db"), llm_url=f"{url}/v1", destinations="public")
    running = RunningBroker(settings)
    yield connect(running.url, settings.credentials[0].token)
    running.stop()


def answering(status: int, body: object, headers: dict[str, str] | None = None) -> Callable[[Received], Answer]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda received: (status, {"Content-Type": "application/json", **(headers or {})}, content)


def test_the_echo_answers_like_a_model_and_says_what_it_is(echo: Chat) -> None:
    answer: ChatCompletion = echo(model="any", temperature=0.5)
    assert answer.object == "chat.completion"
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ECHO, "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    assert answer.model == "qtasks-echo"
    assert echo(model="any").id == answer.id, "the same question has the same answer"


def test_the_echo_streams_word_by_word(echo: Chat) -> None:
    chunks: list[ChatCompletionChunk] = echo(model="any", stream=True)
    assert len(chunks) > 5
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == ECHO  # type: ignore[misc]
    assert chunks[-1].choices[0].delta.content == ""
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1].usage is not None


def test_a_request_goes_to_the_server_behind_the_broker_and_its_answer_comes_back(
    forwarded: Chat, endpoint: Endpoint
) -> None:
    endpoint.answer = answering(200, COMPLETION)
    answer: ChatCompletion = forwarded(model="llama-local", max_tokens=5, stop=["\n"])
    assert answer.choices[0].message.content == "Hi."
    assert answer.id == "chatcmpl-7"
    [asked] = endpoint.wait_for(1)
    assert (asked.method, asked.path) == ("POST", "/v1/chat/completions")
    assert json.loads(asked.body) == {
        "messages": MESSAGES,
        "model": "llama-local",
        "max_tokens": 5,
        "stop": ["\n"],
    }
    told = {name.lower() for name in asked.headers}
    assert "authorization" not in told, "the broker's token must not reach the server"
    assert not [name for name in told if name.startswith("upstash-")]


def test_a_stream_whose_last_chunk_has_no_content_gets_an_empty_text_there(forwarded: Chat, endpoint: Endpoint) -> None:
    choices = [
        [{"index": 0, "delta": {"role": "assistant", "content": "Hi"}, "finish_reason": None}],
        [{"index": 0, "delta": {}, "finish_reason": "stop"}],
    ]
    chunks = [{**COMPLETION, "object": "chat.completion.chunk", "choices": chosen} for chosen in choices]
    events = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"
    endpoint.answer = answering(200, events, {"Content-Type": "text/event-stream; charset=utf-8"})
    received: list[ChatCompletionChunk] = forwarded(model="llama-local", stream=True)
    assert [chunk.choices[0].delta.content for chunk in received] == ["Hi", ""]


def test_a_stream_is_passed_on_event_by_event(forwarded: Chat, endpoint: Endpoint) -> None:
    words = ["Hi", " there", "é"]
    chunks = [
        {**COMPLETION, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": word}}]}
        for word in words
    ]
    events = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"
    endpoint.answer = answering(200, events, {"Content-Type": "text/event-stream"})
    received: list[ChatCompletionChunk] = forwarded(model="llama-local", stream=True)
    assert [chunk.choices[0].delta.content for chunk in received] == words
    [asked] = endpoint.wait_for(1)
    assert json.loads(asked.body)["stream"] is True


@pytest.mark.parametrize("stream", [False, True])
def test_a_cookie_of_the_server_is_nobody_elses(forwarded: Chat, endpoint: Endpoint, stream: bool) -> None:
    endpoint.answer = answering(200, COMPLETION, {"Set-Cookie": "account=1"})
    for _ in range(2):
        forwarded(model="llama-local", stream=stream)
    assert all("Cookie" not in asked.headers for asked in endpoint.wait_for(2))


@pytest.mark.parametrize("stream", [False, True])
def test_the_servers_refusal_reaches_the_caller_with_its_limits(
    forwarded: Chat, endpoint: Endpoint, stream: bool
) -> None:
    limits = {"x-ratelimit-limit-requests": "10", "x-ratelimit-reset-requests": "6s", "Retry-After": "6"}
    endpoint.answer = answering(429, {"error": {"message": "slow down", "type": "requests"}}, limits)
    with pytest.raises(openai.RateLimitError, match="slow down") as refused:
        forwarded(model="llama-local", stream=stream)
    for name, value in limits.items():
        assert refused.value.response.headers[name] == value


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_is_not_there_is_a_bad_gateway(
    tmp_path: Path, endpoint: Endpoint, connect: Callable[[str, str | None], Chat], stream: bool
) -> None:
    endpoint.close()
    settings = BrokerSettings(path=str(tmp_path / "broker.db"), llm_url=endpoint.url)
    running = RunningBroker(settings)
    try:
        with pytest.raises(openai.InternalServerError, match="the language model could not be reached") as refused:
            connect(running.url, settings.credentials[0].token)(model="m", stream=stream)
    finally:
        running.stop()
    assert refused.value.status_code == 502


def test_without_a_model_and_without_the_echo_the_answer_names_the_setting(
    tmp_path: Path, connect: Callable[[str, str | None], Chat]
) -> None:
    settings = BrokerSettings(path=str(tmp_path / "broker.db"), llm_echo=False)
    running = RunningBroker(settings)
    try:
        with pytest.raises(openai.InternalServerError, match="QTASKS_LLM_URL") as refused:
            connect(running.url, settings.credentials[0].token)(model="m")
    finally:
        running.stop()
    assert refused.value.status_code == 501


def test_a_wrong_token_and_a_request_without_messages_are_refused(
    broker: RunningBroker, echo: Chat, connect: Callable[[str, str | None], Chat]
) -> None:
    with pytest.raises(openai.AuthenticationError):
        connect(broker.url, "wrong")(model="m")
    with pytest.raises(openai.BadRequestError, match="messages"):
        echo(model="m", extra_body={"messages": None})
