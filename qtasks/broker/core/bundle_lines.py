"""The response to a bundle, line by line and within bounds, and what its times say about the connection. Pure."""

from __future__ import annotations

from typing import Final

from qtasks.protocol import bundles, strict_json
from qtasks.protocol.bundles import ItemOutcome, StillRunning
from qtasks.protocol.messages import MAX_BODY, Headers

MAX_LINE: Final = 4 * MAX_BODY
"""Bytes of one line at most. JSON may write a byte of a response as six."""
MAX_HEADERS: Final = 128
MAX_HEADER_BYTES: Final = 64 * 1024
"""Header lines of one outcome, and their bytes together: as many as a single response may have."""
MAX_REPORT: Final = 1024
"""Bytes of a line without an outcome at most."""
MAX_REPORTS: Final = 4_096
"""Lines without an outcome in one response at most; in two hours there are 1,440."""
PROVES_FROM_MS: Final = 500
"""Only a delivery that took this long shows whether its line was held back: a busy broker reads quick ones together."""
_SHORT: Final = 16 * 1024
"""Bytes of a line that is read in two milliseconds at most."""
_MAX_STRINGS: Final = 1_000
"""Strings in a longer line at most. An outcome with all header lines has a quarter of that."""
_MAX_VALUES: Final = 2_000
"""Values in a longer line at most, about."""


class BundleLines:
    """Reads the pieces of a response to a bundle of `count` deliveries."""

    def __init__(self, count: int) -> None:
        self.missing = set(range(count))
        """The places of the deliveries that have no outcome yet."""
        self.fault: str | None = None
        """How the response breaks the protocol; None if it does not."""
        self._unfinished: list[bytes] = []
        self._size = 0
        self._reports = 0
        self._first_s: float | None = None
        self._last_s = 0.0
        self._longest_ms = 0

    @property
    def has_begun(self) -> bool:
        """True if a line has arrived."""
        return self._first_s is not None

    def is_held_back(self) -> bool:
        """True if the times of the lines show that something between here and the dispatcher holds them back.

        A line says when it was sent. Lines that were sent apart and arrive together were held back.
        """
        if self._first_s is None or self._longest_ms < PROVES_FROM_MS:
            return False
        return (self._last_s - self._first_s) * 1000 < self._longest_ms / 2

    def feed(self, piece: bytes, now_s: float) -> list[ItemOutcome]:
        """The outcomes that `piece`, which arrives at `now_s` (monotonic), completes.

        After a fault nothing more is read.
        """
        outcomes: list[ItemOutcome] = []
        if self.fault is not None:
            return outcomes
        *ends, rest = piece.split(b"\n")
        for line in ends:
            if self._unfinished:
                line = b"".join((*self._unfinished, line))
                self._unfinished.clear()
            self.fault = self._read(line, outcomes, now_s)
            if self.fault is not None:
                return outcomes
        self._size = len(rest) + (0 if ends else self._size)
        if self._size > MAX_LINE:
            self.fault = f"it has a line of more than {MAX_LINE} bytes"
        elif rest:
            self._unfinished.append(rest)
        return outcomes

    def _read(self, line: bytes, outcomes: list[ItemOutcome], now_s: float) -> str | None:
        """Read one line. Return the fault, if it has one."""
        if len(line) > _SHORT and _has_many_values(line):
            return "it has a line of more values than an outcome has"
        try:
            read = bundles.read_line(line)
        except ValueError as error:
            return str(error)
        if self._first_s is None:
            self._first_s = now_s
        self._last_s = now_s
        if isinstance(read, StillRunning):
            self._reports += 1
            if len(line) > MAX_REPORT:
                return f"it has a line without an outcome of more than {MAX_REPORT} bytes"
            return f"it has more than {MAX_REPORTS} lines without an outcome" if self._reports > MAX_REPORTS else None
        if len(read.headers) > MAX_HEADERS or (len(line) > MAX_HEADER_BYTES and _size(read.headers) > MAX_HEADER_BYTES):
            return f"an outcome has more than {MAX_HEADERS} header lines, or more than {MAX_HEADER_BYTES} bytes of them"
        if read.place not in self.missing:
            return f"it has an outcome for place {read.place}, which has one already or does not exist"
        self.missing.discard(read.place)
        self._longest_ms = max(self._longest_ms, read.after_ms)
        outcomes.append(read)
        return None


def _has_many_values(line: bytes) -> bool:
    """True for a line that takes long to read: many values, where an outcome is mostly one text."""
    if line.count(b'"') - line.count(b'\\"') > 2 * _MAX_STRINGS:
        return True
    outside = strict_json.outside_strings(line)
    return sum(map(outside.count, (b"[", b"{", b","))) > _MAX_VALUES


def _size(headers: Headers) -> int:
    return sum(len(name) + len(value) for name, value in headers)
