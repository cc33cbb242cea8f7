"""What has happened to calls since the test began, as the broker tells it after each commit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from qtasks.broker.events import MessageEvent
from qtasks.protocol.messages import State
from qtasks.tasks.task import Task
from qtasks.testing.calls import Call, call_of

_ENDS: Final = frozenset({State.DELIVERED, State.FAILED, State.CANCELED})


class Ledger:
    """A watcher of the broker's events; read from any thread."""

    def __init__(self, base_url: str, tasks: Mapping[str, Task[..., Any]]) -> None:
        self._base_url = base_url
        self._tasks = tasks
        self._changed = threading.Condition()
        self._calls: dict[str, Call] = {}
        self._open: dict[str, int] = {}
        """When each message is due that has not ended, those that go elsewhere included."""
        self._active: set[str] = set()

    def __call__(self, event: MessageEvent) -> None:
        """Take note of an event."""
        message = event.message
        with self._changed:
            if event.state is State.CREATED:
                if (call := call_of(message, self._base_url, self._tasks)) is not None:
                    self._calls[message.id] = call
                self._open[message.id] = message.not_before_ms
            elif event.state is State.ACTIVE:
                self._active.add(message.id)
            else:
                self._active.discard(message.id)
                if event.state in _ENDS:
                    self._open.pop(message.id, None)
                elif event.next_delivery_ms is not None:
                    self._open[message.id] = event.next_delivery_ms
            self._changed.notify_all()

    @property
    def calls(self) -> list[Call]:
        """All calls, in the order in which they were sent."""
        with self._changed:
            return list(self._calls.values())

    def of_message(self, message_id: str) -> Call | None:
        """The call that a message carries."""
        return self._calls.get(message_id)

    def of_call(self, key: str) -> Call | None:
        """The latest message of a call, by the call's id or the message's."""
        return self._calls.get(key) or next((call for call in reversed(self.calls) if call.id == key), None)

    def due_ms(self, call: Call) -> int | None:
        """When the next attempt is due; None for a call that has ended."""
        return self._open.get(call.message_id)

    def wait_until(self, done: Callable[[Mapping[str, int], int], bool], timeout_s: float) -> bool:
        """Wait for what `done` says of the open messages and the number of attempts under way; whether it came."""
        with self._changed:
            return self._changed.wait_for(lambda: done(self._open, len(self._active)), timeout_s)
