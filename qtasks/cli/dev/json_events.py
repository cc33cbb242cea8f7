"""What happens under `qtasks dev` as JSON: one object a line for each event (docs/cli.md)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from qtasks.broker.events import MessageEvent
from qtasks.cli.dev.terminal import Detail, EventPrinter, result_text
from qtasks.protocol.messages import Response, State


class JsonEventPrinter(EventPrinter):
    """Prints the events that the text form prints, with values shortened and secrets masked as there."""

    def print_request(self, method: str, path: str, status: int, took_ms: float, *, now_ms: int) -> None:
        """Print a request that the application has answered, and that was not a delivery."""
        facts = {"method": method, "path": path, "status": status, "durationMs": took_ms}
        self.write([json_line(now_ms, event="request", **facts)])

    def _show(self, event: MessageEvent, _: Detail, frames: Sequence[str], /) -> None:
        message, has_failed = event.message, event.state in (State.RETRY, State.FAILED)
        facts = {
            "messageId": message.id,
            "callId": message.options.call_id,
            "task": self._task(message),
            "destination": self._name(message),
            "attempt": None if event.state is State.CREATED else message.retried + 1,
            "attempts": message.max_retries + 1,
            "arguments": self._arguments(message) if event.state is State.CREATED else None,
            "durationMs": event.duration_ms,
            "status": event.outcome.status if isinstance(event.outcome, Response) else None,
            "result": result_text(event) if event.state is State.DELIVERED else None,
            "error": self._error(event) if has_failed else None,
            "frames": list(frames) or None,
            "nextMs": event.next_delivery_ms,
        }
        self.write([json_line(event.time_ms, event=event.state.value.lower(), **facts)])


def json_line(time_ms: int, **facts: object) -> str:
    """One line: the time (UTC), and those of the facts that are known. ASCII, so that every stream can take it."""
    time = datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    members: dict[str, Any] = {name: value for name, value in facts.items() if value is not None}
    return json.dumps({"time": time, **members}, default=str)


def json_speaker(line: Callable[[str], object], now_ms: Callable[[], int]) -> Callable[[str], None]:
    """What prints a remark of `qtasks dev` by `line` as a line of the log has it."""

    def say(text: str) -> None:
        line(json_line(now_ms(), level="info", logger="qtasks.dev", message=text))

    return say
