"""The transports of the clients: plain sockets for a service that is reached directly over http, httpx for others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtasks.lazy import lazy_property
from qtasks.qstash.conversation import http1_request, proxies
from qtasks.qstash.conversation.http1_request import ServiceAddress
from qtasks.qstash.conversation.httpx_transport import AsyncHttpxTransport, HttpxTransport
from qtasks.qstash.conversation.plain_transport import PlainTransport
from qtasks.qstash.conversation.transport import AsyncStreamed, Reply, Request, Streamed

if TYPE_CHECKING:
    from qtasks.qstash.conversation.async_plain_transport import AsyncPlainTransport


class ServiceTransport:
    """Sends requests to any service. Thread-safe; a forked process has connections of its own."""

    def __init__(self) -> None:
        self._routes = Routes()
        self._plain = PlainTransport()
        self._httpx = HttpxTransport()

    def send(self, request: Request, timeout_s: float) -> Reply:
        """Make one attempt of at most `timeout_s` seconds. Raises BrokerUnreachable if there is no reply."""
        if (parts := self._routes.plain(request)) is None:
            return self._httpx.send(request, timeout_s)
        return self._plain.send(request, *parts, timeout_s)

    def stream(self, request: Request, timeout_s: float) -> Streamed:
        """As `send`, but return after the headers. `timeout_s` limits each wait for the next piece of the body."""
        return self._httpx.stream(request, timeout_s)

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._plain.close()
        self._httpx.close()


class AsyncServiceTransport:
    """As `ServiceTransport`, without blocking. Any number of event loops may use it."""

    def __init__(self) -> None:
        self._routes = Routes()
        self._httpx = AsyncHttpxTransport()

    @lazy_property
    def _plain(self) -> AsyncPlainTransport:
        from qtasks.qstash.conversation.async_plain_transport import AsyncPlainTransport  # it imports asyncio

        return AsyncPlainTransport()

    async def send(self, request: Request, timeout_s: float) -> Reply:
        """As `ServiceTransport.send`. The time does not include the wait for a free connection."""
        if (parts := self._routes.plain(request)) is None:
            return await self._httpx.send(request, timeout_s)
        return await self._plain.send(request, *parts, timeout_s)

    async def stream(self, request: Request, timeout_s: float) -> AsyncStreamed:
        """As `ServiceTransport.stream`. A stream may last for minutes, so it does not go through the queue."""
        return await self._httpx.stream(request, timeout_s)

    async def close(self) -> None:
        """Close the connections; those of httpx only if they are of this event loop. Idempotent."""
        self._plain.close()
        await self._httpx.close()


class Routes:
    """How each request is sent: over plain sockets, or over httpx. The environment is read once for each origin."""

    def __init__(self) -> None:
        self._is_direct: dict[ServiceAddress, bool] = {}

    def plain(self, request: Request) -> tuple[ServiceAddress, str] | None:
        """The service and the target of a request over plain sockets; None for one over httpx.

        Raises ConfigurationError for a proxy that cannot be used.
        """
        if (parts := http1_request.split(request)) is None:
            return None
        if (is_direct := self._is_direct.get(parts[0])) is None:
            is_direct = self._is_direct[parts[0]] = proxies.proxy_for(request.url) is None
        return parts if is_direct else None


def is_plain(base_url: str) -> bool:
    """True if requests to this URL go over plain sockets. Raises as `Routes.plain`."""
    return Routes().plain(Request("GET", f"{base_url}/", (), b"")) is not None
