"""The API as an ASGI application: it checks limits and the Host header, then passes on an `ApiRequest`.

Path and query stay raw: nothing in a destination URL is decoded or merged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, error_response, json_response
from qtasks.broker.console.console import is_console_path, with_security
from qtasks.broker.server.hosts import LOOPBACK_HOSTS, host_refusal
from qtasks.counted_log import CountedLog
from qtasks.protocol import headers as header_lines
from qtasks.request_body import BodyCut, BodyTooLarge, BufferBudget, NoRoomForBody, read_body

log = logging.getLogger("qtasks.broker")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

PIECE: Final = 64 * 1024
"""Bytes of a response that are sent at once."""
_PUBLIC: Final = frozenset({b"/healthz", b"/readyz", b"/openapi.json"})


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Size limits of a request, checked before any of it is stored in memory."""

    target: int = 8 * 1024
    """Bytes of path and query together."""
    headers: int = 128
    header_bytes: int = 48 * 1024
    buffered: int = 64 * 1024 * 1024
    """Bytes that the bodies that are arriving may hold together, and as many again for the responses that are leaving:
    clients that do not read keep no publish out. What each holds below 64 KiB does not count."""


class Answers(Protocol):
    """What answers requests: the API, or a console."""

    async def handle(self, request: ApiRequest) -> ApiResponse:
        """The response to a request. Never raises."""
        ...


class AsgiApi:
    """An ASGI application around the API and, if one is given, the console.

    `hosts` holds the accepted values of the Host header, without port; None accepts all. The check stops a web page
    that rebinds its own host name to this address (DNS rebinding). `host_option` is the option of the command line that
    adds a host; the refusal names it.
    """

    def __init__(
        self,
        api: Answers,
        *,
        ready: Callable[[], Awaitable[ApiResponse]],
        console: Answers | None = None,
        hosts: Iterable[str] | None = LOOPBACK_HOSTS,
        host_option: str | None = None,
        limits: RequestLimits | None = None,
    ) -> None:
        self._api = api
        self._console = console
        self._ready = ready
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)
        self._host_option = host_option
        self._limits = limits or RequestLimits()
        self._log = CountedLog(log)
        self._arriving = BufferBudget(self._limits.buffered)
        self._leaving = BufferBudget(self._limits.buffered)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request. Other kinds of connection are closed."""
        if scope["type"] != "http":
            return
        try:
            response = await self._public(scope) or await self._checked(scope, receive)
        except HttpError as error:
            response = error_response(error)
            if is_console_path(scope["raw_path"]):
                response = with_security(response)
        await send_response(receive, send, response, self._leaving)

    async def _public(self, scope: Scope) -> ApiResponse | None:
        """Answer the paths that need no token and accept any Host, because they reveal nothing about messages.

        `/healthz` (the process answers), `/readyz`, and the description of the API. None for every other path.
        """
        path = scope["raw_path"]
        if path not in _PUBLIC:
            return None
        if scope["method"] not in ("GET", "HEAD"):
            raise HttpError(405, f"{scope['method']} is not allowed here", (("Allow", "GET, HEAD"),))
        match path:
            case b"/healthz":
                return json_response({"status": "alive"})
            case b"/readyz":
                return await self._ready()
        from qtasks.broker.api import openapi  # here: few brokers are asked for it

        return openapi.served()

    async def _checked(self, scope: Scope, receive: Receive) -> ApiResponse:
        self._check(scope)
        if self._console is not None and is_console_path(scope["raw_path"]):
            return await self._console.handle(self._request(scope, receive))
        return await self._api.handle(self._request(scope, receive))

    def _check(self, scope: Scope) -> None:
        limits = self._limits
        length = len(scope["raw_path"]) + len(scope["query_string"])
        if length > limits.target:
            raise HttpError(414, f"request target too long: {length} bytes > {limits.target}")
        headers = scope["headers"]
        if len(headers) > limits.headers:
            raise HttpError(431, f"too many headers: {len(headers)} > {limits.headers}")
        size = 0
        for name, value in headers:
            size += len(name) + len(value)
        if size > limits.header_bytes:
            raise HttpError(431, f"headers too large: {size} bytes > {limits.header_bytes}")
        if (refusal := host_refusal(headers, self._hosts, "this broker", self._host_option)) is not None:
            self._log.warning("requests with another Host", "a request was refused: %s", refusal[1])
            raise HttpError(*refusal)

    def _request(self, scope: Scope, receive: Receive) -> ApiRequest:
        client = scope.get("client")
        return ApiRequest(
            method=scope["method"],
            path=scope["raw_path"].decode("latin-1"),
            query=scope["query_string"].decode("latin-1"),
            headers=tuple([(str(name, "latin-1"), header_lines.decode(value)) for name, value in scope["headers"]]),
            client_ip=client[0] if client else "",
            read_body=lambda limit: self._read(scope, receive, limit),
        )

    async def _read(self, scope: Scope, receive: Receive, limit: int) -> bytes:
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
            raise HttpError(413, f"message too large: {declared[:40].decode('ascii')} > {limit}")
        try:
            return await read_body(receive, limit, budget=self._arriving)
        except BodyTooLarge:
            raise HttpError(413, f"message too large: more than {limit} bytes") from None
        except BodyCut:
            raise HttpError(400, "the client disconnected before the body was complete") from None
        except NoRoomForBody:
            raise _busy() from None


def _busy() -> HttpError:
    text = "this broker holds as many large requests and responses as it may: try again"
    return HttpError(503, text, (("Retry-After", "1"), ("Connection", "close")))


class NoRoomForResponse(Exception):
    """A response that has begun ends, because too many large ones are read slowly at the same time."""


async def send_response(receive: Receive, send: Send, response: ApiResponse, budget: BufferBudget) -> None:
    """Send `response`, whose large parts are counted in `budget`. Without room the answer is a 503.

    Raises NoRoomForResponse for a stream that has begun.
    """
    if response.stream is not None:
        await _while_connected(receive, _send_stream(send, response, response.stream, budget))
        return
    size = 0 if len(response.body) <= PIECE else len(response.body)
    if not budget.take(size):
        size, response = 0, error_response(_busy())
    try:
        await _send_whole(send, response)
    finally:
        budget.give_back(size)


async def _begin(send: Send, response: ApiResponse, *fields: tuple[bytes, bytes]) -> None:
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
    await send({"type": "http.response.start", "status": response.status, "headers": [*headers, *fields]})


async def _send_whole(send: Send, response: ApiResponse) -> None:
    """Send a response in pieces; each waits until the client has taken most of those before."""
    body = response.body
    await _begin(send, response, (b"content-length", str(len(body)).encode()))
    if len(body) > PIECE:
        await _send_some(send, body)
        body = b""
    await send({"type": "http.response.body", "body": body})


async def _send_some(send: Send, body: bytes) -> None:
    """Send a part of a body. Sent at once, a large one would be copied twice for as long as the client reads."""
    for at in range(0, len(body), PIECE):
        await send({"type": "http.response.body", "body": body[at : at + PIECE], "more_body": True})


async def _send_stream(send: Send, response: ApiResponse, stream: AsyncIterator[bytes], budget: BufferBudget) -> None:
    """Send all of `stream`, and close it in any case: it may hold a connection or a read of the store."""
    has_begun, taken = False, 0
    async with contextlib.AsyncExitStack() as stack:
        if (close := getattr(stream, "aclose", None)) is not None:
            stack.push_async_callback(close)
        stack.callback(lambda: budget.give_back(taken))
        async for piece in stream:
            beyond = max(0, len(piece) - PIECE)
            if not budget.take(beyond - taken):
                if has_begun:
                    raise NoRoomForResponse
                await _send_whole(send, error_response(_busy()))
                return
            taken = beyond
            if not has_begun:
                has_begun = True
                await _begin(send, response)
            await _send_some(send, piece)
            await asyncio.sleep(0)  # `send` returns at once while the client is fast
        if not has_begun:
            await _begin(send, response)
        await send({"type": "http.response.body", "body": b""})


async def _while_connected(receive: Receive, sending: Awaitable[None]) -> None:
    """Run `sending`; cancel it when the client disconnects, which `send` does not report."""
    sender = asyncio.ensure_future(sending)
    disconnection = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({sender, disconnection}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        disconnection.cancel()
        if not sender.done():
            sender.cancel()
            await asyncio.wait({sender})
    if not sender.cancelled():
        sender.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
