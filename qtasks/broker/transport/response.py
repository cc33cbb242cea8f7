"""Reading an endpoint's answer without being kept busy by it. Built into aiohttp by `broker.transport`.

aiohttp bounds single lines and what it buffers. What it leaves open is bounded here: informational answers, the header
as a whole, and bytes that belong to no body. It also leaves some outcomes to luck, which are made the same every time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from http import HTTPStatus

import aiohttp
from aiohttp import StreamReader
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection

from qtasks.protocol.messages import Response

MAX_HEADER_LINE = 16 * 1024
"""Longest status line or header line of an answer, bytes."""

MAX_HEADERS = 128
MAX_HEADER_BYTES = 64 * 1024
"""All header lines of an answer together, bytes."""

MAX_INFORMATIONAL = 2
"""Answers of status 1xx in front of the real one; with more, an endpoint keeps an attempt open until its deadline."""

READ_BUFFER = 64 * 1024
"""Bytes of a body that are read ahead."""

_WITHOUT_BODY = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})

_HEAD_BUDGET = 1024 * 1024
"""Bytes from the wire until the head of the answer has been looked at; parts of the body come with it."""
_WIRE_FACTOR = 2
"""Bytes read from the wire for each byte of body wanted: enough for any body in chunks of six bytes or more."""


class UnusableError(Exception):
    """The endpoint answers, but not acceptably; the message says what was seen."""


class UnansweredError(Exception):
    """The connection ended before the head of an answer; the cause is what aiohttp says about it.

    Not one of aiohttp's errors on purpose: on those it sends a GET, PUT or DELETE a second time by itself.
    """


class BoundedResponse(aiohttp.ClientResponse):
    """An answer whose head is one we accept. If it is not, the connection is closed, not kept."""

    wire: _BoundedProtocol

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        """Take informational answers off the connection, counting; what follows is looked at, then read as usual.

        Raises UnusableError and UnansweredError.
        """
        parser, transport = connection.protocol, connection.transport
        if parser is None or transport is None:
            raise UnansweredError
        self.wire = _wire_of(transport, parser)
        self.wire.expect(_HEAD_BUDGET)
        for _ in range(MAX_INFORMATIONAL + 1):
            try:
                message, body = await parser.read()
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                raise UnansweredError from error
            if not 100 <= message.code < 200 or message.code == HTTPStatus.SWITCHING_PROTOCOLS:
                _check_head(message.code, message.raw_headers)
                if message.code in _WITHOUT_BODY and "Content-Length" in message.headers:
                    parser.force_close()  # the body that must not be there may be on its way
                while len(parser):  # a second answer came with the first, to no request of ours
                    parser.force_close()
                    await parser.read()
                self.wire.follow(body)
                parser.feed_data((message, body))
                return await super().start(connection)
        raise UnusableError(f"more than {MAX_INFORMATIONAL} informational answers (1xx)")

    async def take(self, limit: int) -> Response:
        """Read the body, at most `limit` bytes of it.

        A connection that was read to the end has been kept for the next request by then; any other is closed.
        """
        self.wire.budget = limit * _WIRE_FACTOR + READ_BUFFER
        body = bytearray()
        cut = False
        try:
            while not cut and (chunk := await self.content.readany()):
                body += chunk
                cut = len(body) > limit
        except aiohttp.ClientPayloadError:
            if not (cut := self.wire.budget < 0):
                raise
        finally:
            self.close()
        headers = tuple((_text(name), _text(value)) for name, value in self.raw_headers)
        return Response(status=self.status, headers=headers, body=bytes(body[:limit]), truncated=cut)


class _BoundedProtocol(asyncio.Protocol):
    """Between the socket and aiohttp's parser, for what the parser leaves to luck.

    * It counts bytes: an answer that goes on without getting anywhere (a chunk extension without end keeps a core busy
      until the deadline) is ended.
    * It hands over the head by itself: given head and rubbish in one piece, the parser throws a whole 204 away because
      of the body behind it, and whether both come in one piece is chance.
    * It ends the body when the connection ends: after an error in the middle of a body nobody else does.
    * It closes a connection on which an answer comes that nobody asked for: the next request would take it for its own.
    """

    def __init__(self, parser: ResponseHandler, transport: asyncio.Transport) -> None:
        self._parser = parser
        self._transport = transport
        self._body: StreamReader | None = None
        self.budget = 0
        """Bytes still acceptable; negative once the answer was cut."""

    def expect(self, budget: int) -> None:
        """A request has been sent: up to `budget` bytes may come."""
        self.budget = budget
        self._body = None

    def follow(self, body: StreamReader) -> None:
        """Let `body` end with the connection, at the latest."""
        self._body = body

    def data_received(self, data: bytes) -> None:
        self.budget -= len(data)
        if self.budget < 0:
            self._transport.abort()
            return
        head_end = data.find(b"\r\n\r\n") + 4
        if 4 <= head_end < len(data):
            self._parser.data_received(data[:head_end])
            data = data[head_end:]
        self._parser.data_received(data)
        if self._body is not None and self._body.is_eof() and len(self._parser):
            self._transport.abort()

    def eof_received(self) -> None:
        self._parser.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._parser.connection_lost(exc)
        body = self._body
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(self._parser.exception() or aiohttp.ClientPayloadError("the connection was closed"))

    def pause_writing(self) -> None:
        self._parser.pause_writing()

    def resume_writing(self) -> None:
        self._parser.resume_writing()


def _wire_of(transport: asyncio.Transport, parser: ResponseHandler) -> _BoundedProtocol:
    """What stands between `transport` and `parser`; put there when the connection is used for the first time."""
    wire = transport.get_protocol()
    if not isinstance(wire, _BoundedProtocol):
        wire = _BoundedProtocol(parser, transport)
        transport.set_protocol(wire)
    return wire


def _check_head(status: int, lines: Sequence[tuple[bytes, bytes]]) -> None:
    if not 200 <= status <= 599:
        raise UnusableError(f"status {status}, which no answer to this request has")
    size = sum(len(name) + len(value) for name, value in lines)
    if len(lines) > MAX_HEADERS or size > MAX_HEADER_BYTES:
        raise UnusableError(
            f"{len(lines)} header lines of {size} bytes in all; at most {MAX_HEADERS} and {MAX_HEADER_BYTES} are read"
        )


def _text(raw: bytes) -> str:
    """UTF-8 if it is, else Latin-1: any bytes become text that can be stored and shown."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
