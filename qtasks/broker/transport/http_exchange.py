"""One request and its whole response on a connection of aiohttp's pool, without aiohttp's own requests and responses.

aiohttp looks names up, connects, speaks TLS, and keeps connections within their limits. What follows on a connection is
written and parsed here, by httptools: that costs a third of the CPU.

It relies on the private attribute `_tail` of aiohttp's `ResponseHandler`. `tests/unit/broker/test_dependencies.py`
checks that it exists.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

import aiohttp
import httptools
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError

from qtasks.broker.ports import Stopwatch
from qtasks.broker.transport.response import (
    HEAD_BUDGET,
    MAX_HEADER_BYTES,
    MAX_HEADER_LINE,
    MAX_HEADERS,
    MAX_INFORMATIONAL,
    READ_BUFFER,
    WIRE_FACTOR,
    WITHOUT_BODY,
    BoundedProtocol,
    UnansweredError,
    UnusableError,
    check_head,
    guard_of,
)
from qtasks.protocol import headers as header_lines
from qtasks.protocol.messages import Response

_END: Final = b"\r\n\r\n"
_MAX_HEAD: Final = MAX_HEADER_BYTES + MAX_HEADER_LINE
"""Bytes of the heads of a response, informational ones included, until they are not read any more."""
_JOINED: Final = 64 * 1024
"""A body of at most so many bytes is joined with its head, so that both cost one system call."""
_NO_BODY: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""Methods of requests that state no length if they have no body."""


class PlainExchange:
    """One request and its response; `run` may be called again, on another connection.

    Args:
        method: Such as ``POST``.
        target: Path and query.
        lines: The header lines of the request, without the length of its body.
        body: The body of the request.
        dialled: Where to connect.
        limit: Most bytes of the response's body that are read; a longer one is cut.
        stopwatch: It notes when there is a connection, and when the head of the response has arrived.
    """

    def __init__(
        self,
        method: str,
        target: str,
        lines: Iterable[tuple[str, str]],
        body: bytes,
        *,
        dialled: aiohttp.ClientRequest,
        limit: int,
        stopwatch: Stopwatch,
    ) -> None:
        self._method = method
        self._target = target
        self._lines = lines
        self._body = body
        self._dialled = dialled
        self._limit = limit
        self._stopwatch = stopwatch
        self._reader: _ResponseReader | None = None
        self._is_written = False

    @property
    def sent(self) -> bool:
        """The whole request has been handed to the connection."""
        return self._is_written and self._reader is not None and not self._reader.guard.is_write_paused

    @property
    def responding(self) -> bool:
        """The head of the response has arrived."""
        return self._reader is not None and self._reader.has_head

    async def run(self, session: aiohttp.ClientSession) -> Response:
        """Send the request, and read the response.

        A connection whose response was read to the end is kept for the next request; any other is closed. Raises the
        errors that `attempt_failures.failure_of` knows.
        """
        connector = session.connector
        if connector is None:
            raise UnansweredError
        connection = await connector.connect(self._dialled, [], session.timeout)
        self._stopwatch.connect()
        is_kept = False
        try:
            reader, transport = self._reader_of(connection)
            self._reader = reader
            answered = reader.begin(self._limit, self._stopwatch, is_head=self._method == "HEAD")
            head = _head_of(self._method, self._target, self._lines, self._body)
            if len(self._body) <= _JOINED:
                transport.write(head + self._body)
            else:
                transport.write(head)
                transport.write(self._body)
            self._is_written = not transport.is_closing()
            response = await answered
            is_kept = reader.is_clean
            return response
        finally:
            if is_kept:
                connection.release()
            else:
                connection.close()

    def _reader_of(self, connection: Connection) -> tuple[_ResponseReader, asyncio.Transport]:
        parser, transport = connection.protocol, connection.transport
        if parser is None:
            raise UnansweredError
        early: bytes = parser._tail  # noqa: SLF001 - what arrived before there was a request
        if transport is None:
            raise _unusable("sent before a request", early) if early else UnansweredError
        guard = guard_of(transport, parser)
        if not isinstance(reader := guard.reader, _ResponseReader):
            reader = guard.reader = _ResponseReader(guard, early)
        return reader, transport


def _head_of(method: str, target: str, lines: Iterable[tuple[str, str]], body: bytes) -> bytes:
    text = "".join([f"{name}: {value}\r\n" for name, value in lines])
    length = f"Content-Length: {len(body)}\r\n" if body or method not in _NO_BODY else ""
    return f"{method} {target} HTTP/1.1\r\n{text}{length}\r\n".encode()


def _unusable(reason: str, data: bytes) -> HttpProcessingError:
    return HttpProcessingError(message=f"{reason}: {data[:40]!r}")


class _ResponseReader:
    """Reads the responses of one connection, one after the other, with bounds on all of their parts."""

    def __init__(self, guard: BoundedProtocol, early: bytes) -> None:
        self.guard = guard
        self._early = early
        self.has_head = False
        """The head of the response has arrived, and was checked."""
        self.is_clean = False
        """The response is complete, nothing irregular was seen, and the endpoint keeps the connection."""
        self._answered: asyncio.Future[Response] = guard.loop.create_future()
        self._parser: httptools.HttpResponseParser | None = None

    def begin(self, limit: int, stopwatch: Stopwatch, *, is_head: bool) -> asyncio.Future[Response]:
        """Expect a response with at most `limit` bytes of body; `is_head`: it is to HEAD, and has none."""
        self._limit = limit
        self._stopwatch = stopwatch
        self._is_head = is_head
        self._answered = self.guard.loop.create_future()
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
            # As aiohttp: some servers end lines with LF alone, or fill up the sizes of chunks.
            self._parser.set_dangerous_leniencies(
                lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
            )
        self.has_head = self.is_clean = False
        self._head_bytes = self._informational = 0
        self._tail = b""
        self._error: Exception | None = None
        self._start()
        self.guard.expect(HEAD_BUDGET)
        self.guard.is_reading = True
        early, self._early = self._early, b""
        self.data_received(early)
        return self._answered

    def _start(self) -> None:
        self._status = 0
        self._lines: list[tuple[bytes, bytes]] = []
        self._body = bytearray()
        self._keeps_alive = self._is_complete = self._ends_with_connection = False
        self._trailers = 0

    # -- what arrives

    def data_received(self, data: bytes) -> None:
        """Read a piece of what the endpoint sends."""
        if self._answered.done():
            self.guard.abort()
            return
        if self.guard.budget < 0:
            self._end_early()
            return
        while data and not self._answered.done():
            portion = data if self.has_head else data[: self._to_end_of_head(data)]
            data = data[len(portion) :]
            self._feed(portion)
            if self._is_complete and not self._answered.done():
                self._complete(is_clean=not data)

    def _to_end_of_head(self, data: bytes) -> int:
        """How many bytes of `data` belong to the head: what comes behind it must not change what the head means."""
        if self._tail and (seam := (self._tail + data[:3]).find(_END)) >= 0:
            end = seam + len(_END) - len(self._tail)
        elif (at := data.find(_END)) >= 0:
            end = at + len(_END)
        else:
            self._tail = (self._tail + data[-3:])[-3:]
            return len(data)
        self._tail = b""
        return end

    def _feed(self, portion: bytes) -> None:
        was_in_head = not self.has_head
        assert self._parser is not None, "a response was expected"
        try:
            self._parser.feed_data(portion)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._is_complete:
                self._error = self._error or _unusable(str(error), portion)
            self._keeps_alive = False
            self._parser = None
        if was_in_head:
            self._head_bytes += len(portion)
            if self.has_head:
                self.guard.budget = self._limit * WIRE_FACTOR + READ_BUFFER
            elif self._head_bytes > _MAX_HEAD:
                self._error = self._error or UnusableError(f"a head of more than {_MAX_HEAD} bytes")
        if self._error is not None:
            self._fail(self._error)
        elif len(self._body) > self._limit:
            self._end_early()

    def _end_early(self) -> None:
        """The response is longer than it may be, on the wire or in its body: the rest is not read."""
        if self.has_head:
            self._complete(is_truncated=True)
        else:
            self._fail(UnusableError(f"no head in {HEAD_BUDGET} bytes"))

    def connection_lost(self, error: Exception | None) -> None:
        """The connection has ended: a body without a length is complete, any other response is not.

        An endpoint has answered once the head has arrived, so a body that breaks off does not count as an interruption.
        """
        if self._answered.done():
            return
        if self._ends_with_connection and error is None:
            self._complete()
        elif self.has_head:
            self._fail(aiohttp.ClientPayloadError(f"the connection was {'closed' if error is None else 'reset'}"))
        else:
            self._fail(self.guard.unanswered(error))

    # -- the end

    def _complete(self, *, is_clean: bool = False, is_truncated: bool = False) -> None:
        self.is_clean = is_clean and self._keeps_alive and not self._ends_with_connection
        if self._is_head or not self.is_clean:
            self._parser = None  # it is in the middle of a body for us, or saw what belongs to no response
        headers = tuple([(header_lines.decode(name), header_lines.decode(value)) for name, value in self._lines])
        body, self._body = bytes(self._body[: self._limit]), bytearray()
        self._answered.set_result(Response(status=self._status, headers=headers, body=body, truncated=is_truncated))

    def _fail(self, error: Exception) -> None:
        self._parser = None
        self._answered.set_exception(error)

    # -- callbacks of the parser

    def on_message_begin(self) -> None:
        """A head begins; behind a complete response it is one for which there is no request."""
        if self._is_complete:
            self._keeps_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header line, or a trailer field, which is dropped."""
        if not self.has_head:
            self._lines.append((name, value))
            if len(name) + len(value) > MAX_HEADER_LINE:
                self._error = UnusableError(f"a header line of more than {MAX_HEADER_LINE} bytes")
        elif not self._is_complete:
            self._trailers += 1
            if self._trailers > MAX_HEADERS:
                self._error = UnusableError(f"more than {MAX_HEADERS} trailer fields")

    def on_headers_complete(self) -> None:
        """A head is complete: check it, and find out where its body ends."""
        assert self._parser is not None, "the parser calls"
        if self._is_complete:
            return
        self._status = status = self._parser.get_status_code()
        if 100 <= status < 200 and status != HTTPStatus.SWITCHING_PROTOCOLS:
            return
        try:
            check_head(status, self._lines)
        except UnusableError as error:
            self._error = error
            return
        self.has_head = True
        self._stopwatch.answer()
        self._keeps_alive = self._parser.should_keep_alive()
        names = {name.lower(): value for name, value in self._lines}
        if self._is_head or status in WITHOUT_BODY:
            if status in WITHOUT_BODY and b"content-length" in names:
                self._keeps_alive = False  # such a response has no body, but one may be on its way
            self._is_complete = True
        elif b"transfer-encoding" in names:
            self._ends_with_connection = not names[b"transfer-encoding"].lower().rstrip().endswith(b"chunked")
        else:
            self._ends_with_connection = b"content-length" not in names

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if not self._is_complete:
            self._body += body

    def on_message_complete(self) -> None:
        """A response is complete. After an informational one another follows."""
        if self.has_head:
            self._is_complete = True
            return
        if self._error is None:
            self._informational += 1
            if self._informational > MAX_INFORMATIONAL:
                self._error = UnusableError(f"more than {MAX_INFORMATIONAL} informational responses (1xx)")
        self._start()
