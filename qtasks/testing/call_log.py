"""What has happened to calls since the test began, as the broker tells it after each commit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Mapping
from typing import Any, Final

from qtasks.broker.events import MessageEvent
from qtasks.protocol.messages import Message, State
from qtasks.tasks.task import Task
from qtasks.testing.sent_call import Call, address_of, call_of

_ENDS: Final = frozenset({State.DELIVERED, State.FAILED, State.CANCELED})


class Ledger:
    """A watcher of the broker's events; read from any thread. `kept` finds what was too large to travel."""

    def __init__(self, base_url: str, tasks: Mapping[str, Task[..., Any]], kept: Callable[[str], str | None]) -> None:
        self._base_url = base_url
        self._tasks = tasks
        self._kept = kept
        self._changed = threading.Condition()
        self._sent: list[Call] = []
        self._by_id: dict[str, Call] = {}
        self._by_message: dict[str, Call] = {}
        self._open: dict[str, int] = {}
        """When each message is due that has not ended, those included that are no calls."""
        self._active: set[str] = set()

    def __call__(self, event: MessageEvent) -> None:
        """Take note of an event."""
        message = event.message
        with self._changed:
            if event.state is State.CREATED:
                self._open[message.id] = message.not_before_ms
                self._file(message)
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
            return list(self._sent)

    def of_message(self, message_id: str) -> Call | None:
        """The call that a message makes, or is a part of."""
        return self._by_message.get(message_id)

    def of_call(self, key: str) -> Call | None:
        """The call with that id, or with a message of that id; the latest where it was put off."""
        return self._by_id.get(key) or self._by_message.get(key)

    def due_ms(self, call: Call, off: Container[str] = ()) -> int | None:
        """When its next attempt is due; None for a call that has ended. `off` are messages that were called off."""
        with self._changed:
            left = [
                due_ms for one, due_ms in self._open.items() if one not in off and self._by_message.get(one) is call
            ]
        return min(left, default=None)

    def wait_until(self, done: Callable[[Mapping[str, int], int], bool], timeout_s: float) -> bool:
        """Wait for what `done` says of the open messages and the number of attempts under way; whether it came."""
        with self._changed:
            return self._changed.wait_for(lambda: done(self._open, len(self._active)), timeout_s)

    def _file(self, message: Message) -> None:
        if (address := address_of(message, self._base_url)) is None:
            return
        # A request to a model, its repair and the callback are parts of one call, whichever message began it.
        call = self._by_id.get(address.call_id) if address.call_id is not None else None
        if call is None:
            call = call_of(message, address, self._tasks.get(address.task), self._kept)
            self._sent.append(call)
            self._by_id[call.id] = call
        self._by_message[message.id] = call
