"""uvicorn's httptools protocol with limits on time and bytes: for the header, and for the rest of a refused body.

By default uvicorn waits without limit for the rest of a header and stores any amount of it. It also waits without
limit for the rest of a body that was refused before it had arrived. And it accepts requests that a proxy in front of
it could read in another way (request smuggling); this protocol refuses them.

It relies on private attributes of uvicorn's `HttpToolsProtocol` (`cycle`, `pipeline`, `parser`, `url`, `headers`,
`timeout_keep_alive_task`, ...). `tests/unit/broker/test_dependencies.py` checks that they exist.
"""

from __future__ import annotations

import asyncio
import json
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from qtasks.broker.server.write_coalescing import CoalescingTransport

HEAD_TIMEOUT_S: Final = 10.0
"""Limit from the start of the connection, or the first byte of a later request, to the end of the header."""
DISCARD_TIMEOUT_S: Final = 30.0
"""Seconds that the rest of a body is read and discarded after the response was sent: most clients read the response
only when they have sent the whole body."""
MAX_HEAD: Final = 64 * 1024
"""Limit of request line and header together, bytes."""


class GuardedProtocol(HttpToolsProtocol):
    """Closes connections whose request header is not complete in time, or is too large or ambiguous."""

    _deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_request = False
    """True between the first byte of a request and its last."""
    _in_body = False
    """True between the end of the header and the last byte of the request."""
    _ambiguity: str | None = None
    """The reason why the request is refused as ambiguous; None if it is not."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit of the first request."""
        super().connection_made(CoalescingTransport(transport, self.loop))  # type: ignore[arg-type]
        self._start_timer(HEAD_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time limit."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes that arrive while a header is incomplete."""
        if self._in_body:
            if self._deadline is None and not self._is_response_pending():
                self._start_timer(DISCARD_TIMEOUT_S)
        else:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD and not self._head_ends(data):
                self._refuse(b"431 Request Header Fields Too Large", f"header too large: more than {MAX_HEAD} bytes")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins; its header must be complete in time."""
        self._in_request = True
        if self._deadline is None:
            self._start_timer(HEAD_TIMEOUT_S)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The header is complete. The application sets the time limits for the body."""
        self._stop_timer()
        self._ambiguity = self._find_ambiguity()
        if self._ambiguity is not None:
            raise ValueError(self._ambiguity)  # stops the parser; uvicorn then calls `send_400_response`
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is complete. The next bytes are the next request."""
        self._stop_timer()
        self._in_request = self._in_body = False
        self._head_bytes = 0
        super().on_message_complete()
        if self.cycle.response_complete:
            # uvicorn cancelled its limit for idle connections when the rest of this body arrived.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def send_400_response(self, msg: str) -> None:
        """Send the error in the same form as every other error of the API."""
        self._refuse(b"400 Bad Request", self._ambiguity or msg)

    def _find_ambiguity(self) -> str | None:
        """The reason why a proxy may read this request in another way than our parser; None if it is unambiguous."""
        if not self.url.startswith((b"/", b"*")):
            return "the request target must be a path: this server is not a proxy"
        if b"#" in self.url:
            return "the request target contains a fragment (#): percent-encode it as %23, or leave it out"
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings and self.parser.get_http_version() == "1.0":
            return "Transfer-Encoding does not exist in HTTP/1.0"
        if codings and codings != [b"chunked"]:
            return "Transfer-Encoding: only chunked is supported"
        return None

    def _is_response_pending(self) -> bool:
        """True if the latest request still waits for its response."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request, although uvicorn declares it
        return cycle is not None and not cycle.response_complete

    def _head_ends(self, data: bytes) -> bool:
        # One read may contain the end of the header and a large part of the body.
        return b"\r\n\r\n" in data[: MAX_HEAD - (self._head_bytes - len(data))]

    def _start_timer(self, limit_s: float) -> None:
        self._deadline = self.loop.call_later(limit_s, self._time_out)

    def _stop_timer(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _time_out(self) -> None:
        self._deadline = None
        if self._in_request and not self._in_body:
            self._refuse(b"408 Request Timeout", f"no complete header within {HEAD_TIMEOUT_S:g} s")
        elif self.transport is not None:
            self.transport.close()

    def _would_overtake(self) -> bool:
        """True if an earlier request waits for its response: the client would take an error for that response."""
        return bool(self.pipeline) or (self._is_response_pending() and not self._in_body)

    def _refuse(self, status: bytes, text: str) -> None:
        self._stop_timer()
        if self._would_overtake():
            self.transport.close()
            return
        body = json.dumps({"error": text}).encode()
        self.transport.write(
            b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (status, len(body), body)
        )
        self.transport.close()
