"""Output that never blocks: a server continues when its terminal, pipe or log is full or closed."""

from __future__ import annotations

import os
import queue
import threading
from typing import Final, Protocol, TextIO

MAX_QUEUED_WRITES: Final = 10_000
"""Writes that may wait to be read. When the queue is full, new writes are dropped and counted."""
CLOSE_TIMEOUT_S: Final = 0.5
"""Seconds that `close` waits for the queued output to be written."""


class TextStream(Protocol):
    """The methods of a text stream that are used here."""

    @property
    def encoding(self) -> str:
        """The encoding of the stream."""

    def write(self, text: str, /) -> int:
        """Write `text`; return its number of characters."""

    def flush(self) -> None:
        """Write what is buffered."""

    def isatty(self) -> bool:
        """True if the stream is a terminal."""


class NonBlockingStream:
    """A text stream whose `write` never blocks: a thread does the writing. What does not fit its queue is dropped.

    The thread writes to the file descriptor, not through `stream`: a blocked write would hold the lock of `stream` for
    ever. With None as `stream` (the program was started without one) all output is discarded.
    """

    def __init__(self, stream: TextIO | None, limit: int = MAX_QUEUED_WRITES) -> None:
        self.encoding = "utf-8" if stream is None else stream.encoding
        self._terminal = stream.fileno() if stream is not None and stream.isatty() else None
        self._queue: queue.Queue[bytes | None] = queue.Queue(limit)
        self._dropped = 0
        self._thread: threading.Thread | None = None
        if stream is not None:
            stream.flush()
            # A duplicate: a write may still be blocked when `stream` is closed and its descriptor number is reused.
            self._thread = threading.Thread(target=self._work, args=(os.dup(stream.fileno()),), daemon=True)
            self._thread.start()

    def write(self, text: str, /) -> int:
        """Queue `text`, or drop it if the queue is full."""
        if self._thread is not None:
            try:
                self._queue.put_nowait(text.encode(self.encoding, "replace"))
            except queue.Full:
                self._dropped += 1
        return len(text)

    def line(self, text: str = "") -> None:
        """Write `text` and a line feed."""
        self.write(text + "\n")

    def flush(self) -> None:
        """Does nothing: the thread writes as soon as it can."""

    def isatty(self) -> bool:
        """True if the underlying stream is a terminal."""
        return self._terminal is not None

    def columns(self) -> int | None:
        """The width of the terminal; None if the underlying stream is not a terminal."""
        return None if self._terminal is None else terminal_columns(self._terminal)

    def close(self) -> None:
        """Wait up to `CLOSE_TIMEOUT_S` for the queued output to be written. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            try:
                self._queue.put_nowait(None)
            except queue.Full:
                return
            thread.join(CLOSE_TIMEOUT_S)

    def _work(self, descriptor: int) -> None:
        try:
            while (data := self._queue.get()) is not None:
                _write(descriptor, data)
                if self._dropped:
                    dropped, self._dropped = self._dropped, 0
                    _write(descriptor, f"({dropped} more were not shown)\n".encode())
        except OSError:
            self._thread = None  # the reader has closed its end: nothing can be written any more
        finally:
            os.close(descriptor)


def terminal_columns(descriptor: int) -> int | None:
    """The width of the terminal behind a descriptor, in characters; None if it has none, or does not tell it."""
    try:
        return os.get_terminal_size(descriptor).columns or None
    except OSError:
        return None


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
