"""Events of messages for watchers such as a terminal. Watchers are notified after the commit, never before."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from qtasks.broker.core import wall_times
from qtasks.broker.ports import Failure
from qtasks.protocol.messages import Message, Response, State

log = logging.getLogger("qtasks.broker")


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageEvent:
    """One committed change of a message. `state` is that of the last log entry that the change wrote."""

    time_ms: int
    state: State
    message: Message
    outcome: Response | Failure | None = None
    error: str | None = None
    next_delivery_ms: int | None = None
    duration_ms: float | None = None
    """How long the attempt took; None if the change was not the end of an attempt."""


EventWatcher = Callable[[MessageEvent], None]


@dataclass(slots=True)
class EventWatchers:
    """The watchers of a broker's events. A watcher must return quickly; its errors are logged and ignored.

    Callers notify with the broker's times; watchers get wall times, which differ by `offset_ms()`.
    """

    offset_ms: Callable[[], int] = lambda: 0
    _watchers: list[EventWatcher] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self._watchers)

    def add(self, watcher: EventWatcher) -> None:
        """Call `watcher` with every event from now on."""
        self._watchers.append(watcher)

    def remove(self, watcher: EventWatcher) -> None:
        """Stop calling `watcher`. Does nothing if it is not called."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)

    def notify_created(self, messages: Iterable[Message], *, now_ms: int) -> None:
        """Notify the watchers that `messages` have just been stored."""
        if not self._watchers:
            return
        for message in messages:
            due_ms = wall_times.due_ms(message, self.offset_ms())
            self.notify(
                MessageEvent(
                    time_ms=now_ms,
                    state=State.CREATED,
                    message=message,
                    next_delivery_ms=due_ms if due_ms > now_ms else None,
                )
            )

    def notify(self, event: MessageEvent) -> None:
        """Pass `event` to every watcher."""
        if offset_ms := self.offset_ms():
            event = replace(
                event,
                time_ms=event.time_ms + offset_ms,
                message=wall_times.of_message(event.message, offset_ms),
                next_delivery_ms=wall_times.added(event.next_delivery_ms, offset_ms),
            )
        for watcher in tuple(self._watchers):
            try:
                watcher(event)
            except Exception:
                log.exception("a watcher of broker events failed")
