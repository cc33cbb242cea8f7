"""The calls since the test began and what happened to them, from the events of the broker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Mapping
from typing import Any, Final

from qtasks.broker.events import MessageEvent
from qtasks.protocol.messages import Message, State
from qtasks.tasks.task import Task
from qtasks.testing.sent_call import Call, address_of, call_of, is_end_callback

_ENDS: Final = frozenset({State.DELIVERED, State.FAILED, State.CANCELED})


class CallLog:
    """Records the broker's events; readable from any thread. `kept` loads a call that was too large for its header."""

    def __init__(self, base_url: str, tasks: Mapping[str, Task[..., Any]], kept: Callable[[str], str | None]) -> None:
        self._base_url = base_url
        self._tasks = tasks
        self._kept = kept
        self._changed = threading.Condition()
        self._sent: list[Call] = []
        self._by_id: dict[str, Call] = {}
        self._by_message: dict[str, Call] = {}
        self._open: dict[str, int] = {}
        """The due time of each message that has not ended; messages that are not calls are included."""
        self._active: set[str] = set()

    def __call__(self, event: MessageEvent) -> None:
        """Record an event."""
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
        """The call that a message carries, or is a part of."""
        return self._by_message.get(message_id)

    def of_call(self, key: str) -> Call | None:
        """The call with that call id or message id; for a snoozed call the latest."""
        return self._by_id.get(key) or self._by_message.get(key)

    def is_end_callback(self, message: Message) -> bool:
        """True for a message that reports the end of a call."""
        return is_end_callback(message.url, self._base_url)

    def due_ms(self, call: Call, cancelled: Container[str] = ()) -> int | None:
        """When the next attempt is due, Unix ms; None for an ended call. `cancelled` has ids of cancelled messages."""
        with self._changed:
            due_times = [
                due_ms
                for message_id, due_ms in self._open.items()
                if message_id not in cancelled and self._by_message.get(message_id) is call
            ]
        return min(due_times, default=None)

    def wait_until(self, done: Callable[[Mapping[str, int], int], bool], timeout_s: float) -> bool:
        """Wait until `done(open messages, running attempts)` is true. Returns False after `timeout_s` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: done(self._open, len(self._active)), timeout_s)

    def _file(self, message: Message) -> None:
        if (address := address_of(message, self._base_url)) is None:
            return
        # A request to a model, its repair and the callback are parts of one call.
        call = self._by_id.get(address.call_id) if address.call_id is not None else None
        if call is None:
            call = call_of(message, address, self._tasks.get(address.task), self._kept)
            self._sent.append(call)
            self._by_id[call.id] = call
        self._by_message[message.id] = call
