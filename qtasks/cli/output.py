"""Output that nobody waits for: a server goes on when its terminal, pipe or log is full or gone."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
from typing import Final, Protocol, TextIO

MAX_QUEUED_WRITES: Final = 10_000
"""Writes that may wait for a reader; beyond them the newest are dropped, and counted."""
CLOSE_TIMEOUT_S: Final = 0.5
"""How long the end of a program waits for its output to be taken."""
_FORMAT: Final = "%(asctime)s %(levelname)s %(message)s"


class TextStream(Protocol):
    """What we need of a text stream."""

    @property
    def encoding(self) -> str:
        """What text becomes bytes by."""

    def write(self, text: str, /) -> int:
        """Take `text`; how many characters that was."""

    def flush(self) -> None:
        """Have it out."""

    def isatty(self) -> bool:
        """Whether a person may be looking."""


class NonBlockingStream:
    """A text stream whose `write` never waits: a thread of its own does, and drops what a full queue cannot hold.

    It writes to the descriptor and not through `stream`, whose lock would be held for ever by a blocked write.
    None as `stream` (a program started without one) takes everything and shows nothing.
    """

    def __init__(self, stream: TextIO | None, limit: int = MAX_QUEUED_WRITES) -> None:
        self.encoding = "utf-8" if stream is None else stream.encoding
        self._terminal = stream is not None and stream.isatty()
        self._queue: queue.Queue[bytes | None] = queue.Queue(limit)
        self._dropped = 0
        self._thread: threading.Thread | None = None
        if stream is not None:
            stream.flush()
            # A descriptor of its own: a write may still wait when `stream` is closed and its number given away.
            self._thread = threading.Thread(target=self._work, args=(os.dup(stream.fileno()),), daemon=True)
            self._thread.start()

    def write(self, text: str, /) -> int:
        """Take `text`, or drop it when nobody has read for long."""
        if self._thread is not None:
            try:
                self._queue.put_nowait(text.encode(self.encoding, "replace"))
            except queue.Full:
                self._dropped += 1
        return len(text)

    def line(self, text: str = "") -> None:
        """Write a line."""
        self.write(text + "\n")

    def flush(self) -> None:
        """Nothing to do: whoever writes does not wait."""

    def isatty(self) -> bool:
        """As the stream underneath."""
        return self._terminal

    def close(self) -> None:
        """Wait a moment for what was written to be taken. Idempotent."""
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
            self._thread = None  # the reader has gone, and with it the need to say anything
        finally:
            os.close(descriptor)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


class _OneLineFormatter(logging.Formatter):
    """Records as lines: what strangers put into a message cannot begin a line of its own or steer a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        line = super().formatMessage(record)
        return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """What a stop has cut off is told in a line by whoever cut it; uvicorn adds forty for each."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def log_to(stream: TextStream) -> None:
    """Send this process's log to `stream`, unless the application has said already where it goes."""
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(_OneLineFormatter(_FORMAT))
        handler.addFilter(_is_no_cancellation)
        root.addHandler(handler)
