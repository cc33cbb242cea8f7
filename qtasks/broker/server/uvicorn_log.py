"""uvicorn's lines about requests that it cannot read, or that end early. Strangers cause them, so they are counted.

They come from its own protocols, for HTTP without httptools and for websockets; `GuardedProtocol` writes none.
"""

from __future__ import annotations

import logging
from typing import Final

from qtasks.counted_log import CountedLog

_BEGINNINGS: Final = (
    "Invalid HTTP request",
    "Unsupported upgrade request",
    "No supported WebSocket library",
    "opening handshake failed",
)
"""How the texts of these lines begin. They contain nothing of the request."""
_DEPARTURES: Final = frozenset({"ClientDisconnect", "WebSocketDisconnect"})
"""Exceptions of Starlette in a route of the application: its client has left before the end."""


_NO_ROOM: Final = "NoRoomForResponse"
"""The exception of `asgi` for a response that it ends."""


class CountedLines(logging.Filter):
    """Passes on everything but these lines, which `qtasks.http` logs in their place: the first, then the number."""

    def __init__(self) -> None:
        super().__init__()
        self._counted = CountedLog(logging.getLogger("qtasks.http"))

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a line that is counted."""
        error = None if record.exc_info is None else record.exc_info[1]
        if type(error).__name__ in _DEPARTURES:
            kind = "clients that left while the application read from them"
            self._counted.write(record.levelno, kind, "a client left while it was read from", with_traceback=True)
            return False
        if type(error).__name__ == _NO_ROOM:
            self._counted.warning("responses that were ended", "a response was ended: too many are read slowly")
            return False
        text = str(record.msg)
        beginning = next((beginning for beginning in _BEGINNINGS if text.startswith(beginning)), None)
        if beginning is None:
            return True
        self._counted.warning(f'times "{beginning}"', "%s", text)
        return False


_COUNTED: Final = CountedLines()


def count_lines() -> None:
    """Count these lines in this process from now on. Idempotent."""
    logging.getLogger("uvicorn.error").addFilter(_COUNTED)
