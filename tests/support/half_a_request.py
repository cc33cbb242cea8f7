"""A connection of uvicorn on which a request has begun and never ends."""

from __future__ import annotations

from typing import Any


class HalfARequest:
    """A connection on which the rest of a request never comes. It is closed when the server stops."""

    cycle = None
    is_moving = True

    def __init__(self, connections: set[Any], *, then: Any = None) -> None:
        self._connections = connections
        self._then = then
        """A connection that is accepted while this one is closed."""

    def shutdown(self) -> None:
        """Close it."""
        self._connections.discard(self)
        if self._then is not None:
            self._connections.add(self._then)
            self._then = None
