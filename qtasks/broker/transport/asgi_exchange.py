"""One request to an ASGI application in this process: its events, and its response whole or as it arrives."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from qtasks.broker.ports import DeliveryRequest, Failure, ResponseStream, StreamBroken
from qtasks.protocol.messages import MAX_BODY, Headers, Response

AsgiEvent = MutableMapping[str, Any]
AsgiApp = Callable[
    [AsgiEvent, Callable[[], Awaitable[AsgiEvent]], Callable[[AsgiEvent], Awaitable[None]]], Awaitable[None]
]

MAX_UNREAD: Final = 256 * 1024
"""Bytes of a response that the application may send ahead of its reader."""
LOOP_ENDED: Final = Failure(
    "connection_lost", "the application's event loop ended during the request", interrupted=True, mid_run=True
)
_WITHOUT_RESPONSE: Final = Failure("bad_response", "the application ended without a response")
_CLIENT: Final = ("127.0.0.1", 0)


def is_being_cancelled() -> bool:
    """True if the current task was cancelled itself, and not only what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _AsgiExchange:
    """One request to the application. Used on the application's event loop only."""

    def __init__(self, request: DeliveryRequest) -> None:
        self._request = request
        self._body_read = False
        self.disconnected = asyncio.Event()

    async def _call(self, app: AsgiApp) -> Failure | None:
        """Run the application to its end; the failure if it raises."""
        try:
            await app(self._scope(), self._receive, self._send)
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
            return Failure("connection_lost", "the application cancelled itself")
        except BaseException as error:  # it must reach neither the application's event loop nor the broker's
            return Failure("connection_lost", f"the application failed: {type(error).__name__}: {error}"[:2000])
        return None

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
        raise NotImplementedError


class CollectedExchange(_AsgiExchange):
    """A request whose response is kept until it is complete, up to the limit of a body."""

    def __init__(self, request: DeliveryRequest) -> None:
        super().__init__(request)
        self._status: int | None = None
        self._headers: Headers = ()
        self._pieces: list[bytes] = []
        self._size = 0
        self._failure: Failure | None = None

    async def run(self, app: AsgiApp) -> None:
        """Run the application to its end."""
        self._failure = await self._call(app)

    def outcome(self) -> Response | Failure:
        """The response, once the application has ended."""
        if self._failure is not None:
            return self._failure
        if self._status is None:
            return _WITHOUT_RESPONSE
        body = b"".join(self._pieces)
        return Response(
            status=self._status, headers=self._headers, body=body[:MAX_BODY], truncated=len(body) > MAX_BODY
        )

    async def _send(self, event: AsgiEvent) -> None:
        if event["type"] == "http.response.start":
            self._request.stopwatch.answer()
            self._status, self._headers = _head_of(event)
        elif event["type"] == "http.response.body" and self._size <= MAX_BODY:
            self._pieces.append(event.get("body", b""))
            self._size += len(self._pieces[-1])


class StreamedExchange(_AsgiExchange):
    """A request whose response is read as it arrives, on the event loop that made this object.

    `run` is for the application's loop. The two loops may be the same.
    """

    def __init__(self, request: DeliveryRequest, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(request)
        self._loop = loop
        self._reader = asyncio.get_running_loop()
        self.opened: asyncio.Future[ResponseStream | Failure] = self._reader.create_future()
        """The response, once its head has arrived."""
        self._arrived: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._has_ended = False
        self._failure: Failure | None = None
        """Why the response has not ended as it should."""
        self._unread = 0
        """Bytes that the reader has not taken, as the application's loop knows."""
        self._taken = asyncio.Event()
        self._result: Failure | None = None

    # -- on the application's event loop

    async def run(self, app: AsgiApp) -> None:
        """Run the application to its end."""
        self._result = await self._call(app)

    async def _send(self, event: AsgiEvent) -> None:
        if event["type"] == "http.response.start":
            self._tell(self._begin, *_head_of(event))
        elif event["type"] == "http.response.body" and (piece := event.get("body", b"")):
            self._unread += len(piece)
            self._tell(self._arrive, piece)
            while self._unread > MAX_UNREAD and not self.disconnected.is_set():
                self._taken.clear()
                await self._taken.wait()

    def _note_taken(self, size: int) -> None:
        self._unread -= size
        self._taken.set()

    def _disconnect(self) -> None:
        self.disconnected.set()
        self._taken.set()

    def _tell(self, change: Callable[..., None], *values: object) -> None:
        if self._reader is self._loop:
            change(*values)
            return
        with contextlib.suppress(RuntimeError):  # the reader's loop is closed
            self._reader.call_soon_threadsafe(change, *values)

    # -- on the reader's

    def follow(self, running: concurrent.futures.Future[None]) -> None:
        """End the response when the application ends."""

        def ended(done: concurrent.futures.Future[None]) -> None:
            with contextlib.suppress(RuntimeError):
                self._reader.call_soon_threadsafe(self._finish, LOOP_ENDED if done.cancelled() else self._result)

        running.add_done_callback(ended)

    def _begin(self, status: int, headers: Headers) -> None:
        if not self.opened.done():
            self.opened.set_result(ResponseStream(status, headers, self, self.close))

    def _arrive(self, piece: bytes) -> None:
        self._arrived.append(piece)
        self._changed.set()

    def _finish(self, failure: Failure | None) -> None:
        self._has_ended, self._failure = True, failure
        self._changed.set()
        if not self.opened.done():
            self.opened.set_result(failure or _WITHOUT_RESPONSE)

    def __aiter__(self) -> StreamedExchange:
        return self

    async def __anext__(self) -> bytes:
        while not self._arrived:
            if self._failure is not None:
                raise StreamBroken(self._failure)
            if self._has_ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        pieces = b"".join(self._arrived)
        self._arrived.clear()
        self._tell_application(self._note_taken, len(pieces))
        return pieces

    async def close(self) -> None:
        """Read no more of the response: the application receives ``http.disconnect``."""
        self._tell_application(self._disconnect)

    def _tell_application(self, change: Callable[..., None], *values: object) -> None:
        if self._reader is self._loop:
            change(*values)
            return
        with contextlib.suppress(RuntimeError):  # its loop is closed: it needs no event
            self._loop.call_soon_threadsafe(change, *values)


def _head_of(event: AsgiEvent) -> tuple[int, Headers]:
    headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in event["headers"])
    return event["status"], headers
