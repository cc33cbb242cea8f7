"""What happened, told to whoever watches (a terminal, say): after the commit, never before."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from qtasks.broker.ports import Failure
from qtasks.protocol.messages import Message, Response, State

log = logging.getLogger("qtasks.broker")


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageEvent:
    """One step in a message's life, as committed. `state` is the last log entry the step wrote."""

    time_ms: int
    state: State
    message: Message
    outcome: Response | Failure | None = None
    error: str | None = None
    next_delivery_ms: int | None = None
    duration_ms: float | None = None
    """How long the attempt took; None where there was none."""


EventWatcher = Callable[[MessageEvent], None]


@dataclass(slots=True)
class EventWatchers:
    """The watchers of a broker. A watcher must return quickly; one that raises is logged and ignored."""

    _watchers: list[EventWatcher] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self._watchers)

    def add(self, watcher: EventWatcher) -> None:
        """Tell `watcher` of every step from now on."""
        self._watchers.append(watcher)

    def tell_created(self, messages: Iterable[Message], *, now_ms: int) -> None:
        """Tell of messages that have just been stored."""
        if not self._watchers:
            return
        for message in messages:
            delayed = message.not_before_ms > now_ms
            self.tell(
                MessageEvent(
                    time_ms=now_ms,
                    state=State.CREATED,
                    message=message,
                    next_delivery_ms=message.not_before_ms if delayed else None,
                )
            )

    def tell(self, event: MessageEvent) -> None:
        """Pass `event` to all watchers."""
        for watcher in self._watchers:
            try:
                watcher(event)
            except Exception:
                log.exception("a watcher of broker events failed")
