"""Writes that belong together leave together."""

from __future__ import annotations

import asyncio
from typing import Any, Final

_ENOUGH: Final = 64 * 1024
"""Bytes that are not held back any more: what comes after them must feel whether the other side reads."""


class CoalescingTransport:
    """A transport that sends what one turn of the event loop writes in one piece.

    uvicorn writes the head of an answer and its body one after the other. Sent like that they cost two system calls
    here, and wake whoever waits for them twice.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes] = []
        self._size = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send `data` with whatever else is written in this turn."""
        if not self._pieces:
            self._loop.call_soon(self._send)
        self._pieces.append(data)
        self._size += len(data)
        if self._size >= _ENOUGH:
            self._send()

    def close(self) -> None:
        """Send what was written, then close."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._pieces:
            data = b"".join(self._pieces)
            self._pieces.clear()
            self._size = 0
            self._transport.write(data)
