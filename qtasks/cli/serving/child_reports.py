"""What an application process under `qtasks dev` reports to the terminal of its parent: failures and own requests.

The parent prints one line for each end of an attempt; the traceback of the user's code is folded under that line. So
the log lines of the dispatcher about failures are not printed a second time.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from qtasks.tasks.ports import ASGIApp, Receive, Scope, Send
from qtasks.user_frames import causes, one_line, user_frames

_REPORTED: Final = frozenset({"failed", "retry", "interrupted"})
"""The actions of log records about which the parent prints a line of its own."""


class ReportPipe:
    """Writes reports to a descriptor, one line of JSON each. May be used from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def send(self, facts: dict[str, Any]) -> None:
        """Write one report; nothing happens if the parent has ended."""
        data = json.dumps(facts).encode() + b"\n"
        with self._lock, suppress(OSError):
            while data:
                data = data[os.write(self._descriptor, data) :]


class FailureReports(logging.Filter):
    """A filter of the dispatcher's logger: reports failures, and keeps their records away from the terminal."""

    def __init__(self, reports: ReportPipe, folder: str) -> None:
        super().__init__()
        self._reports = reports
        self._folder = folder

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a record that would be printed a second time."""
        message_id = getattr(record, "message_id", None)
        if getattr(record, "action", None) not in _REPORTED or not isinstance(message_id, str):
            return True
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            lines = list(folded_traceback(error, self._folder))
            self._reports.send({"failure": {"message_id": message_id, "lines": lines}})
        return _has_other_place(logging.getLogger(record.name))


def _has_other_place(logger: logging.Logger) -> bool:
    """True if the records of `logger` go to a place other than the terminal, such as a file."""
    handlers: list[logging.Handler] = []
    current: logging.Logger | None = logger
    while current is not None:
        handlers += current.handlers
        current = current.parent if current.propagate else None
    terminal = (sys.stdout, sys.stderr)
    return any(getattr(handler, "stream", None) not in terminal for handler in handlers)


def folded_traceback(error: BaseException, folder: str) -> Iterator[str]:
    """The user's frames of an exception and of its causes, a line each: ``tasks.py:31 in charge: client.post(url)``.

    Paths below `folder` are relative to it. An exception without a frame of the user shows its innermost frame.
    """
    for number, cause in enumerate(causes(error)):
        if number:
            yield one_line(f"caused by {type(cause).__name__}: {cause}")
        for place, source in user_frames(cause, folder, with_source=True):
            yield one_line(f"{place}: {source}" if source else place)


class OwnRequests:
    """Reports the application's own requests: every one but the deliveries of the broker."""

    def __init__(self, app: ASGIApp, reports: ReportPipe) -> None:
        self._app = app
        self._reports = reports

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, and report it when its response has begun."""
        if scope["type"] != "http" or any(name == b"upstash-signature" for name, _ in scope["headers"]):
            await self._app(scope, receive, send)
            return
        began_s = time.monotonic()

        async def send_and_report(event: Any) -> None:
            if event["type"] == "http.response.start":
                spent_ms = (time.monotonic() - began_s) * 1000
                facts = {"method": scope["method"], "path": scope["path"], "status": event["status"], "ms": spent_ms}
                self._reports.send({"request": facts})
            await send(event)

        await self._app(scope, receive, send_and_report)
