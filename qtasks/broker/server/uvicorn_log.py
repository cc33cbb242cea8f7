"""uvicorn's warnings about requests that it cannot read. Strangers cause them, so they are counted."""

from __future__ import annotations

import logging
from typing import Final

from qtasks.counted_log import CountedLog

_BEGINNINGS: Final = ("Invalid HTTP request", "Unsupported upgrade request", "No supported WebSocket library")
"""How the texts of these warnings begin. They contain nothing of the request."""


class _CountedWarnings(logging.Filter):
    """Passes on everything but these warnings, which `qtasks.http` logs in their place: the first, then the number."""

    def __init__(self) -> None:
        super().__init__()
        self._counted = CountedLog(logging.getLogger("qtasks.http"))

    def filter(self, record: logging.LogRecord) -> bool:
        text = str(record.msg)
        beginning = next((beginning for beginning in _BEGINNINGS if text.startswith(beginning)), None)
        if beginning is None or record.levelno != logging.WARNING:
            return True
        self._counted.warning(f'times "{beginning}"', "%s", text)
        return False


_COUNTED: Final = _CountedWarnings()


def count_warnings() -> None:
    """Count uvicorn's warnings in this process from now on. Idempotent."""
    logging.getLogger("uvicorn.error").addFilter(_COUNTED)
