"""Output that never blocks: a server continues when its terminal, pipe or log is full or closed."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
from typing import Final, Protocol, TextIO

MAX_QUEUED_WRITES: Final = 10_000
"""Writes that may wait to be read. When the queue is full, new writes are dropped and counted."""
CLOSE_TIMEOUT_S: Final = 0.5
"""Seconds that `close` waits for the queued output to be written."""
_FORMAT: Final = "%(asctime)s %(levelname)s %(message)s"


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
        self._terminal = stream is not None and stream.isatty()
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
        return self._terminal

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


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


class _OneLineFormatter(logging.Formatter):
    """One line for each record: text of other parties in a message cannot start a new line or control the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        line = super().formatMessage(record)
        return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def _is_not_cancelled(record: logging.LogRecord) -> bool:
    """False for the traceback of a cancelled request: the code that cancels logs one line; uvicorn would add forty."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def log_to(stream: TextStream) -> None:
    """Send the log of this process to `stream`, unless the application has configured logging already."""
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(_OneLineFormatter(_FORMAT))
        handler.addFilter(_is_not_cancelled)
        root.addHandler(handler)
