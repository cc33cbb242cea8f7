"""The seam between the client and the network: a request, a reply, and the transport between them.

The client does no HTTP itself. It gives a `Request` to a transport and gets a `Reply`, so the same client works over
httpx, inside the process of an embedded broker, and with a scripted transport in a test.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from qtasks.protocol.messages import Headers


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. `url` is absolute and ready for the wire: ASCII, no blanks, no fragment."""

    method: str
    url: str
    headers: Headers = field(repr=False)
    """Carries the token, so it stays out of the repr."""
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP response, read to its end. Header names may be in any case."""

    status: int
    headers: Headers
    body: bytes

    def header(self, name: str) -> str | None:
        """The first header of that name, in any case; None if there is no such header."""
        lowered = name.lower()
        return next((value for key, value in self.headers if key.lower() == lowered), None)


@dataclass(frozen=True, slots=True)
class Streamed:
    """A response whose body comes piece by piece. Close it, whether it is read to its end or not.

    `chunks` raises BrokerUnreachable when the connection breaks.
    """

    status: int
    headers: Headers
    chunks: Iterator[bytes]
    close: Callable[[], None]

    def collect(self) -> Reply:
        """Read it to its end, and close it."""
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
    """A transport that can also return a response before its end. Only `chat` needs it."""

    def stream(self, request: Request, timeout_s: float) -> Streamed:
        """As `send`, but return once the headers are there. `timeout_s` bounds every wait for the next piece."""
        ...


@runtime_checkable
class AsyncStreaming(Protocol):
    """As `SyncStreaming`, without blocking."""

    async def stream(self, request: Request, timeout_s: float) -> AsyncStreamed:
        """As `send`, but return once the headers are there. `timeout_s` bounds every wait for the next piece."""
        ...
