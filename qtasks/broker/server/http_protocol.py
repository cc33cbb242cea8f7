"""uvicorn's httptools protocol with limits on time and bytes, for requests and for responses.

By default uvicorn waits without limit for a header, for a body and for a client that does not read its response. It
stores any amount of header, of trailer fields and of pipelined requests. And it accepts requests that a proxy in front
of it could read in another way (request smuggling); this protocol refuses them.

What arrives is parsed in portions: one header, the rest of a body of known length, or a slice of a body in chunks. A
portion ends where a request ends, so the next request is not parsed before the response to this one is sent. A body of
tiny chunks takes its turn with other connections (`parse_turns`). `connection_watch` closes what is too slow.

It relies on private attributes of uvicorn's `HttpToolsProtocol` (`cycle`, `pipeline`, `parser`, `url`, `headers`,
`flow`, ...). `tests/unit/broker/test_dependencies.py` checks that they exist.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any, Final

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from qtasks.broker.server.connection_watch import ConnectionLimits, ConnectionWatch, Phase
from qtasks.broker.server.refusals import BUSY, STOPPING, RefusedError, refusal
from qtasks.broker.server.request_framing import FRAMING_FIELDS, body_length, find_ambiguity, without_upgrade
from qtasks.broker.server.write_coalescing import CoalescingTransport
from qtasks.clock import Clock

MAX_HEAD: Final = 64 * 1024
"""Limit of request line and header together, bytes."""
MAX_FIELDS: Final = 256
"""Limit of the lines of a header."""
MAX_FRAMING: Final = 8 * 1024
"""Limit of what comes between two bytes of a body, or after the last: chunk sizes, their extensions, trailer fields."""
_END: Final = b"\r\n\r\n"
"""The end of each header and of each body in chunks; it may be inside a body, too."""
_SLICE: Final = 1024
"""Bytes of a body in chunks that are parsed at once, at most."""
_FALSE_ENDS: Final = 64
_BETWEEN_ENDS: Final = 256
"""After so many ends inside a body, ends are looked for only while there are so many bytes for each of them. Otherwise
a body of nothing but ends would be parsed in portions of four bytes."""
_SLICE_WORK: Final = 3
"""Units of work for a slice, apart from one for each piece of a body in it."""
_WORK_AT_ONCE: Final = 250
"""Units of work after which a connection waits for its next turn."""


def guarded(limits: ConnectionLimits | None = None, clock: Clock | None = None, *, is_dispatcher: bool = False) -> Any:
    """The protocol for `http` of a `uvicorn.Config`. Its connections share `limits` and are watched together.

    `is_dispatcher`: it serves tasks, so a server that is busy or stops tells a broker that this ends no attempt.
    """
    return functools.partial(GuardedProtocol, watch=ConnectionWatch(limits, clock), is_dispatcher=is_dispatcher)


class _ParsingFlow(FlowControl):
    """Flow control that parses the input at hand before it lets more arrive."""

    def __init__(self, protocol: GuardedProtocol, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._protocol = protocol

    def resume_reading(self) -> None:
        """Continue with the input at hand, else let more arrive."""
        if not self._protocol.parse_later():
            super().resume_reading()


class GuardedProtocol(HttpToolsProtocol):
    """Refuses requests that are too large, too slow or ambiguous; closes connections whose client does not read."""

    transport: CoalescingTransport  # type: ignore[assignment]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        watch: ConnectionWatch,
        is_dispatcher: bool = False,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.number = 0
        self.body_received = 0
        self._watch = watch
        self._is_dispatcher = is_dispatcher
        self._input = b""
        """Arrived and not parsed yet."""
        self._tail = b""
        """The last bytes of a header, or of a body in chunks, that is not complete: its end may be split."""
        self._head_bytes = 0
        self._body_left: int | None = 0
        """Bytes of the body that have not arrived; None if it comes in chunks."""
        self._framing_bytes = 0
        """Bytes since the last byte of the body."""
        self._pieces = 0
        """Pieces of a body in the portion that is parsed."""
        self._noted_input = self._noted_unsent = 0
        """Bytes that the watch has counted since its last look."""
        self._false_ends = 0
        """How often the end of a body in chunks was inside the body."""
        self._plain_head = b""
        """The header to parse in place of one that offered another protocol."""
        self._in_request = False
        """True between the first byte of a request and its last."""
        self._in_body = False
        """True between the end of the header and the last byte of the request."""
        self._is_leaving = False
        """True after a refusal: what arrives is dropped."""
        self._is_stopping = False
        self._refusal: RefusedError | None = None

    # -- events of the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or refuse it if there are too many."""
        joined = CoalescingTransport(transport, self.loop, self._says_goodbye)
        super().connection_made(joined)  # type: ignore[arg-type]
        self.flow = _ParsingFlow(self, self.transport)  # type: ignore[arg-type]
        if not self._watch.admit(self, self.loop):
            self._write_error(b"503 Service Unavailable", BUSY)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the watch, and free the memory: uvicorn would keep a connection that was reset until its timer ends."""
        self._input = b""
        self._watch.forget(self)
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, or keep it until its turn."""
        if self._is_leaving:
            return
        if self._input:
            self._input += data
            return
        self._input = data
        if self._watch.turns and self._in_body and self._body_left is None:
            self._note_input()
            self.flow.pause_reading()
            self._watch.turns.add(self, self.loop)
        else:
            self.parse()

    def shutdown(self) -> None:
        """Finish the request in progress, then close. A request that is not complete in a moment is refused."""
        self._watch.is_stopping = self._is_stopping = True
        if self._is_leaving:
            self.transport.close()
        elif self._in_request:
            if self.cycle is not None:
                self.cycle.keep_alive = False
            self.loop.call_later(self._watch.limits.stop_s, self._refuse_incomplete)
        else:
            super().shutdown()

    def _refuse_incomplete(self) -> None:
        if self._in_request and not self._is_leaving:
            self._refuse(b"503 Service Unavailable", STOPPING)

    def pause_writing(self) -> None:
        """The client is slower than the application."""
        self._noted_unsent = self.unsent()
        self._watch.note_held(self._noted_unsent)
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client has taken most of what was written."""
        self._watch.note_held(-self._noted_unsent)
        self._noted_unsent = 0
        super().resume_writing()

    # -- parsing

    def parse(self) -> int:
        """Parse the input as far as it may go now; return the units of work it took."""
        self._unset_keepalive_if_required()
        data, at, work = self._input, 0, 0
        while at < len(data) and not self.transport.is_closing():
            if self._awaits_application():
                break
            if work >= _WORK_AT_ONCE:
                self._watch.turns.add(self, self.loop)
                break
            end = at + self._portion(data, at)
            work += _SLICE_WORK + self._feed(data[at:end])
            if self._is_leaving:
                return work
            at = end
        self._input = data[at:]
        self._note_input()
        if self._input:
            self.flow.pause_reading()
        elif self.flow.read_paused and not self._is_body_waiting():
            FlowControl.resume_reading(self.flow)
        return work

    def parse_later(self) -> bool:
        """Wait for a turn if there is input; False if there is none."""
        if self._input:
            self._watch.turns.add(self, self.loop)
        return bool(self._input)

    def _note_input(self) -> None:
        if (size := len(self._input)) != self._noted_input:
            self._watch.note_held(size - self._noted_input)
            self._noted_input = size

    def _awaits_application(self) -> bool:
        """True if the application must answer, or read what has arrived, before more is parsed."""
        return self._is_body_waiting() if self._in_body else self.is_response_pending()

    def _is_body_waiting(self) -> bool:
        return self.is_response_pending() and len(self.cycle.body) > HIGH_WATER_LIMIT

    def _portion(self, data: bytes, at: int) -> int:
        """How many bytes of `data` from `at` on to parse next: never more than one request needs."""
        rest = len(data) - at
        if self._in_body:
            if self._body_left is not None:
                return min(rest, self._body_left)
            rest = min(rest, _SLICE)
            if self._false_ends > _FALSE_ENDS and self._false_ends * _BETWEEN_ENDS > self.body_received:
                self._tail = b""
                return rest
        if self._tail and (seam := (self._tail + data[at : at + 3]).find(_END)) >= 0:
            size = seam + len(_END) - len(self._tail)
        else:
            end = data.find(_END, at, at + rest)
            if end < 0:
                self._tail = (self._tail + data[max(at, at + rest - 3) : at + rest])[-3:]
                return rest
            size = end + len(_END) - at
        self._tail = b""
        return size

    def _feed(self, portion: bytes) -> int:
        """Give `portion` to the parser; return the units of work. A refusal ends the connection."""
        if not self._in_body:
            self._head_bytes += len(portion)
            if self._head_bytes > MAX_HEAD:
                text = f"header too large: more than {MAX_HEAD} bytes"
                self._refuse(b"431 Request Header Fields Too Large", text)
                return 0
        elif self._framing_bytes > MAX_FRAMING:
            text = f"more than {MAX_FRAMING} bytes of chunk extensions or trailer fields"
            self._refuse(b"431 Request Header Fields Too Large", text)
            return 0
        else:
            self._framing_bytes += len(portion)  # until a piece of the body comes
        self._pieces = 0
        was_in_body = self._in_body
        try:
            self.parser.feed_data(portion)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self._is_leaving = True
                self._watch.forget(self)
                self.handle_websocket_upgrade()
            elif rest := portion[upgrade.args[0] :]:
                return self._pieces + self._feed(rest)
        except httptools.HttpParserError:
            if self._plain_head and not was_in_body:
                return self._continue_plainly()
            refusal = self._refusal or RefusedError(b"400 Bad Request", "Invalid HTTP request received.")
            self._refuse(refusal.status, refusal.text)
        if was_in_body and self._in_body and portion.endswith(_END):
            self._false_ends += 1
        return self._pieces

    def _continue_plainly(self) -> int:
        """Parse the header again without its offer of another protocol, then the body.

        curl and Java offer HTTP/2 with each request, and the parser takes a body after that for the new protocol.
        """
        head, self._plain_head = self._plain_head, b""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._head_bytes = 0
        return self._feed(head)

    # -- callbacks of the parser

    def on_message_begin(self) -> None:
        """A request begins; its header must be complete in time."""
        self._in_request = True
        self.number += 1
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The header is complete: check it, then start the application."""
        if len(self.headers) > MAX_FIELDS:
            self._stop_parser(b"431 Request Header Fields Too Large", f"too many headers: more than {MAX_FIELDS}")
        framing = [field for field in self.headers if field[0] in FRAMING_FIELDS]
        if (ambiguity := find_ambiguity(self.parser, self.url, framing)) is not None:
            self._stop_parser(b"400 Bad Request", ambiguity)
        self._body_left = body_length(framing)
        self._plain_head = b""
        if self._body_left != 0 and self.parser.should_upgrade() and not self._should_upgrade():
            self._plain_head = without_upgrade(self.parser.get_method(), self.url, self.headers)
            raise RefusedError(b"", "")  # stops the parser
        if self._watch.is_full:
            self._stop_parser(b"503 Service Unavailable", BUSY)
        self._in_body = True
        self.body_received = self._framing_bytes = self._false_ends = 0
        super().on_headers_complete()
        if self._body_left is None:
            self.headers = []  # for trailer fields, which are dropped: they come after the request was checked
        if self._is_stopping:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Count a piece of the body."""
        size = len(body)
        self.body_received += size
        self._pieces += 1
        self._framing_bytes = 0
        if self._body_left is not None:
            self._body_left -= size
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The body is complete. The next bytes are the next request."""
        self._in_request = self._in_body = False
        self._head_bytes = 0
        super().on_message_complete()
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and cycle.response_complete and not self.parser.should_upgrade():
            # uvicorn cancelled its limit for idle connections when the rest of this body arrived.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _stop_parser(self, status: bytes, text: str) -> None:
        self._refusal = RefusedError(status, text)
        raise self._refusal  # the parser turns it into an error of its own

    # -- what the watch sees and does

    def phase(self) -> Phase:
        """See `WatchedConnection`."""
        if self._is_leaving:
            return Phase.GOODBYE
        if self._in_body:
            return Phase.BODY if self.is_response_pending() else Phase.DISCARD
        if self.is_response_pending():
            return Phase.RESPONSE
        if self._in_request or self._head_bytes or self.number == 0:
            return Phase.HEAD
        return Phase.RESPONSE if self.unsent() else Phase.IDLE

    def is_paused(self) -> bool:
        """See `WatchedConnection`."""
        return self.flow.read_paused or (self.is_response_pending() and self.cycle.waiting_for_100_continue)

    def held(self) -> int:
        """See `WatchedConnection`."""
        body = len(self.cycle.body) if self.is_response_pending() else 0
        return len(self._input) + body + self.transport.unsent()

    def unsent(self) -> int:
        """See `WatchedConnection`."""
        return self.transport.unsent()

    def sent(self) -> int:
        """See `WatchedConnection`."""
        return self.transport.written - self.transport.unsent()

    def time_out(self, reason: str) -> None:
        """See `WatchedConnection`."""
        if self._in_request and reason:
            self._refuse(b"408 Request Timeout", reason)
        else:
            self.transport.close()

    def abort(self) -> None:
        """See `WatchedConnection`."""
        self._abandon()
        self.transport.abort()

    @property
    def is_moving(self) -> bool:
        """True if a request has begun and is not complete, or if the client has not taken all of a response."""
        return self._in_request or bool(self.unsent())

    def is_response_pending(self) -> bool:
        """True if the latest request still waits for its response."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request, although uvicorn declares it
        return cycle is not None and not cycle.response_complete

    # -- refusals

    def _would_confuse(self) -> bool:
        """True if the client would take an error for an earlier response, or for a part of one."""
        return bool(self.pipeline) or (
            self.is_response_pending() and (self.cycle.response_started or not self._in_body)
        )

    def _refuse(self, status: bytes, text: str) -> None:
        """Answer with an error, in the same form as every other error of the API, and close."""
        self._input = b""
        if self.transport.is_closing():
            return
        would_confuse = self._would_confuse()
        self._is_leaving = True
        self._unset_keepalive_if_required()
        self._abandon()
        if would_confuse:
            self.transport.close()
            return
        self._write_error(status, text)
        if self._is_stopping:
            self.transport.close()
            return
        self._end()

    def _says_goodbye(self) -> bool:
        """Before a close: True if the client still sends, so that it is let finish for a moment."""
        if not self._in_body or self._is_leaving or self._is_stopping:
            return False
        self._is_leaving = True
        self._input = b""
        self._end()
        return True

    def _end(self) -> None:
        """Send nothing more, and drop what the client still sends: after a close, its system could drop the error."""
        self.transport.end()
        FlowControl.resume_reading(self.flow)

    def _write_error(self, status: bytes, text: str) -> None:
        self.transport.write(refusal(status, text, is_dispatcher=self._is_dispatcher))

    def _abandon(self) -> None:
        """Tell the application that the client has left."""
        if self.is_response_pending():
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self.flow.resume_writing()
