"""The bounds of an endpoint's response, and a bounded reader that `http_transport` plugs into aiohttp.

aiohttp limits single header lines and its buffers. This module limits the rest: informational responses (1xx), the
header as a whole, and bytes that belong to no body. It also makes outcomes deterministic that in aiohttp depend on how
the bytes happen to arrive.

It relies on private attributes of aiohttp: `ResponseHandler` (`read`, `feed_data`, `force_close`, `len()`) and
`StreamReader.is_eof`. `tests/unit/broker/test_dependencies.py` checks that they exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from http import HTTPStatus
from typing import Protocol

import aiohttp
from aiohttp import StreamReader
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection

from qtasks.protocol import headers as header_lines
from qtasks.protocol.messages import Headers

MAX_HEADER_LINE = 16 * 1024
"""Longest status line or header line of a response, bytes."""

MAX_HEADERS = 128
MAX_HEADER_BYTES = 64 * 1024
"""All header lines of a response together, bytes."""

MAX_INFORMATIONAL = 2
"""Responses of status 1xx before the final one. More of them are an attempt to keep the broker busy."""

READ_BUFFER = 64 * 1024
"""Bytes of a body that are read in advance."""

WITHOUT_BODY = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})

HEAD_BUDGET = 1024 * 1024
"""Bytes accepted until the head of the response has been checked; parts of the body arrive with it."""
_CLOSED_AT_ONCE_S = 1.0
"""An end of a kept connection that comes later, in seconds, is not about an idle connection: work was lost."""
WIRE_FACTOR = 2
"""Bytes accepted for each byte of the body limit: enough for every body in chunks of six bytes or more."""


class UnusableError(Exception):
    """The endpoint sent a response that is not acceptable; the message says why."""


class UnansweredError(Exception):
    """The connection ended before the head of a response; `__cause__` is aiohttp's error.

    Not one of aiohttp's own errors: after those, aiohttp sends a GET, PUT or DELETE a second time by itself.
    """

    def __init__(self, *, closed_at_reuse: bool = False, closed_at_once: bool = False) -> None:
        super().__init__()
        self.closed_at_once = closed_at_once
        """The endpoint closed a new connection as soon as the first request came."""
        self.closed_at_reuse = closed_at_reuse
        """The endpoint closed a kept connection as the request was sent."""


class Reader(Protocol):
    """Reads what arrives on a connection in place of aiohttp's parser."""

    def data_received(self, data: bytes) -> None:
        """A piece has arrived; the guard's budget counts it already."""

    def connection_lost(self, error: Exception | None) -> None:
        """The connection has ended."""


class BoundedResponse(aiohttp.ClientResponse):
    """A response whose head has been checked. If it is not acceptable, the connection is closed instead of reused."""

    protocol_guard: BoundedProtocol

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        """Skip a limited number of informational responses, check the head of the final one, then read it as usual.

        Raises UnusableError and UnansweredError.
        """
        parser, transport = connection.protocol, connection.transport
        if parser is None or transport is None:
            raise UnansweredError
        self.protocol_guard = guard_of(transport, parser)
        self.protocol_guard.expect(HEAD_BUDGET)
        for _ in range(MAX_INFORMATIONAL + 1):
            try:
                message, body = await parser.read()
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                raise self.protocol_guard.unanswered(error) from error
            if not 100 <= message.code < 200 or message.code == HTTPStatus.SWITCHING_PROTOCOLS:
                check_head(message.code, message.raw_headers)
                if message.code in WITHOUT_BODY and "Content-Length" in message.headers:
                    parser.force_close()  # such a response has no body, but one may be on its way
                while len(parser):  # a second response arrived with the first, for which there is no request
                    parser.force_close()
                    await parser.read()
                self.protocol_guard.follow(body)
                parser.feed_data((message, body))
                return await super().start(connection)
        raise UnusableError(f"more than {MAX_INFORMATIONAL} informational responses (1xx)")

    async def piece(self) -> bytes:
        """The bytes of the body that have arrived, at least one; none at its end. For a body of any length.

        What the body costs on the wire, as in `take`, is limited in proportion to the bytes that it yields.
        """
        guard = self.protocol_guard
        piece = await self.content.readany()
        if guard.budget >= 0:
            guard.budget = min(guard.budget + len(piece) * WIRE_FACTOR, HEAD_BUDGET)
        return piece

    @property
    def is_cut(self) -> bool:
        """True if the response was ended because it cost more on the wire than its bytes justify."""
        return self.protocol_guard.budget < 0

    def header_lines(self) -> Headers:
        """The header lines as they were sent."""
        return tuple((header_lines.decode(name), header_lines.decode(value)) for name, value in self.raw_headers)


class BoundedProtocol(asyncio.Protocol):
    """A protocol between the socket and aiohttp's parser, for cases in which the parser's outcome depends on timing.

    * It counts bytes and ends a response that makes no progress: an endless chunk extension, for example, would keep a
      core busy until the deadline.
    * It passes the head to the parser separately. Given a head and garbage in one piece, the parser discards a complete
      204 because of the body behind it; whether both arrive in one piece is a matter of chance.
    * It ends the body when the connection ends. After an error in the middle of a body, the parser does not.
    * It closes a connection that delivers a response without a request: the next request would take it for its own.
    """

    def __init__(self, parser: ResponseHandler, transport: asyncio.Transport) -> None:
        self._parser = parser
        self._transport = transport
        self._body: StreamReader | None = None
        self.loop = asyncio.get_running_loop()
        self._requests = 0
        self._sent_s = 0.0
        self._has_answer = False
        self.budget = 0
        """Bytes still accepted; negative once the response was cut."""
        self.reader: Reader | None = None
        """What reads the responses in place of the parser."""
        self.is_reading = False
        """True if `reader` gets what arrives."""
        self.is_write_paused = False
        """True if not all of what was written has left."""

    def expect(self, budget: int) -> None:
        """A request has been sent: accept up to `budget` bytes."""
        self.budget = budget
        self.is_reading = False
        self._body = None
        self._requests += 1
        self._sent_s = self.loop.time()
        self._has_answer = False

    @property
    def is_kept(self) -> bool:
        """True if the connection was kept after an earlier request."""
        return self._requests > 1

    def was_closed_at_once(self) -> bool:
        """True if the connection ended soon after this request, with no byte of an answer to it.

        The endpoint of a kept connection closed it while it was idle, and the request crossed the closing on its way.
        """
        age_s = self.loop.time() - self._sent_s
        return not self._has_answer and age_s < _CLOSED_AT_ONCE_S

    def unanswered(self, error: Exception | None) -> UnansweredError:
        """The error for a connection that ended, with `error`, before the head of a response."""
        closed_at_once = self.was_closed_at_once()
        closed_at_reuse = closed_at_once and self.is_kept
        unanswered = UnansweredError(
            closed_at_reuse=closed_at_reuse, closed_at_once=closed_at_once and not closed_at_reuse
        )
        unanswered.__cause__ = error
        return unanswered

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def follow(self, body: StreamReader) -> None:
        """End `body` when the connection ends, if it has not ended before."""
        self._body = body

    def data_received(self, data: bytes) -> None:
        """Pass a piece on, within the budget."""
        self._has_answer = True
        self.budget -= len(data)
        if self.is_reading and self.reader is not None:
            self.reader.data_received(data)
            return
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
        """The endpoint sends no more."""
        self._parser.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._parser.connection_lost(exc)
        if self.reader is not None:
            self.reader.connection_lost(exc)
        body = self._body
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(self._parser.exception() or aiohttp.ClientPayloadError("the connection was closed"))

    def pause_writing(self) -> None:
        """More is written than the endpoint takes."""
        self.is_write_paused = True
        self._parser.pause_writing()

    def resume_writing(self) -> None:
        """The endpoint has taken most of it."""
        self.is_write_paused = False
        self._parser.resume_writing()


def guard_of(transport: asyncio.Transport, parser: ResponseHandler) -> BoundedProtocol:
    """The protocol between `transport` and `parser`, installed when the connection is used for the first time."""
    guard = transport.get_protocol()
    if not isinstance(guard, BoundedProtocol):
        guard = BoundedProtocol(parser, transport)
        transport.set_protocol(guard)
    return guard


def check_head(status: int, lines: Sequence[tuple[bytes, bytes]]) -> None:
    """Refuse the head of a response that is not acceptable. Raises UnusableError."""
    if not 200 <= status <= 599:
        raise UnusableError(f"status {status}, which is not valid for a final response")
    size = sum(len(name) + len(value) for name, value in lines)
    if len(lines) > MAX_HEADERS or size > MAX_HEADER_BYTES:
        raise UnusableError(
            f"{len(lines)} header lines of {size} bytes in all; at most {MAX_HEADERS} and {MAX_HEADER_BYTES} are read"
        )
