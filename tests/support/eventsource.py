"""`EventSource` as browsers implement it (WHATWG HTML 9.2): reads events and reconnects when a stream ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

PATIENCE_S = 10.0


@dataclass(frozen=True)
class Event:
    name: str
    id: str
    text: str

    @property
    def data(self) -> Any:
        return json.loads(self.text)


class EventSource:
    """Connects when the first event is read, and reconnects without waiting.

    `retry_ms` is how long a browser would wait. `on_comment` receives comments, which a browser drops.
    """

    def __init__(self, url: str, on_comment: Callable[[str], object] = lambda _: None) -> None:
        self.url = url
        self.status = 0
        """The status of the latest answer."""
        self.connections = 0
        self.retry_ms: int | None = None
        self._on_comment = on_comment
        self.last_event_id = ""
        self._client = httpx.Client(timeout=PATIENCE_S)
        self._events = self._listen()

    def __iter__(self) -> Iterator[Event]:
        return self._events

    def __next__(self) -> Event:
        return next(self._events)

    def _listen(self) -> Iterator[Event]:
        while True:
            headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
            if self.last_event_id:
                headers["Last-Event-ID"] = self.last_event_id
            with self._client.stream("GET", self.url, headers=headers) as answer:
                self.connections += 1
                self.status = answer.status_code
                if self.status != 200 or not answer.headers["Content-Type"].startswith("text/event-stream"):
                    return
                yield from self._events_of(answer)

    def _events_of(self, answer: httpx.Response) -> Iterator[Event]:
        name, event_id = "", self.last_event_id
        lines: list[str] = []
        for line in answer.iter_lines():
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line:
                self.last_event_id = event_id
                if lines:
                    yield Event(name or "message", event_id, "\n".join(lines))
                name, lines = "", []
            elif not field:
                self._on_comment(value)
            elif field == "event":
                name = value
            elif field == "data":
                lines.append(value)
            elif field == "id":
                event_id = value
            elif field == "retry" and value.isdigit():
                self.retry_ms = int(value)

    def close(self) -> None:
        """Disconnect, as a browser does when the user leaves the page."""
        self._events.close()  # type: ignore[attr-defined]  # it is a generator
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
