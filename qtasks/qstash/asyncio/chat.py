"""The asynchronous counterpart of `qtasks.qstash.chat`."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Literal, Self, Unpack, overload

from qtasks.qstash import chat
from qtasks.qstash.chat import ChunkDecoder
from qtasks.qstash.conversation.async_driver import AsyncHttpClient
from qtasks.qstash.conversation.transport import AsyncStreamed
from qtasks.qstash.operations import completions
from qtasks.qstash.operations.completions import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatKeywords,
    ChatModel,
)
from qtasks.qstash.operations.providers import LlmProvider


class AsyncChatCompletionChunkStream:
    """As `ChatCompletionChunkStream`, with ``async for`` and ``async with``."""

    def __init__(self, streamed: AsyncStreamed) -> None:
        self._streamed = streamed
        self._decoder = ChunkDecoder()
        self._ready: deque[ChatCompletionChunk] = deque()
        self._ended = False

    async def close(self) -> None:
        """As `ChatCompletionChunkStream.close`."""
        self._ended = True
        await self._streamed.close()

    def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
        return self

    async def __anext__(self) -> ChatCompletionChunk:
        while not self._ready and not self._ended:
            await self._fetch()
        if not self._ready:
            raise StopAsyncIteration
        return self._ready.popleft()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _fetch(self) -> None:
        try:
            piece = await anext(self._streamed.chunks, None)
            self._ready.extend(self._decoder.end() if piece is None else self._decoder.feed(piece))
        except BaseException:
            await self.close()
            raise
        if piece is None or self._decoder.done:
            await self.close()


class AsyncChatApi:
    """As `ChatApi`."""

    def __init__(self, http: AsyncHttpClient) -> None:
        self._http = http

    @overload
    async def create(
        self,
        *,
        messages: Sequence[ChatCompletionMessage],
        model: ChatModel,
        provider: LlmProvider | None = None,
        stream: Literal[False] | None = None,
        **options: Unpack[ChatKeywords],
    ) -> ChatCompletion: ...

    @overload
    async def create(
        self,
        *,
        messages: Sequence[ChatCompletionMessage],
        model: ChatModel,
        provider: LlmProvider | None = None,
        stream: Literal[True],
        **options: Unpack[ChatKeywords],
    ) -> AsyncChatCompletionChunkStream: ...

    @overload
    async def create(
        self,
        *,
        messages: Sequence[ChatCompletionMessage],
        model: ChatModel,
        provider: LlmProvider | None = None,
        stream: bool | None = None,
        **options: Unpack[ChatKeywords],
    ) -> ChatCompletion | AsyncChatCompletionChunkStream: ...

    async def create(
        self,
        *,
        messages: Sequence[ChatCompletionMessage],
        model: ChatModel,
        provider: LlmProvider | None = None,
        stream: bool | None = None,
        **options: Unpack[ChatKeywords],
    ) -> ChatCompletion | AsyncChatCompletionChunkStream:
        """As `ChatApi.create`."""
        operation = chat.create(messages, model, provider, stream, options)
        if stream:
            return AsyncChatCompletionChunkStream(await self._http.open(operation))
        return await self._http.run(operation)

    @overload
    async def prompt(
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
    async def prompt(
        self,
        *,
        user: str,
        system: str | None = None,
        model: ChatModel,
        provider: LlmProvider | None = None,
        stream: Literal[True],
        **options: Unpack[ChatKeywords],
    ) -> AsyncChatCompletionChunkStream: ...

    @overload
    async def prompt(
        self,
        *,
        user: str,
        system: str | None = None,
        model: ChatModel,
        provider: LlmProvider | None = None,
        stream: bool | None = None,
        **options: Unpack[ChatKeywords],
    ) -> ChatCompletion | AsyncChatCompletionChunkStream: ...

    async def prompt(
        self,
        *,
        user: str,
        system: str | None = None,
        model: ChatModel,
        provider: LlmProvider | None = None,
        stream: bool | None = None,
        **options: Unpack[ChatKeywords],
    ) -> ChatCompletion | AsyncChatCompletionChunkStream:
        """As `ChatApi.prompt`."""
        messages = completions.conversation(user, system)
        return await self.create(messages=messages, model=model, provider=provider, stream=stream, **options)
