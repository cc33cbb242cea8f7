"""The transports over httpx, the one place that knows it.

httpx is imported when the first request is sent, not before: it takes longer to load than the rest of the package.
Proxies and certificates from the environment (`HTTPS_PROXY`, `SSL_CERT_FILE`, ...) are honoured, as every HTTP client
of a user behind a company proxy must; a service on this machine is always reached directly.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing, contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from qtasks.errors import InvalidCallError
from qtasks.qstash.conversation import failures
from qtasks.qstash.conversation.transport import AsyncStreamed, Reply, Request, Streamed

if TYPE_CHECKING:
    import asyncio

    import httpx

CONNECT_S = 5.0
"""Longest wait for a connection: a host that is there answers long before."""

IDLE_S = 3.0
"""How long an idle connection is kept. Servers close theirs after five seconds or more (uvicorn: 5); being first avoids
sending a request into a connection that the other end is just closing."""

MAX_REPLY = 128 * 1024 * 1024
"""Largest reply in bytes: the hosted service answers a batch with up to 100 MB."""

ASYNC_CONNECTIONS = 8
"""Connections of an async client to its service. httpx's pool costs milliseconds of CPU a request once dozens wait in
it, so requests queue in front of it; the service answers in milliseconds, which makes eight plenty."""


class HttpxTransport:
    """Requests over httpx with a pool of kept connections. Thread-safe, and safe to inherit over a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clients: dict[bool, httpx.Client] = {}
        self._owner = 0
        self._closed = False

    def send(self, request: Request, timeout_s: float) -> Reply:
        """Make one attempt of at most `timeout_s` seconds. Raises BrokerUnreachable when no reply came."""
        client = self._opened(request)  # the first one imports httpx, which must not count as time of the attempt
        deadline_s = time.monotonic() + timeout_s
        with _translated(request, timeout_s):
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
        """As `send`, but return once the headers are there; `timeout_s` bounds every wait for the next piece."""
        client = self._opened(request)
        with _translated(request, timeout_s):
            response = client.send(_prepared(client, request, timeout_s), stream=True)

        def chunks() -> Iterator[bytes]:
            with _translated(request, timeout_s):
                yield from response.iter_bytes()

        return Streamed(response.status_code, tuple(response.headers.multi_items()), chunks(), response.close)

    def close(self) -> None:
        """Close the connections; calling it again does nothing."""
        with self._lock:
            clients, self._clients, self._closed = self._clients, {}, True
        for client in clients.values():
            client.close()

    def _opened(self, request: Request) -> httpx.Client:
        import httpx

        secure = _is_secure(request)
        with self._lock:
            if self._closed:
                raise RuntimeError("the client is closed")
            if self._owner != os.getpid():
                # After a fork both processes hold the same sockets, and replies would reach the wrong one.
                self._owner, self._clients = os.getpid(), {}
            if secure not in self._clients:
                self._clients[secure] = httpx.Client(
                    verify=secure,
                    limits=httpx.Limits(keepalive_expiry=IDLE_S),
                    mounts=dict.fromkeys(_ALWAYS_DIRECT),
                )
            return self._clients[secure]


class AsyncHttpxTransport:
    """As `HttpxTransport`, without blocking; connections belong to the event loop that made them."""

    def __init__(self) -> None:
        self._lanes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Lane] = WeakKeyDictionary()
        self._closed = False

    async def send(self, request: Request, timeout_s: float) -> Reply:
        """Make one attempt of at most `timeout_s` seconds. Raises BrokerUnreachable when no reply came.

        The time does not include the wait for a free connection.
        """
        import asyncio

        lane = self._opened()
        client = lane.client(request)
        async with lane.turns:
            with _translated(request, timeout_s):
                async with asyncio.timeout(timeout_s):
                    response = await client.send(_prepared(client, request, timeout_s), stream=True)
                    async with aclosing(response):
                        body = bytearray()
                        async for chunk in response.aiter_bytes():
                            body += chunk
                            _check_size(request, len(body))
            return Reply(response.status_code, tuple(response.headers.multi_items()), bytes(body))

    async def stream(self, request: Request, timeout_s: float) -> AsyncStreamed:
        """As `HttpxTransport.stream`. A stream may last for minutes, so it takes no place in the queue."""
        client = self._opened().client(request)
        with _translated(request, timeout_s):
            response = await client.send(_prepared(client, request, timeout_s), stream=True)

        async def chunks() -> AsyncIterator[bytes]:
            with _translated(request, timeout_s):
                async for chunk in response.aiter_bytes():
                    yield chunk

        return AsyncStreamed(response.status_code, tuple(response.headers.multi_items()), chunks(), response.aclose)

    async def close(self) -> None:
        """Close the connections of this event loop; calling it again does nothing."""
        self._closed = True
        import asyncio

        lane = self._lanes.pop(asyncio.get_running_loop(), None)
        if lane is not None:
            await lane.close()

    def _opened(self) -> _Lane:
        import asyncio

        if self._closed:
            raise RuntimeError("the client is closed")
        loop = asyncio.get_running_loop()
        if loop not in self._lanes:
            self._lanes[loop] = _Lane()
        return self._lanes[loop]


class _Lane:
    """The connections of one event loop, and the queue in front of them."""

    def __init__(self) -> None:
        import asyncio

        self.turns = asyncio.Semaphore(ASYNC_CONNECTIONS)
        self._clients: dict[bool, httpx.AsyncClient] = {}

    def client(self, request: Request) -> httpx.AsyncClient:
        import httpx

        secure = _is_secure(request)
        if secure not in self._clients:
            self._clients[secure] = httpx.AsyncClient(
                verify=secure,
                limits=httpx.Limits(keepalive_expiry=IDLE_S, max_connections=None),
                mounts=dict.fromkeys(_ALWAYS_DIRECT),
            )
        return self._clients[secure]

    async def close(self) -> None:
        while self._clients:
            await self._clients.popitem()[1].aclose()


_ALWAYS_DIRECT = ("all://127.0.0.1", "all://localhost", "all://[::1]")


def _is_secure(request: Request) -> bool:
    """Whether certificates matter. Reading them costs 40 ms, which a broker on plain http need not wait for."""
    return not request.url.lower().startswith("http:")


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
def _translated(request: Request, timeout_s: float) -> Iterator[None]:
    """Turn what httpx raises into the errors of the port."""
    import httpx

    try:
        yield
    except (httpx.InvalidURL, httpx.LocalProtocolError, UnicodeEncodeError) as error:
        raise InvalidCallError(f"this request cannot be sent: {error}") from error
    except (httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        why = f"no connection within {min(CONNECT_S, timeout_s):g} s"
        raise failures.unreachable(request.url, why, sent=False) from error
    except (httpx.TimeoutException, TimeoutError) as error:
        why = f"no answer within {timeout_s:g} s; the request may have been accepted"
        raise failures.unreachable(request.url, why, sent=True) from error
    except (httpx.ConnectError, httpx.ProxyError, httpx.UnsupportedProtocol) as error:
        raise failures.unreachable(request.url, _why(error), sent=False) from error
    except httpx.HTTPError as error:
        why = f"{_why(error)}; the request may have been accepted"
        raise failures.unreachable(request.url, why, sent=True) from error


def _why(error: BaseException) -> str:
    """The innermost reason of the operating system, where there is one: httpx says no more than "connect failed"."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            # asyncio puts a text of its own beside the number; name resolution has negative numbers and good texts.
            text = os.strerror(cause.errno) if cause.errno and cause.errno > 0 else cause.strerror
            return text[:1].lower() + text[1:]
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__
