"""uvicorn's httptools protocol with limits on what comes before a request, and after its answer: time, and bytes.

uvicorn waits for ever for the rest of a header, and collects any amount of it; and for the rest of a body that was
refused before it was there. It also takes requests apart that two readers could understand in two ways.
"""

from __future__ import annotations

import asyncio
import json
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from qtasks.broker.server.write_coalescing import CoalescingTransport

HEAD_TIMEOUT_S: Final = 10.0
"""From the connection, or the first byte of a later request, to the end of its header."""
DISCARD_TIMEOUT_S: Final = 30.0
"""How long the rest of a body that has been answered already is read and thrown away: most clients look for an answer
only when they have sent everything."""
MAX_HEAD: Final = 64 * 1024
"""Bytes of a request line and header together."""


class GuardedProtocol(HttpToolsProtocol):
    """Closes connections whose request does not begin in time, or begins too large."""

    _deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _begun = False
    """Between the first byte of a request and its last."""
    _in_body = False
    """Between the end of its header and its last byte."""
    _oddity: str | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(CoalescingTransport(transport, self.loop))  # type: ignore[arg-type]
        self._start_clock(HEAD_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop it."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what arrives while a header is incomplete."""
        if self._in_body:
            if self._deadline is None and not self._waiting():
                self._start_clock(DISCARD_TIMEOUT_S)
        else:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD and not self._head_ends(data):
                self._refuse(b"431 Request Header Fields Too Large", f"header too large: more than {MAX_HEAD} bytes")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins; its header must end in time."""
        self._begun = True
        if self._deadline is None:
            self._start_clock(HEAD_TIMEOUT_S)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The header is there: what follows is the business of the application."""
        self._stop_clock()
        self._oddity = self._what_is_odd()
        if self._oddity is not None:
            raise ValueError(self._oddity)  # the parser stops, and `send_400_response` is called
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is there: what follows is the next request."""
        self._stop_clock()
        self._begun = self._in_body = False
        self._head_bytes = 0
        super().on_message_complete()
        if self.cycle.response_complete:
            # uvicorn forgot its limit for idle connections when the rest of this body came.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def send_400_response(self, msg: str) -> None:
        """In the form of every other error."""
        self._refuse(b"400 Bad Request", self._oddity or msg)

    def _what_is_odd(self) -> str | None:
        """Why a request that the parser accepts is refused: a proxy in front of us could read it differently."""
        if not self.url.startswith((b"/", b"*")):
            return "the request target must be a path: this is no proxy"
        if b"#" in self.url:
            return "the request target contains a fragment (#): percent-encode it as %23, or leave it out"
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings and self.parser.get_http_version() == "1.0":
            return "Transfer-Encoding does not exist in HTTP/1.0"
        if codings and codings != [b"chunked"]:
            return "Transfer-Encoding: no coding but chunked is understood"
        return None

    def _waiting(self) -> bool:
        """Whether the latest request still waits for its answer."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request, whatever uvicorn declares
        return cycle is not None and not cycle.response_complete

    def _head_ends(self, data: bytes) -> bool:
        # A large body may share a read with the end of its header.
        return b"\r\n\r\n" in data[: MAX_HEAD - (self._head_bytes - len(data))]

    def _start_clock(self, limit_s: float) -> None:
        self._deadline = self.loop.call_later(limit_s, self._too_slow)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self._begun and not self._in_body:
            self._refuse(b"408 Request Timeout", f"no complete header within {HEAD_TIMEOUT_S:g} s")
        elif self.transport is not None:
            self.transport.close()

    def _would_overtake(self) -> bool:
        """Whether an earlier request of this connection still waits for its answer: ours would be taken for that."""
        return bool(self.pipeline) or (self._waiting() and not self._in_body)

    def _refuse(self, status: bytes, text: str) -> None:
        self._stop_clock()
        if self._would_overtake():
            self.transport.close()
            return
        body = json.dumps({"error": text}).encode()
        self.transport.write(
            b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (status, len(body), body)
        )
        self.transport.close()
