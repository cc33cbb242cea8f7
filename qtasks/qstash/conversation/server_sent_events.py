"""Server-sent events, as far as a streamed answer of a language model needs them: bytes in, pieces of data out."""

from __future__ import annotations

MAX_EVENT = 4 * 1024 * 1024
"""Longest event in bytes; a piece of an answer has a few hundred."""


class EventDecoder:
    """Cuts a byte stream into the data of its events. Fed piece by piece; it does not matter where the pieces end.

    Lines may end in LF, CR LF or CR; an event ends with an empty line, or with the stream. Comments and fields other
    than `data` are passed over.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self.seen = 0
        """Bytes that came."""
        self.events = 0
        """Events that were made of them."""

    def feed(self, piece: bytes) -> list[bytes]:
        """The events that end within `piece`. Raises ValueError for one that is too long."""
        self.seen += len(piece)
        text = self._rest + piece
        # A CR at the very end may be the first half of CR LF: it waits for what follows.
        held = b"\r" if text.endswith(b"\r") else b""
        *lines, rest = text.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = rest + held
        if len(self._rest) + sum(map(len, self._data)) > MAX_EVENT:
            raise ValueError(f"an event is longer than {MAX_EVENT} bytes")
        return [event for line in lines if (event := self._line(line)) is not None]

    def end(self) -> list[bytes]:
        """The event that the stream ended in, if any."""
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
