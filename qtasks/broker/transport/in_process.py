"""Deliveries inside the process: requests to one origin call an ASGI application, all others use the network."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from qtasks.broker.ports import DeliveryRequest, Failure, Transport
from qtasks.protocol.messages import MAX_BODY, Response

AsgiEvent = MutableMapping[str, Any]
AsgiApp = Callable[
    [AsgiEvent, Callable[[], Awaitable[AsgiEvent]], Callable[[AsgiEvent], Awaitable[None]]], Awaitable[None]
]

_CLIENT: Final = ("127.0.0.1", 0)


class AsgiTransport:
    """Passes requests for one origin to an ASGI application on its own event loop, and all others to `others`.

    The application sees an ordinary HTTP request. When the deadline passes, it receives ``http.disconnect``, as from a
    server whose client has disconnected; it is not cancelled.
    """

    def __init__(self, origin: str, app: AsgiApp, loop: asyncio.AbstractEventLoop, others: Transport) -> None:
        self._origin = origin
        self._app = app
        self._loop = loop
        self._others = others

    def serve(self, app: AsgiApp, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver to `app` on `loop` from now on."""
        self._app, self._loop = app, loop

    async def send(self, request: DeliveryRequest) -> Response | Failure:
        """See `Transport.send`."""
        if not request.url.startswith(self._origin + "/"):
            return await self._others.send(request)
        exchange = _AsgiExchange(request)
        run = exchange.run(self._app)
        try:
            running = asyncio.run_coroutine_threadsafe(run, self._loop)
        except RuntimeError:
            run.close()
            return Failure("connection_refused", "the application's event loop is closed", interrupted=True)
        try:
            async with asyncio.timeout(request.timeout_ms / 1000):
                return await asyncio.shield(asyncio.wrap_future(running))
        except TimeoutError:
            # If the loop has closed meanwhile, the application no longer runs and needs no event.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(exchange.disconnected.set)
            return Failure("timeout", f"no answer within {request.timeout_ms / 1000:g} s")
        except asyncio.CancelledError:
            if not running.cancelled() or _is_being_cancelled():
                raise
            reason = "the application's event loop ended during the request"
            return Failure("connection_lost", reason, interrupted=True, mid_run=True)

    async def close(self) -> None:
        """See `Transport.close`."""
        await self._others.close()


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _AsgiExchange:
    """One request to the application and its response. Used on the application's event loop only."""

    def __init__(self, request: DeliveryRequest) -> None:
        self._request = request
        self._body_read = False
        self._status: int | None = None
        self._headers: list[tuple[str, str]] = []
        self._pieces: list[bytes] = []
        self._size = 0
        self.disconnected = asyncio.Event()

    async def run(self, app: AsgiApp) -> Response | Failure:
        try:
            await app(self._scope(), self._receive, self._send)
        except asyncio.CancelledError:
            if _is_being_cancelled():
                raise
            return Failure("connection_lost", "the application cancelled itself")
        except BaseException as error:  # it must reach neither the application's event loop nor the broker's
            return Failure("connection_lost", f"the application failed: {type(error).__name__}: {error}"[:2000])
        if self._status is None:
            return Failure("bad_response", "the application ended without a response")
        body = b"".join(self._pieces)
        return Response(
            status=self._status, headers=tuple(self._headers), body=body[:MAX_BODY], truncated=len(body) > MAX_BODY
        )

    def _scope(self) -> AsgiEvent:
        request = self._request
        url = urlsplit(request.url)
        headers = [(b"host", url.netloc.encode()), (b"content-length", str(len(request.body)).encode())]
        headers += [(name.lower().encode("latin-1"), value.encode("utf-8")) for name, value in request.headers]
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": url.scheme,
            "path": unquote(url.path),
            "raw_path": url.path.encode(),
            "query_string": url.query.encode(),
            "root_path": "",
            "headers": headers,
            "client": _CLIENT,
            "server": (url.hostname, url.port or 80),
            "state": {},
        }

    async def _receive(self) -> AsgiEvent:
        if not self._body_read:
            self._body_read = True
            return {"type": "http.request", "body": self._request.body, "more_body": False}
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    async def _send(self, event: AsgiEvent) -> None:
        if event["type"] == "http.response.start":
            self._status = event["status"]
            self._headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event["headers"]]
        elif event["type"] == "http.response.body" and self._size <= MAX_BODY:
            self._pieces.append(event.get("body", b""))
            self._size += len(self._pieces[-1])
