"""Chat with language models: what is asked, what is answered, whole and in pieces."""

import itertools
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtasks.errors import ApiError, BrokerUnreachable, ChatRateLimitExceededError, InvalidCallError
from qtasks.qstash import AsyncQStash, QStash, Reply, Request
from qtasks.qstash.asyncio.chat import AsyncChatCompletionChunkStream
from qtasks.qstash.chat import (
    ChatChoiceMessage,
    ChatChunkChoice,
    ChatChunkChoiceMessage,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionChunkStream,
    ChatCompletionUsage,
    custom,
    openai,
    upstash,
)
from qtasks.qstash.conversation import server_sent_events
from qtasks.qstash.conversation.server_sent_events import EventDecoder
from qtasks.qstash.conversation.transport import Streamed
from tests.unit.qstash.conftest import TOKEN, ScriptedService, ScriptedTransport

COMPLETION = {
    "id": "cmpl-1",
    "object": "chat.completion",
    "created": 1_700_000_000,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Ankara"},
            "finish_reason": "stop",
            "logprobs": {
                "content": [
                    {
                        "token": "Ankara",
                        "logprob": -0.5,
                        "bytes": [65],
                        "top_logprobs": [{"token": "Istanbul", "logprob": -9.5}],
                    }
                ]
            },
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
}


def chunk(text: str | None, **more: Any) -> dict[str, Any]:
    delta = {"role": "assistant"} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **more}


CHUNKS = [
    chunk(None, usage=None),
    chunk("Hello"),
    chunk(", wörld"),
    {**chunk(""), "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}},
]


def streamed(*events: Any, end: str = "\n\n") -> Reply:
    lines = [f"data: {event if isinstance(event, str) else json.dumps(event)}{end}" for event in events]
    return Reply(200, (("Content-Type", "text/event-stream"),), "".join(lines).encode())


@pytest.fixture
def client(service: ScriptedService) -> Iterator[QStash]:
    with QStash(TOKEN, base_url=service.url, retry=False) as client:
        yield client


def test_a_question_goes_to_the_service_and_its_answer_has_types(service: ScriptedService, client: QStash) -> None:
    service.answers.append(COMPLETION)
    answer = client.chat.create(model="m", messages=[{"role": "user", "content": "What is the capital of Turkey?"}])
    received = service.last()
    assert (received.method, received.target) == ("POST", "/llm/v1/chat/completions")
    assert received.header("Authorization") == "Bearer TOKEN"
    assert received.header("Content-Type") == "application/json"
    assert json.loads(received.body) == {
        "model": "m",
        "messages": [{"role": "user", "content": "What is the capital of Turkey?"}],
    }
    assert isinstance(answer, ChatCompletion)
    assert answer.choices[0].message == ChatChoiceMessage(role="assistant", content="Ankara")
    assert answer.usage == ChatCompletionUsage(completion_tokens=1, prompt_tokens=3, total_tokens=4)
    assert answer.system_fingerprint is None
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert (logprobs.content[0].token, logprobs.content[0].bytes) == ("Ankara", [65])
    assert logprobs.content[0].top_logprobs[0].token == "Istanbul"


SETTINGS: dict[str, Any] = {
    "frequency_penalty": -1.0,
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "top_logprobs": 2,
    "max_tokens": 150,
    "n": 2,
    "presence_penalty": 0.5,
    "response_format": {"type": "json_object"},
    "seed": 42,
    "stop": ["stop-sequence"],
    "temperature": 0.0,
    "top_p": 0.5,
}


def test_every_setting_is_passed_on_and_none_is_not_said(service: ScriptedService, client: QStash) -> None:
    service.answers += [COMPLETION, COMPLETION]
    client.chat.prompt(user="?", system="Be brief.", model="m", stream=False, **SETTINGS)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}]
    assert json.loads(service.last().body) == {"messages": messages, "model": "m", "stream": False, **SETTINGS}
    client.chat.prompt(user="?", model="m", **dict.fromkeys(SETTINGS))
    assert json.loads(service.last().body) == {"messages": messages[1:], "model": "m"}


def test_a_message_needs_a_role_and_a_content(client: QStash) -> None:
    with pytest.raises(InvalidCallError, match="`role` and `content` must be provided in messages"):
        client.chat.create(model="m", messages=[{"role": "user"}])  # type: ignore[typeddict-item]


@pytest.mark.parametrize("provider", [None, upstash()])
def test_the_service_itself_is_the_default_provider(provider: Any, service: ScriptedService, client: QStash) -> None:
    service.answers.append(COMPLETION)
    client.chat.prompt(user="?", model="m", provider=provider)
    assert service.last().target == "/llm/v1/chat/completions"


def test_another_provider_is_asked_straight_with_its_own_key(service: ScriptedService) -> None:
    service.answers.append(COMPLETION)
    with QStash(TOKEN, base_url="http://nobody.invalid", retry=False) as client:
        client.chat.prompt(user="?", model="m", provider=custom(f"{service.url}/v1/chat/completions", "sk-1"))
    assert service.last().target == "/v1/chat/completions"
    assert service.last().header("Authorization") == "Bearer sk-1"


def test_openai_is_where_it_is() -> None:
    script = ScriptedTransport(COMPLETION)
    QStash(TOKEN, transport=script).chat.prompt(user="?", model="m", provider=openai("sk-1"))
    assert script.sent[0].url == "https://api.openai.com/v1/chat/completions"
    assert TOKEN not in str(script.sent[0].headers)


def test_a_streamed_answer_comes_in_pieces(service: ScriptedService, client: QStash) -> None:
    service.answers.append(streamed(*CHUNKS, "[DONE]"))
    stream = client.chat.prompt(user="?", model="m", stream=True)
    assert isinstance(stream, ChatCompletionChunkStream)
    pieces = list(stream)
    received = service.last()
    assert json.loads(received.body)["stream"] is True
    assert received.header("Accept") == "text/event-stream"
    assert all(isinstance(piece, ChatCompletionChunk) for piece in pieces)
    assert pieces[0].choices == [ChatChunkChoice(ChatChunkChoiceMessage("assistant", ""), None, 0, None)]  # type: ignore[arg-type]
    assert [piece.choices[0].delta.content for piece in pieces[1:3]] == ["Hello", ", wörld"]
    assert pieces[3].choices == []
    assert pieces[3].usage == ChatCompletionUsage(completion_tokens=1, prompt_tokens=3, total_tokens=4)
    assert [piece.usage for piece in pieces[:3]] == [None] * 3
    assert list(stream) == []


@pytest.mark.parametrize("delta", [{}, {"content": None}, {"role": "assistant"}])
def test_every_chunk_has_a_text_whatever_the_provider_leaves_out(
    service: ScriptedService, client: QStash, delta: dict[str, Any]
) -> None:
    last = {**chunk("."), "choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}]}
    service.answers.append(streamed(chunk("Hello"), last, "[DONE]"))
    pieces = client.chat.prompt(user="?", model="m", stream=True)
    assert [piece.choices[0].delta.content for piece in pieces] == ["Hello", ""]


@pytest.mark.anyio
async def test_a_streamed_answer_comes_in_pieces_to_the_async_client_too(service: ScriptedService) -> None:
    service.answers += [streamed(*CHUNKS, "[DONE]"), COMPLETION]
    async with AsyncQStash(TOKEN, base_url=service.url, retry=False) as client:
        stream = await client.chat.prompt(user="?", model="m", stream=True)
        assert isinstance(stream, AsyncChatCompletionChunkStream)
        async with stream:
            pieces = [piece async for piece in stream]
        whole = await client.chat.create(messages=[{"role": "user", "content": "?"}], model="m")
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces[:3]) == "Hello, wörld"
    assert whole.choices[0].message.content == "Ankara"


@pytest.mark.parametrize("lucky", [True, False], ids=["with DONE", "without DONE"])
@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\r"])
def test_line_ends_and_the_last_word_of_a_provider_do_not_matter(
    lucky: bool, end: str, service: ScriptedService, client: QStash
) -> None:
    service.answers.append(streamed(*CHUNKS, *(["[DONE]"] if lucky else []), end=end))
    assert len(list(client.chat.prompt(user="?", model="m", stream=True))) == 4


def test_the_pieces_come_as_they_are_sent(service: ScriptedService, client: QStash) -> None:
    """The second half is sent only after the first has been read."""
    go_on = threading.Event()

    def answer(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(streamed(CHUNKS[0]).body)
        handler.wfile.flush()
        assert go_on.wait(20)
        handler.wfile.write(streamed(CHUNKS[1], "[DONE]").body)
        handler.hang_up()

    service.answers.append(answer)
    with client.chat.prompt(user="?", model="m", stream=True) as stream:
        assert next(stream).choices[0].delta.role == "assistant"
        go_on.set()
        assert next(stream).choices[0].delta.content == "Hello"
        assert next(stream, None) is None


def test_the_last_word_ends_a_stream_whose_connection_stays_open(service: ScriptedService, client: QStash) -> None:
    gone = threading.Event()

    def answer(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(streamed(*CHUNKS, "[DONE]").body)
        handler.wfile.flush()
        handler.rfile.read(1)  # returns when the other end hangs up
        gone.set()
        handler.hang_up()

    service.answers.append(answer)
    assert len(list(client.chat.prompt(user="?", model="m", stream=True))) == 4
    assert gone.wait(20)


def test_closing_a_stream_lets_go_of_its_connection(service: ScriptedService, client: QStash) -> None:
    gone = threading.Event()

    def answer(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(streamed(*CHUNKS).body)
        handler.wfile.flush()
        handler.rfile.read(1)  # returns when the other end hangs up
        gone.set()
        handler.hang_up()

    service.answers.append(answer)
    stream = client.chat.prompt(user="?", model="m", stream=True)
    assert isinstance(stream, ChatCompletionChunkStream)
    next(stream)
    stream.close()
    stream.close()
    assert gone.wait(20)


def test_a_refusal_of_a_stream_is_the_error_it_is(service: ScriptedService, client: QStash) -> None:
    limits = tuple((f"x-ratelimit-{kind}-requests", "1") for kind in ("limit", "remaining", "reset"))
    service.answers += [Reply(401, (), b'{"error":"who?"}'), Reply(429, limits, b"")]
    with pytest.raises(ApiError, match="Request failed with status: 401"):
        client.chat.prompt(user="?", model="m", stream=True)
    with pytest.raises(ChatRateLimitExceededError):
        client.chat.prompt(user="?", model="m", stream=True)


def test_a_stream_that_breaks_off_is_not_taken_for_a_whole(service: ScriptedService, client: QStash) -> None:
    def answer(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        handler.wfile.write(streamed(CHUNKS[0]).body)
        handler.hang_up()

    service.answers.append(answer)
    stream: Any = client.chat.prompt(user="?", model="m", stream=True)
    next(stream)
    with pytest.raises(BrokerUnreachable):
        next(stream)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (streamed(CHUNKS[0], {"error": {"message": "overloaded"}}), "The model stopped with an error: overloaded"),
        (streamed({"error": "overloaded"}), "The model stopped with an error: overloaded"),
        (streamed("{not json"), "not a stream of chat completion chunks"),
        (streamed("[]"), "not a stream of chat completion chunks"),
        (streamed({"id": "c", "choices": [{}]}), "not a stream of chat completion chunks"),
        (Reply(200, (), json.dumps(COMPLETION).encode()), "it contains no event"),
    ],
)
def test_what_is_no_stream_of_chunks_is_an_error(
    reply: Reply, text: str, service: ScriptedService, client: QStash
) -> None:
    service.answers.append(reply)
    with pytest.raises(ApiError, match=text):
        list(client.chat.prompt(user="?", model="m", stream=True))


class Streaming(ScriptedTransport):
    """A transport whose responses come in pieces, and which counts those that were closed."""

    done = 0

    def stream(self, request: Request, timeout_s: float) -> Streamed:
        reply = self.send(request, timeout_s)
        return Streamed(reply.status, reply.headers, iter([reply.body[:3], reply.body[3:]]), self.end)

    def end(self) -> None:
        self.done += 1


def test_every_response_is_closed_the_refused_ones_too() -> None:
    script = Streaming(Reply(503, (("Retry-After", "0"),), b'{"error":"later"}'), streamed(*CHUNKS, "[DONE]"))
    stream: Any = QStash(TOKEN, transport=script).chat.prompt(user="?", model="m", stream=True)
    assert script.done == 1
    list(stream)
    assert script.done == 2
    refusing = Streaming(Reply(400, (), b'{"error":"in two pieces"}'))
    with pytest.raises(ApiError, match="in two pieces"):
        QStash(TOKEN, transport=refusing).chat.prompt(user="?", model="m", stream=True)
    assert refusing.done == 1


def test_a_transport_that_cannot_stream_still_answers() -> None:
    client = QStash(TOKEN, transport=ScriptedTransport(streamed(*CHUNKS, "[DONE]")))
    assert len(list(client.chat.prompt(user="?", model="m", stream=True))) == 4


@pytest.mark.anyio
async def test_an_async_transport_that_cannot_stream_still_answers() -> None:
    from tests.unit.qstash.conftest import AsyncScriptedTransport

    client = AsyncQStash(TOKEN, transport=AsyncScriptedTransport(streamed(*CHUNKS, "[DONE]")))
    stream: Any = await client.chat.prompt(user="?", model="m", stream=True)
    assert len([piece async for piece in stream]) == 4


# --- events -----------------------------------------------------------------------------------------------------------


def decoded(*pieces: bytes) -> list[bytes]:
    decoder = EventDecoder()
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return events + decoder.end()


@given(
    events=st.lists(st.lists(st.text("ab: é"), min_size=1, max_size=3), max_size=4),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    cuts=st.lists(st.integers(0, 200), max_size=12),
)
def test_it_does_not_matter_where_the_pieces_of_a_stream_end(
    events: list[list[str]], end: str, cuts: list[int]
) -> None:
    stream = "".join("".join(f"data: {line}{end}" for line in event) + end for event in events).encode()
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[start:stop] for start, stop in itertools.pairwise(bounds)]
    assert decoded(*pieces) == ["\n".join(event).encode() for event in events]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data:x\n\n", [b"x"]),
        (b"data:  x\n\n", [b" x"]),
        (b": comment\nevent: ping\nid: 1\ndata: x\nretry: 5\n\n", [b"x"]),
        (b"\n\n\nevent: nothing\n\n", []),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data: a\r\ndata: b\r\n\r\n", [b"a\nb"]),
        (b"data\n\n", [b""]),
        (b"data: unfinished", [b"unfinished"]),
        (b"data: x\n\ndata: y\r", [b"x", b"y"]),
        (b"", []),
    ],
)
def test_events_are_read_as_the_standard_has_them(stream: bytes, events: list[bytes]) -> None:
    assert decoded(stream) == events
    assert decoded(*(stream[i : i + 1] for i in range(len(stream)))) == events


def test_an_event_without_end_is_refused_before_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_sent_events, "MAX_EVENT", 100)
    with pytest.raises(ValueError, match="longer than 100 bytes"):
        decoded(*[b"data: 0123456789"] * 20)
    with pytest.raises(ValueError, match="longer than 100 bytes"):
        decoded(*[b"data: 0123456789\n"] * 20)
