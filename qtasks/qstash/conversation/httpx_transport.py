"""The transports over httpx. No other module imports it.

httpx is imported when the first request is sent, because it takes longer to load than the rest of the package. Proxies
and certificates from the environment (`HTTPS_PROXY`, `SSL_CERT_FILE`, ...) are used, because a user behind a company
proxy needs them. A service on this machine is always reached directly.
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
from qtasks.forks import keep_inherited, per_process
from qtasks.qstash.conversation import failures
from qtasks.qstash.conversation.transport import AsyncStreamed, Reply, Request, Streamed

if TYPE_CHECKING:
    import asyncio

    import httpx

CONNECT_S = 5.0
"""Seconds to wait for a connection at most. A host that is reachable answers much sooner."""

IDLE_S = 3.0
"""Seconds that an idle connection is kept. Servers close it after five seconds or more (uvicorn: 5). We close first, to
avoid sending a request on a connection that the server is closing."""

MAX_REPLY = 128 * 1024 * 1024
"""Bytes of a reply at most. The hosted service answers a batch with up to 100 MB."""

ASYNC_CONNECTIONS = 8
"""Connections of an async client to its service. If dozens of requests wait in the pool of httpx, each one costs
milliseconds of CPU time, so they wait in a queue in front of the pool. The service answers in milliseconds, so eight
are enough."""


class HttpxTransport:
    """Sends requests over httpx on a pool of kept connections. Thread-safe; a forked process opens its own pool."""

    def __init__(self) -> None:
        self._closed = False
        self._clients: dict[bool, httpx.Client] = {}
        per_process(self._begin)

    def _begin(self) -> None:
        keep_inherited(*self._clients.values())
        self._lock = threading.Lock()
        self._clients = {}

    def send(self, request: Request, timeout_s: float) -> Reply:
        """Make one attempt of at most `timeout_s` seconds. Raises BrokerUnreachable if there is no reply."""
        client = self._opened(request)  # the first call imports httpx; that must not use up the attempt's time
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
        """As `send`, but return after the headers. `timeout_s` limits each wait for the next piece of the body."""
        client = self._opened(request)
        with _translated(request, timeout_s):
            response = client.send(_prepared(client, request, timeout_s), stream=True)

        def chunks() -> Iterator[bytes]:
            with _translated(request, timeout_s):
                yield from response.iter_bytes()

        return Streamed(response.status_code, tuple(response.headers.multi_items()), chunks(), response.close)

    def close(self) -> None:
        """Close the connections. Idempotent."""
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
            if secure not in self._clients:
                self._clients[secure] = httpx.Client(
                    verify=secure,
                    limits=httpx.Limits(keepalive_expiry=IDLE_S),
                    mounts=dict.fromkeys(_ALWAYS_DIRECT),
                )
            return self._clients[secure]


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
        client = connections.client(request)
        async with connections.turns:
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
        """As `HttpxTransport.stream`. A stream may last for minutes, so it does not go through the queue."""
        client = self._opened().client(request)
        with _translated(request, timeout_s):
            response = await client.send(_prepared(client, request, timeout_s), stream=True)

        async def chunks() -> AsyncIterator[bytes]:
            with _translated(request, timeout_s):
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
    """True for https. Loading certificates takes 40 ms, so it is skipped for plain http."""
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
    """Replace the errors of httpx by those of the transport port."""
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
    """The operating system's reason for an error, if there is one: httpx itself says only "connect failed"."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            # asyncio adds its own text to the error number. Name resolution has negative numbers and useful texts.
            text = os.strerror(cause.errno) if cause.errno and cause.errno > 0 else cause.strerror
            return text[:1].lower() + text[1:]
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__
