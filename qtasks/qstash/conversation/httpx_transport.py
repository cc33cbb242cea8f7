"""The transports over httpx. No other module imports it.

httpx is imported when the first request is sent, because it takes longer to load than the rest of the package. Proxies
and certificates from the environment (`HTTPS_PROXY`, `SSL_CERT_FILE`, ...) are used, because a user behind a company
proxy needs them; see `proxies`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from qtasks.errors import BrokerUnreachable, InvalidCallError
from qtasks.forks import keep_inherited, per_process
from qtasks.qstash.conversation import failures
from qtasks.qstash.conversation.transport import (
    CONNECT_S,
    IDLE_S,
    MAX_REPLY,
    AsyncStreamed,
    Reply,
    Request,
    Streamed,
)

if TYPE_CHECKING:
    import asyncio

    import httpx

    from qtasks.qstash.conversation.proxies import Proxy

C = TypeVar("C")

ASYNC_CONNECTIONS = 8
"""Connections of an async client to its service. If dozens of requests wait in the pool of httpx, each one costs
milliseconds of CPU time, so they wait in a queue in front of the pool. The service answers in milliseconds, so eight
are enough."""


class HttpxTransport:
    """Sends requests over httpx on a pool of kept connections. Thread-safe; a forked process opens its own pool."""

    def __init__(self) -> None:
        self._closed = False
        self._clients: dict[str, _OpenClient[httpx.Client]] = {}
        per_process(self._begin)

    def _begin(self) -> None:
        keep_inherited(*self._clients.values())
        self._lock = threading.Lock()
        self._clients = {}

    def send(self, request: Request, timeout_s: float) -> Reply:
        """Make one attempt of at most `timeout_s` seconds. Raises BrokerUnreachable if there is no reply."""
        opened = self._opened(request)  # the first call imports httpx; that must not use up the attempt's time
        client = opened.client
        deadline_s = time.monotonic() + timeout_s
        with _translated(request, timeout_s, opened.proxy):
            response = client.send(_prepared(client, request, timeout_s), stream=True)
            with closing(response):
                body = bytearray()
                for chunk in response.iter_bytes():
                    body += chunk
                    _check_size(request, len(body))
                    if time.monotonic() > deadline_s:
                        raise TimeoutError
            return Reply(response.status_code, tuple(response.headers.multi_items()), bytes(body))

    def stream(self, request: Request, timeout_s: float) -> Streamed:
        """As `send`, but return after the headers. `timeout_s` limits each wait for the next piece of the body."""
        opened = self._opened(request)
        with _translated(request, timeout_s, opened.proxy):
            response = opened.client.send(_prepared(opened.client, request, timeout_s), stream=True)

        def chunks() -> Iterator[bytes]:
            with _translated(request, timeout_s, opened.proxy):
                yield from response.iter_bytes()

        return Streamed(response.status_code, tuple(response.headers.multi_items()), chunks(), response.close)

    def close(self) -> None:
        """Close the connections. Idempotent."""
        with self._lock:
            clients, self._clients, self._closed = self._clients, {}, True
        for opened in clients.values():
            opened.client.close()

    def _opened(self, request: Request) -> _OpenClient[httpx.Client]:
        import httpx

        origin = _origin(request)
        with self._lock:
            if self._closed:
                raise RuntimeError("the client is closed")
            if (opened := self._clients.get(origin)) is None:
                route = _Route.to(request)
                client = httpx.Client(limits=httpx.Limits(keepalive_expiry=IDLE_S), **route.settings())
                opened = self._clients[origin] = _OpenClient(client, route.proxy)
            return opened


class AsyncHttpxTransport:
    """As `HttpxTransport`, without blocking. Each event loop has connections of its own."""

    def __init__(self) -> None:
        self._closed = False
        self._by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopConnections] = WeakKeyDictionary()
        per_process(self._begin)

    def _begin(self) -> None:
        # Closing a connection would also end its registration with the event loop, which the parent shares.
        keep_inherited(*self._by_loop.items())
        self._by_loop = WeakKeyDictionary()

    async def send(self, request: Request, timeout_s: float) -> Reply:
        """Make one attempt of at most `timeout_s` seconds. Raises BrokerUnreachable if there is no reply.

        The time does not include the wait for a free connection.
        """
        import asyncio

        connections = self._opened()
        opened = connections.opened(request)
        client = opened.client
        async with connections.turns:
            with _translated(request, timeout_s, opened.proxy):
                async with asyncio.timeout(timeout_s):
                    response = await client.send(_prepared(client, request, timeout_s), stream=True)
                    async with aclosing(response):
                        body = bytearray()
                        async for chunk in response.aiter_bytes():
                            body += chunk
                            _check_size(request, len(body))
            return Reply(response.status_code, tuple(response.headers.multi_items()), bytes(body))

    async def stream(self, request: Request, timeout_s: float) -> AsyncStreamed:
        """As `HttpxTransport.stream`. A stream may last for minutes, so it does not go through the queue."""
        opened = self._opened().opened(request)
        with _translated(request, timeout_s, opened.proxy):
            response = await opened.client.send(_prepared(opened.client, request, timeout_s), stream=True)

        async def chunks() -> AsyncIterator[bytes]:
            with _translated(request, timeout_s, opened.proxy):
                async for chunk in response.aiter_bytes():
                    yield chunk

        return AsyncStreamed(response.status_code, tuple(response.headers.multi_items()), chunks(), response.aclose)

    async def close(self) -> None:
        """Close the connections of this event loop. Idempotent."""
        self._closed = True
        import asyncio

        connections = self._by_loop.pop(asyncio.get_running_loop(), None)
        if connections is not None:
            await connections.close()

    def _opened(self) -> _LoopConnections:
        import asyncio

        if self._closed:
            raise RuntimeError("the client is closed")
        loop = asyncio.get_running_loop()
        if loop not in self._by_loop:
            self._by_loop[loop] = _LoopConnections()
        return self._by_loop[loop]


class _LoopConnections:
    """The connections of one event loop, with the queue in front of them."""

    def __init__(self) -> None:
        import asyncio

        self.turns = asyncio.Semaphore(ASYNC_CONNECTIONS)
        self._clients: dict[str, _OpenClient[httpx.AsyncClient]] = {}

    def opened(self, request: Request) -> _OpenClient[httpx.AsyncClient]:
        import httpx

        origin = _origin(request)
        if (opened := self._clients.get(origin)) is None:
            route = _Route.to(request)
            limits = httpx.Limits(keepalive_expiry=IDLE_S, max_connections=None)
            client = httpx.AsyncClient(limits=limits, **route.settings())
            opened = self._clients[origin] = _OpenClient(client, route.proxy)
        return opened

    async def close(self) -> None:
        while self._clients:
            await self._clients.popitem()[1].client.aclose()


@dataclass(frozen=True, slots=True)
class _OpenClient(Generic[C]):
    """A client for one origin, and the proxy that it uses."""

    client: C
    proxy: Proxy | None


@dataclass(frozen=True, slots=True)
class _Route:
    """How an origin is reached."""

    is_secure: bool
    proxy: Proxy | None

    @classmethod
    def to(cls, request: Request) -> _Route:
        """The route of a request, as the environment is now. Raises ConfigurationError for an unusable proxy."""
        from qtasks.qstash.conversation.proxies import proxy_for

        return cls(not request.url.lower().startswith("http:"), proxy_for(request.url))

    def settings(self) -> dict[str, Any]:
        """The settings of a client of httpx. It reads nothing from the environment itself."""
        import httpx

        return {
            # Loading certificates takes 40 ms, so it is skipped for plain http.
            "verify": httpx.create_ssl_context() if self.is_secure else False,
            "proxy": None if self.proxy is None else self.proxy.url,
            "trust_env": False,
        }


def _origin(request: Request) -> str:
    """Scheme, host and port of a request."""
    return "/".join(request.url.split("/", 3)[:3])


def _prepared(client: httpx.Client | httpx.AsyncClient, request: Request, timeout_s: float) -> httpx.Request:
    import httpx

    return client.build_request(
        request.method,
        request.url,
        headers=[(name.encode("ascii"), value.encode()) for name, value in request.headers],
        content=request.body,
        timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s)),
    )


def _check_size(request: Request, size: int) -> None:
    if size > MAX_REPLY:
        raise failures.unreachable(request.url, f"its reply is larger than {MAX_REPLY} bytes", sent=True)


@contextmanager
def _translated(request: Request, timeout_s: float, proxy: Proxy | None) -> Iterator[None]:
    """Replace the errors of httpx by those of the transport port, which contain their texts."""
    import httpx

    def unreachable(why: str, *, sent: bool, fix: str | None = None) -> BrokerUnreachable:
        return failures.unreachable(request.url, why, sent=sent, fix=fix, proxy=proxy)

    try:
        yield
    except (httpx.InvalidURL, httpx.LocalProtocolError, UnicodeEncodeError) as error:
        raise InvalidCallError(f"this request cannot be sent: {error}") from None
    except (httpx.ConnectTimeout, httpx.PoolTimeout):
        raise unreachable(f"no connection within {min(CONNECT_S, timeout_s):g} s", sent=False) from None
    except (httpx.TimeoutException, TimeoutError):
        why = f"no answer within {timeout_s:g} s; the request may have been accepted"
        raise unreachable(why, sent=True) from None
    except httpx.HTTPError as error:
        from qtasks.qstash.conversation.connection_errors import explained

        explanation = explained(error)
        if explanation.is_surely_unheard or isinstance(
            error, httpx.ConnectError | httpx.ProxyError | httpx.UnsupportedProtocol
        ):
            raise unreachable(explanation.why, sent=False, fix=explanation.fix) from None
        fix = explanation.fix or failures.fix_for_cut(request.url)
        raise unreachable(f"{explanation.why}; the request may have been accepted", sent=True, fix=fix) from None
