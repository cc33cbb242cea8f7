"""Joins the writes of one response, so that it costs one system call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

_FLUSH_SIZE: Final = 64 * 1024
"""Bytes that are written at once, so that flow control of the connection works for large bodies."""


class CoalescingTransport:
    """A transport that joins all writes of one iteration of the event loop.

    uvicorn writes the head of a response and its body separately. Sent separately, they cost two system calls and wake
    the client twice.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        postpones_close: Callable[[], bool] = lambda: False,
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._postpones_close = postpones_close
        self._is_ended = False
        self._pieces: list[bytes] = []
        self._size = 0
        self.written = 0
        """Bytes written so far."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send `data`, joined with all other writes of this iteration of the event loop. Dropped after the end."""
        if self._is_ended:
            return
        if not self._pieces:
            self._loop.call_soon(self._send)
        self._pieces.append(data)
        self._size += len(data)
        self.written += len(data)
        if self._size >= _FLUSH_SIZE:
            self._send()

    def unsent(self) -> int:
        """Bytes that the system has not taken yet."""
        return self._size + self._transport.get_write_buffer_size()

    def is_closing(self) -> bool:
        """True if nothing more is sent."""
        return self._is_ended or self._transport.is_closing()

    def end(self) -> None:
        """Send all data written so far and the end of data; continue to read."""
        self._send()
        self._is_ended = True
        if not self._transport.is_closing():
            self._transport.write_eof()

    def close(self) -> None:
        """Send all data written so far, then close, unless `postpones_close` does it later."""
        if self._postpones_close():
            return
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._pieces:
            data = b"".join(self._pieces)
            self._pieces.clear()
            self._size = 0
            if not self._transport.is_closing():  # it may have been aborted since the write
                self._transport.write(data)
