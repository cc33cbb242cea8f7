"""A broker of ours behind a client's transport: it answers the views itself, with a token that no browser sees."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import orjson

from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError
from qtasks.broker.console.access import USER_HEADER
from qtasks.errors import BrokerUnreachable
from qtasks.protocol.messages import MAX_BODY
from qtasks.qstash.conversation.transport import AsyncStreamed, AsyncStreaming, AsyncTransport, Reply, Request

TIMEOUT_S: Final = 30.0
STREAM_TIMEOUT_S: Final = 60.0
"""Longest pause in a stream of events, which has a comment every 15 seconds."""
_MAX_REQUEST: Final = 6 * MAX_BODY + 1024
_KEPT: Final = frozenset({"content-type", "retry-after", "allow"})
"""Header lines of a response that are passed on."""
_NOT_SENT: Final = frozenset(
    {
        "authorization",
        "connection",
        "content-length",
        "cookie",
        "host",
        "origin",
        USER_HEADER.lower(),
        "qtasks-csrf",
        "referer",
        "accept-encoding",
        "transfer-encoding",
        "upgrade",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
    }
)
"""Header lines of a browser that are its own matter; those that begin with ``sec-`` are others."""


class PassedService:
    """A QStash service at `url` with a token; requests go through `transport`."""

    def __init__(self, url: str, token: str, transport: AsyncTransport) -> None:
        self.url = url.rstrip("/")
        self._token = token
        self._transport = transport

    async def ask(self, method: str, path: str, body: bytes = b"") -> Any:
        """The JSON that the service answers at `path`. HttpError with its status and sentence if it refuses."""
        reply = await self.send(Request(method, self.url + path, self._headers(), body))
        return read_json(reply)

    async def send(self, request: Request) -> Reply:
        """Send one request. HttpError 503 if the service does not answer."""
        try:
            return await self._transport.send(request, TIMEOUT_S)
        except BrokerUnreachable as error:
            raise HttpError(503, error.message) from None

    async def pass_on(self, request: ApiRequest, path: str, *added: tuple[str, str]) -> ApiResponse:
        """What the service answers at `path`, which may have a query, to the request of a page; `added`: headers."""
        body = await request.read_body(_MAX_REQUEST)
        lines = tuple(
            (name, value)
            for name, value in request.headers
            if name.lower() not in _NOT_SENT and not name.lower().startswith("sec-")
        )
        passed = Request(request.method, self.url + path, self._headers(*lines, *added), body)
        return _response(await self.send(passed))

    @property
    def can_stream(self) -> bool:
        """True if a response can be passed on while it arrives."""
        return isinstance(self._transport, AsyncStreaming)

    async def stream(self, path: str) -> ApiResponse:
        """What the service answers at `path`, while it arrives."""
        if not isinstance(self._transport, AsyncStreaming):
            raise HttpError(404, "this service has no live events")
        request = Request("GET", self.url + path, self._headers(), b"")
        try:
            streamed = await self._transport.stream(request, STREAM_TIMEOUT_S)
        except BrokerUnreachable as error:
            raise HttpError(503, error.message) from None
        if streamed.status != 200:
            return _response(await streamed.collect())
        return ApiResponse(200, headers=_kept(Reply(200, streamed.headers, b"")), stream=_pieces(streamed))

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    def _headers(self, *lines: tuple[str, str]) -> tuple[tuple[str, str], ...]:
        return (("Authorization", f"Bearer {self._token}"), *lines)


async def _pieces(streamed: AsyncStreamed) -> AsyncIterator[bytes]:
    try:
        async for piece in streamed.chunks:
            yield piece
    except BrokerUnreachable:
        return  # the page connects again
    finally:
        await streamed.close()


def read_json(reply: Reply) -> Any:
    """The JSON in a reply. HttpError if the service refused, or answered something else."""
    try:
        value = orjson.loads(reply.body or b"null")
    except orjson.JSONDecodeError:
        value = None
    if reply.status >= 400:
        text = value.get("error") if isinstance(value, dict) else None
        raise HttpError(reply.status, str(text or f"the service answered {reply.status}"))
    return value


def _response(reply: Reply) -> ApiResponse:
    status = 502 if reply.status == 401 else reply.status  # the token of this process, not that of the visitor
    return ApiResponse(status, reply.body, _kept(reply))


def _kept(reply: Reply) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in reply.headers if name.lower() in _KEPT)
