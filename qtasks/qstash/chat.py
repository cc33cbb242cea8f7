"""Chat with language models, through the service or directly with a provider (2.x API of the official package)."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, Self, Unpack, overload

from qtasks.errors import ApiError, QStashError
from qtasks.qstash.conversation.operation import JSON_TYPE, Operation, answer
from qtasks.qstash.conversation.server_sent_events import EventDecoder
from qtasks.qstash.conversation.sync_driver import HttpClient
from qtasks.qstash.conversation.transport import Streamed
from qtasks.qstash.operations import completions
from qtasks.qstash.operations.completions import (
    ChatChoice,
    ChatChoiceLogprobs,
    ChatChoiceMessage,
    ChatChunkChoice,
    ChatChunkChoiceMessage,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatCompletionTokenLogprob,
    ChatCompletionUsage,
    ChatKeywords,
    ChatModel,
    ChatResponseFormat,
    ChatTopLogprob,
)
from qtasks.qstash.operations.providers import UPSTASH, LlmProvider, anthropic, custom, openai, upstash

__all__ = [
    "UPSTASH_LLM_PROVIDER",
    "ChatApi",
    "ChatChoice",
    "ChatChoiceLogprobs",
    "ChatChoiceMessage",
    "ChatChunkChoice",
    "ChatChunkChoiceMessage",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatCompletionChunkStream",
    "ChatCompletionMessage",
    "ChatCompletionTokenLogprob",
    "ChatCompletionUsage",
    "ChatModel",
    "ChatResponseFormat",
    "ChatTopLogprob",
    "ChunkDecoder",
    "LlmProvider",
    "anthropic",
    "custom",
    "openai",
    "upstash",
]

UPSTASH_LLM_PROVIDER = upstash()

TIMEOUT_S = 600.0
"""Seconds for one attempt, as in the official SDK: a model may take minutes before it answers."""


def create(
    messages: Sequence[ChatCompletionMessage],
    model: str,
    provider: LlmProvider | None,
    stream: bool | None,
    arguments: Any,
) -> Operation[ChatCompletion]:
    """Ask a model. It is repeated only if the service certainly did nothing, because every completion costs money."""
    outside = provider is not None and provider.name != UPSTASH
    streaming = (("Accept", "text/event-stream"), ("Cache-Control", "no-cache")) if stream else ()
    return Operation(
        "POST",
        "/v1/chat/completions" if outside else "/llm/v1/chat/completions",
        lambda reply: completions.parse_completion(answer(reply)),
        headers=JSON_TYPE + streaming,
        body=completions.question(messages, model, stream, arguments),
        repeatable=False,
        long=True,
        base_url=provider.base_url if provider is not None and outside else None,
        token=f"Bearer {provider.token}" if provider is not None and outside else None,
        timeout_s=TIMEOUT_S,
    )


class ChunkDecoder:
    """Converts the bytes of a streamed answer into its chunks."""

    def __init__(self) -> None:
        self._events = EventDecoder()
        self.done = False
        """True once the provider has sent the end marker, ``[DONE]``."""

    def feed(self, piece: bytes) -> list[ChatCompletionChunk]:
        """Add the next bytes and return the chunks they complete. Raises ApiError for an error of the provider."""
        return self._read(self._events.feed, piece)

    def end(self) -> list[ChatCompletionChunk]:
        """Return the last chunks at the end of the stream. Raises ApiError if it contained no events."""
        chunks = self._read(lambda _: self._events.end(), b"")
        if self._events.seen and not self._events.events:
            raise _not_a_stream("it contains no event")
        return chunks

    def _read(self, take: Any, piece: bytes) -> list[ChatCompletionChunk]:
        chunks: list[ChatCompletionChunk] = []
        try:
            for event in take(piece):
                if self.done or event == b"[DONE]":
                    self.done = True
                    break
                chunks.append(_chunk(json.loads(event)))
        except QStashError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise _not_a_stream(f"{type(error).__name__}: {error}") from error
        return chunks


def _chunk(content: Any) -> ChatCompletionChunk:
    if "choices" not in content and "error" in content:
        error = content["error"]
        detail = str(error.get("message", error) if isinstance(error, dict) else error)
        raise ApiError(f"The model stopped with an error: {detail}", status=200, detail=detail)
    return completions.parse_chunk(content)


def _not_a_stream(why: str) -> ApiError:
    return ApiError(f"The answer is not a stream of chat completion chunks ({why}).", status=200, detail=why)


class ChatCompletionChunkStream:
    """An iterator over the chunks of a streamed answer, in order of arrival.

    Read it to its end, close it, or use it as a context manager; otherwise its connection stays open.
    """

    def __init__(self, streamed: Streamed) -> None:
        self._streamed = streamed
        self._decoder = ChunkDecoder()
        self._ready: deque[ChatCompletionChunk] = deque()
        self._ended = False

    def close(self) -> None:
        """Close the connection. Calling it again does nothing."""
        self._ended = True
        self._streamed.close()

    def __iter__(self) -> Iterator[ChatCompletionChunk]:
        return self

    def __next__(self) -> ChatCompletionChunk:
        while not self._ready and not self._ended:
            self._fetch()
        if not self._ready:
            raise StopIteration
        return self._ready.popleft()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fetch(self) -> None:
        try:
            piece = next(self._streamed.chunks, None)
            self._ready.extend(self._decoder.end() if piece is None else self._decoder.feed(piece))
        except BaseException:
            self.close()
            raise
        if piece is None or self._decoder.done:
            self.close()


class ChatApi:
    """Chat with language models."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    @overload
    def create(
        self,
        *,
        messages: Sequence[ChatCompletionMessage],
        model: ChatModel,
        provider: LlmProvider | None = None,
        stream: Literal[False] | None = None,
        **options: Unpack[ChatKeywords],
    ) -> ChatCompletion: ...

    @overload
    def create(
        self,
        *,
        messages: Sequence[ChatCompletionMessage],
        model: ChatModel,
        provider: LlmProvider | None = None,
        stream: Literal[True],
        **options: Unpack[ChatKeywords],
    ) -> ChatCompletionChunkStream: ...

    @overload
    def create(
        self,
        *,
        messages: Sequence[ChatCompletionMessage],
        model: ChatModel,
        provider: LlmProvider | None = None,
        stream: bool | None = None,
        **options: Unpack[ChatKeywords],
    ) -> ChatCompletion | ChatCompletionChunkStream: ...

    def create(
        self,
        *,
        messages: Sequence[ChatCompletionMessage],
        model: ChatModel,
        provider: LlmProvider | None = None,
        stream: bool | None = None,
        **options: Unpack[ChatKeywords],
    ) -> ChatCompletion | ChatCompletionChunkStream:
        """Ask a model for the next message of a conversation.

        With `stream` the result is an iterator over the chunks of the answer, else the whole answer. Without a
        `provider` the QStash service answers. `completions.ChatKeywords` describes the `options`.
        """
        operation = create(messages, model, provider, stream, options)
        if stream:
            return ChatCompletionChunkStream(self._http.open(operation))
        return self._http.run(operation)

    @overload
    def prompt(
        self,
        *,
        user: str,
        system: str | None = None,
        model: ChatModel,
        provider: LlmProvider | None = None,
        stream: Literal[False] | None = None,
        **options: Unpack[ChatKeywords],
    ) -> ChatCompletion: ...

    @overload
    def prompt(
        self,
        *,
        user: str,
        system: str | None = None,
        model: ChatModel,
        provider: LlmProvider | None = None,
        stream: Literal[True],
        **options: Unpack[ChatKeywords],
    ) -> ChatCompletionChunkStream: ...

    @overload
    def prompt(
        self,
        *,
        user: str,
        system: str | None = None,
        model: ChatModel,
        provider: LlmProvider | None = None,
        stream: bool | None = None,
        **options: Unpack[ChatKeywords],
    ) -> ChatCompletion | ChatCompletionChunkStream: ...

    def prompt(
        self,
        *,
        user: str,
        system: str | None = None,
        model: ChatModel,
        provider: LlmProvider | None = None,
        stream: bool | None = None,
        **options: Unpack[ChatKeywords],
    ) -> ChatCompletion | ChatCompletionChunkStream:
        """As `create`, for one `user` message and an optional `system` message before it."""
        messages = completions.conversation(user, system)
        return self.create(messages=messages, model=model, provider=provider, stream=stream, **options)
