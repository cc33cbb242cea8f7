"""The transport port of the client: a request, a reply, and the object that sends the one and returns the other.

The client does no HTTP itself. It gives a `Request` to a transport and gets a `Reply`, so the same client works over
httpx, inside the process of an embedded broker, and with a scripted transport in a test.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from qtasks.protocol.messages import Headers

CONNECT_S = 5.0
"""Seconds to wait for a connection at most. A host that is reachable answers much sooner."""

IDLE_S = 3.0
"""Seconds that an idle connection is kept. Servers close it after five seconds or more (uvicorn: 5). We close first, to
avoid sending a request on a connection that the server is closing."""

MAX_REPLY = 128 * 1024 * 1024
"""Bytes of a reply at most. The hosted service answers a batch with up to 100 MB."""


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. `url` is absolute and percent-encoded: ASCII, no spaces, no fragment."""

    method: str
    url: str
    headers: Headers = field(repr=False)
    """Contains the token, so the repr leaves it out."""
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP response with its whole body. Header names may be upper- or lower-case."""

    status: int
    headers: Headers
    body: bytes

    def header(self, name: str) -> str | None:
        """The first value of a header, or None. The case of `name` does not matter."""
        lowered = name.lower()
        return next((value for key, value in self.headers if key.lower() == lowered), None)


@dataclass(frozen=True, slots=True)
class Streamed:
    """A response whose body arrives in pieces. The caller must always close it, even after reading it to its end.

    `chunks` raises BrokerUnreachable if the connection breaks.
    """

    status: int
    headers: Headers
    chunks: Iterator[bytes]
    close: Callable[[], None]

    def collect(self) -> Reply:
        """Read the rest of the body, close the response, and return it as a `Reply`."""
        try:
            return Reply(self.status, self.headers, b"".join(self.chunks))
        finally:
            self.close()


@dataclass(frozen=True, slots=True)
class AsyncStreamed:
    """As `Streamed`, without blocking."""

    status: int
    headers: Headers
    chunks: AsyncIterator[bytes]
    close: Callable[[], Awaitable[None]]

    async def collect(self) -> Reply:
        """As `Streamed.collect`."""
        try:
            return Reply(self.status, self.headers, b"".join([chunk async for chunk in self.chunks]))
        finally:
            await self.close()


class SyncTransport(Protocol):
    """Sends one request to the service and returns the reply."""

    def send(self, request: Request, timeout_s: float) -> Reply:
        """Make one attempt of at most `timeout_s` seconds. Raises BrokerUnreachable if there is no reply."""
        ...

    def close(self) -> None:
        """Close every connection. Calling it again does nothing."""
        ...


class AsyncTransport(Protocol):
    """As `SyncTransport`, without blocking."""

    async def send(self, request: Request, timeout_s: float) -> Reply:
        """Make one attempt of at most `timeout_s` seconds. Raises BrokerUnreachable if there is no reply."""
        ...

    async def close(self) -> None:
        """Close every connection. Calling it again does nothing."""
        ...


@runtime_checkable
class SyncStreaming(Protocol):
    """A transport that can also return a response before its body is complete. Only `chat` needs it."""

    def stream(self, request: Request, timeout_s: float) -> Streamed:
        """As `send`, but return after the headers. `timeout_s` limits each wait for the next piece of the body."""
        ...


@runtime_checkable
class AsyncStreaming(Protocol):
    """As `SyncStreaming`, without blocking."""

    async def stream(self, request: Request, timeout_s: float) -> AsyncStreamed:
        """As `send`, but return after the headers. `timeout_s` limits each wait for the next piece of the body."""
        ...
