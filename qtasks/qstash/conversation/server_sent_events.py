"""A decoder for server-sent events, limited to what streamed answers of language models use."""

from __future__ import annotations

MAX_EVENT = 4 * 1024 * 1024
"""Bytes of an event at most. A chunk of an answer has a few hundred."""


class EventDecoder:
    """Converts a byte stream into the data of its events. The bytes may arrive in pieces of any size.

    Lines may end in LF, CR LF or CR. An event ends with an empty line or with the stream. Comments and fields other
    than `data` are ignored.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self.seen = 0
        """Bytes received so far."""
        self.events = 0
        """Events decoded so far."""

    def feed(self, piece: bytes) -> list[bytes]:
        """Add the next bytes and return the data of completed events. Raises ValueError for too long an event."""
        self.seen += len(piece)
        text = self._rest + piece
        # A CR at the end may be the first half of CR LF: keep it until the next piece arrives.
        held = b"\r" if text.endswith(b"\r") else b""
        *lines, rest = text.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = rest + held
        if len(self._rest) + sum(map(len, self._data)) > MAX_EVENT:
            raise ValueError(f"an event is longer than {MAX_EVENT} bytes")
        return [event for line in lines if (event := self._line(line)) is not None]

    def end(self) -> list[bytes]:
        """The data of the event that the end of the stream completes, if there is one."""
        lines = [self._rest.removesuffix(b"\r"), b""]
        self._rest = b""
        return [event for line in lines if (event := self._line(line)) is not None]

    def _line(self, line: bytes) -> bytes | None:
        if line:
            field, _, value = line.partition(b":")
            if field == b"data":
                self._data.append(value.removeprefix(b" "))
            return None
        if not self._data:
            return None
        event = b"\n".join(self._data)
        self._data = []
        self.events += 1
        return event
