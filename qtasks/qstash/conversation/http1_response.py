"""Reads one response of HTTP/1.1 from the bytes of a connection (RFC 9112). Without I/O, and strict.

What is ambiguous is refused, because two readers would see two different replies: two lengths, a length beside chunks,
folded header lines, lines that end without a carriage return.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import TYPE_CHECKING

from qtasks.protocol.messages import Headers
from qtasks.qstash.conversation.transport import Reply

if TYPE_CHECKING:
    from zlib import _Decompress

MAX_HEAD = 64 * 1024
"""Bytes of all heads of a response at most, those of interim responses included."""

MAX_LINE = 4096
"""Bytes of the line before a chunk at most, and of all lines after the last one."""

_BEGINNING = b"HTTP/1."
_HEAD = re.compile(
    rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n\0]*)?\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*\r\n)*)\r\n"
)
_LINE = re.compile(r"([^:]+):[ \t]*(.*?)[ \t]*\r\n")
_LENGTH = re.compile(r"[0-9]{1,15}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n\0]*)?")
_END = b"\r\n\r\n"
_ABOUT_TRANSFER = frozenset({"content-length", "transfer-encoding", "connection", "content-encoding"})
_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""Content codings that are understood, although none is asked for; the argument of zlib for each."""

_Parts = Generator[bytes, None, None]
"""Takes the body from the buffer, part by part. An empty part means that more bytes are needed."""


class ResponseError(Exception):
    """The bytes are not a response that this reader accepts. The text follows "no answer, because"."""


class NotHttpError(ResponseError):
    """The first bytes are those of another protocol."""


class ResponseReader:
    """Reads the response to one request: `feed` it what arrives, until `is_complete`."""

    def __init__(self, method: str, most: int) -> None:
        """Read the response to a request with this method; its body may have `most` bytes."""
        self.is_complete = False
        self._has_no_body = method == "HEAD"
        self._most = most
        self._received = bytearray()
        self._head_size = 0
        self._status = 0
        self._headers: Headers = ()
        self._is_last = False
        """True if the server closes the connection after this response."""
        self._ends_with_connection = False
        self._parts: _Parts | None = None
        self._decoder: _Decompress | None = None
        self._is_encoded = False
        """True once the decoder has got anything: a body that is empty has no end to wait for."""
        self._body = bytearray()

    @property
    def has_begun(self) -> bool:
        """True once anything has arrived."""
        return bool(self._received) or self._head_size > 0

    @property
    def can_be_kept(self) -> bool:
        """True if the connection can carry another request: nothing follows the response."""
        return self.is_complete and not self._is_last and not self._received

    def feed(self, data: bytes) -> None:
        """Take bytes from the connection. Raises ResponseError."""
        searched = max(len(self._received) - len(_END), 0)
        self._received += data
        while self._parts is None:
            if not self._read_head(searched):
                return
            searched = 0
        for part in self._parts:
            if not part:
                return
            self._add(part)
        self._finish()

    def end(self) -> None:
        """The server has closed the connection. Raises ResponseError if that is not the end of the response."""
        if self._ends_with_connection and self._parts is not None:
            self._finish()
        if not self.is_complete:
            where = "in the middle of its answer" if self.has_begun else "without an answer"
            raise ResponseError(f"it closed the connection {where}")

    def reply(self) -> Reply:
        """The response, once it is complete."""
        return Reply(self._status, self._headers, bytes(self._body))

    def _read_head(self, searched: int) -> bool:
        """Read a head that has arrived as a whole; those of interim responses are skipped."""
        received = self._received
        if not received.startswith(_BEGINNING) and not _BEGINNING.startswith(bytes(received[: len(_BEGINNING)])):
            raise NotHttpError("its answer is not HTTP")
        size = received.find(_END, searched) + len(_END)
        if size < len(_END) or self._head_size + size > MAX_HEAD:
            if self._head_size + len(received) > MAX_HEAD:
                raise ResponseError(f"the head of its answer is larger than {MAX_HEAD} bytes")
            if received.find(b"\n\n", searched) >= 0:
                raise ResponseError("the lines of its answer do not end as in HTTP")
            return False
        head = _HEAD.fullmatch(received, 0, size)
        if head is None:
            raise ResponseError("the head of its answer is not valid")
        version, status, lines = head.groups()
        del received[:size]
        self._head_size += size
        if status[:1] == b"1":
            if status == b"101":
                raise ResponseError("it changed to another protocol")
            return bool(received)
        self._status, self._headers = int(status), tuple(_LINE.findall(_text(lines)))
        self._parts = self._framed(version)
        return True

    def _framed(self, version: bytes) -> _Parts:
        """How the body is transferred; sets what the head says about the connection."""
        about: dict[str, list[str]] = {}
        for name, value in self._headers:
            if (lowered := name.lower()) in _ABOUT_TRANSFER:
                about.setdefault(lowered, []).append(value)
        lengths, codings = about.get("content-length"), about.get("transfer-encoding")
        self._is_last = version == b"0" or ("connection" in about and _says_close(about["connection"]))
        if self._has_no_body or self._status in (204, 304):
            return _counted(self._received, 0)
        if "content-encoding" in about:
            self._decoder = _decoder(about["content-encoding"])
        if codings is not None:
            if [coding.lower() for coding in codings] != ["chunked"] or lengths is not None or version == b"0":
                raise ResponseError("it does not say clearly how its answer is transferred")
            return _chunked(self._received)
        if lengths is not None:
            if len(lengths) > 1 or _LENGTH.fullmatch(lengths[0]) is None:
                raise ResponseError("the length of its answer is not clear")
            if self._decoder is None and int(lengths[0]) > self._most:
                raise self._too_large()
            return _counted(self._received, int(lengths[0]))
        self._is_last = self._ends_with_connection = True
        return _endless(self._received)

    def _add(self, part: bytes) -> None:
        if self._decoder is not None:
            import zlib

            self._is_encoded = True
            try:
                part = self._decoder.decompress(part, self._most - len(self._body) + 1)
            except zlib.error:
                raise ResponseError("its answer cannot be decompressed") from None
            if self._decoder.unused_data:  # the decoder would keep all of it
                raise ResponseError("something follows its compressed answer")
        if len(self._body) + len(part) > self._most:
            raise self._too_large()
        self._body += part

    def _finish(self) -> None:
        if self._decoder is not None and self._is_encoded and not self._decoder.eof:
            raise ResponseError("its compressed answer is not complete")
        self.is_complete = True

    def _too_large(self) -> ResponseError:
        return ResponseError(f"its reply is larger than {self._most} bytes")


def _counted(received: bytearray, length: int) -> _Parts:
    while length:
        part = bytes(received[:length])
        del received[: len(part)]
        length -= len(part)
        yield part


def _endless(received: bytearray) -> _Parts:
    while True:
        part = bytes(received)
        received.clear()
        yield part


def _chunked(received: bytearray) -> _Parts:
    while True:
        while (end := received.find(b"\r\n")) < 0:
            _check_line(received)
            yield b""
        size = _CHUNK.fullmatch(received, 0, end)
        if size is None or end > MAX_LINE:
            raise ResponseError("a chunk of its answer is not valid")
        length = int(size[1], 16)
        del received[: end + 2]
        if length == 0:
            break
        yield from _counted(received, length)
        while len(received) < 2:
            yield b""
        if received[:2] != b"\r\n":
            raise ResponseError("a chunk of its answer has another length than it says")
        del received[:2]
    allowed = MAX_LINE
    while (end := received.find(b"\r\n")) != 0:
        if end < 0:
            _check_line(received)
            yield b""
        elif (allowed := allowed - end) < 0:
            raise ResponseError("its answer has too many lines after the last chunk")
        else:
            del received[: end + 2]
    del received[:2]


def _check_line(received: bytearray) -> None:
    if len(received) > MAX_LINE:
        raise ResponseError("a line between the chunks of its answer is too long")


def _decoder(codings: list[str]) -> _Decompress | None:
    coding = ", ".join(codings).lower()
    if coding == "identity":
        return None
    if coding not in _WINDOWS:
        raise ResponseError(f"its answer has the content coding {coding[:40]!r}, which was not asked for")
    import zlib  # no server that is asked for plain bytes needs it

    return zlib.decompressobj(_WINDOWS[coding])


def _says_close(values: list[str]) -> bool:
    return any(option.strip().lower() == "close" for value in values for option in value.split(","))


def _text(lines: bytes) -> str:
    try:
        return lines.decode()
    except UnicodeDecodeError:
        return lines.decode("latin-1")
