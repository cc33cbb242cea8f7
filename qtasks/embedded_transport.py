"""The client's way to a broker in the same process: a request is a call on the loop of the broker, without a socket."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from qtasks.errors import BrokerUnreachable, StoreError
from qtasks.qstash.conversation.transport import AsyncStreamed, Reply, Request

if TYPE_CHECKING:
    from qtasks.broker.api.api_request import ApiResponse
    from qtasks.broker.broker import Broker

T = TypeVar("T")

API: Final = "http://broker.qtasks.internal"


class Submit(Protocol):
    """Starts work on the loop of the broker. Raises RuntimeError if that has ended."""

    def __call__(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start it."""
        ...


def forked_from(process: int) -> BrokerUnreachable:
    """The error in a process that was forked from `process`, which has the thread of the broker."""
    return BrokerUnreachable(
        f"the embedded broker runs in process {process}, from which this one was forked",
        fix="queue tasks in that process, or let both use one server: qtasks broker",
    )


def _unanswered(timeout_s: float) -> BrokerUnreachable:
    return BrokerUnreachable(f"the embedded broker did not answer within {timeout_s:g} s")


class InProcessTransport:
    """A client transport that calls the API of the embedded broker directly.

    `submit` starts work on the loop of the broker. `usable`, if given, is asked before each request for the broker to
    call.
    """

    def __init__(
        self,
        broker: Broker,
        submit: Submit,
        *,
        usable: Callable[[], Awaitable[Broker]] | None = None,
    ) -> None:
        self._broker = broker
        self._submit = submit
        self._usable = usable
        self._process = os.getpid()

    def submit(self, request: Request) -> Future[Reply]:
        """Start the request on the loop of the broker."""
        return self.start(self.handle(request))

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start `work` on the loop of the broker. Raises BrokerUnreachable if it does not run here."""
        try:
            return self._submit(work)
        except RuntimeError:
            if os.getpid() != self._process:
                raise forked_from(self._process) from None
            raise BrokerUnreachable("the embedded broker has stopped") from None

    async def handle(self, request: Request) -> Reply:
        """Return the response of the broker. Runs on the loop of the broker."""
        reply = await (await self.answer(request)).whole()
        return Reply(reply.status, reply.headers, reply.body)

    async def answer(self, request: Request) -> ApiResponse:
        """As `handle`, with a body that may be a stream, which belongs to the loop of the broker."""
        from qtasks.broker.api.api_request import ApiRequest, HttpError

        async def body(limit: int) -> bytes:
            if len(request.body) > limit:
                raise HttpError(413, f"message too large: {len(request.body)} > {limit}")
            return request.body

        path, _, query = request.url.removeprefix(API).partition("?")
        api_request = ApiRequest(request.method, path, query, request.headers, "127.0.0.1", body)
        broker = self._broker if self._usable is None else await self._usable()
        response = await broker.answer(api_request)
        if response.status == 503 and (failure := broker.store.failure) is not None:
            raise StoreError(failure)
        return response

    def send(self, request: Request, timeout_s: float) -> Reply:
        """See `SyncTransport.send`."""
        try:
            return self.submit(request).result(timeout_s)
        except TimeoutError:
            raise _unanswered(timeout_s) from None

    def close(self) -> None:
        """Does nothing: `Embedded` owns the broker."""


class AsyncInProcessTransport:
    """As `InProcessTransport`, but does not block the event loop of the caller."""

    def __init__(self, transport: InProcessTransport) -> None:
        self._transport = transport

    async def send(self, request: Request, timeout_s: float) -> Reply:
        """See `AsyncTransport.send`."""
        return await self._done(self._transport.handle(request), timeout_s)

    async def stream(self, request: Request, timeout_s: float) -> AsyncStreamed:
        """See `AsyncStreaming.stream`."""
        response = await self._done(self._transport.answer(request), timeout_s)
        pieces = _BodyInPieces(response)

        async def chunks() -> AsyncIterator[bytes]:
            while piece := await self._done(pieces.take(), timeout_s):
                yield piece

        async def close() -> None:
            await self._done(pieces.close(), timeout_s)

        return AsyncStreamed(response.status, response.headers, chunks(), close)

    async def _done(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        """What `work` returns on the loop of the broker."""
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.wrap_future(self._transport.start(work))
        except TimeoutError:
            raise _unanswered(timeout_s) from None

    async def close(self) -> None:
        """Does nothing: `Embedded` owns the broker."""


class _BodyInPieces:
    """The body of a response, piece by piece. Its methods run on the loop of the broker."""

    def __init__(self, response: ApiResponse) -> None:
        self._whole = response.body
        self._stream = response.stream
        self._taking = asyncio.Lock()
        """Held while the next piece is awaited: a stream is closed once the reader that has gone is cancelled."""

    async def take(self) -> bytes:
        """The next piece; empty at the end."""
        if self._stream is None:
            whole, self._whole = self._whole, b""
            return whole
        async with self._taking:
            return await anext(self._stream, b"")

    async def close(self) -> None:
        """End the stream. Idempotent."""
        async with self._taking:
            if isinstance(self._stream, AsyncGenerator):
                await self._stream.aclose()
