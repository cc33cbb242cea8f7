"""uvicorn's server without its ten looks a second, which are most of what an idle process costs.

Its stop ends the connections, too, that uvicorn's does not see.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

import uvicorn

_TICK_S: Final = 1.0
"""How often uvicorn makes the header `Date` anew, in seconds."""
_POLL_S: Final = 0.02
"""How often a stop looks for connections that appear late, in seconds: uvicorn has no event for them."""


class RestingServer(uvicorn.Server):
    """A uvicorn server that wakes up once a second while it is idle, and at once when `should_exit` is set.

    Its stop ends every connection. uvicorn tells those that are open at that moment; one that was accepted just before
    appears later, and half a request on it would hold the stop for as long as a stop may take.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        self._exits = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._finishing: set[Any] = set()
        """The connections that take no further request."""
        super().__init__(config)

    @property
    def should_exit(self) -> bool:
        """True if the server is to stop. May be set on any thread, and in the handler of a signal."""
        return self._should_exit

    @should_exit.setter
    def should_exit(self, should_exit: bool) -> None:
        self._should_exit = should_exit
        if should_exit and self._loop is not None:
            with suppress(RuntimeError):  # the loop has closed
                self._loop.call_soon_threadsafe(self._exits.set)

    async def main_loop(self) -> None:
        """Serve until `should_exit`."""
        self._loop = asyncio.get_running_loop()
        while not await self.on_tick(0):  # 0: a tick at which the header is due
            with suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._exits.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop as uvicorn does, and finish the connections that appear meanwhile."""
        late = asyncio.create_task(self._finish_late_connections(), name="qtasks-late-connections")
        try:
            await super().shutdown(sockets=sockets)
        finally:
            late.cancel()

    async def _finish_late_connections(self) -> None:
        while True:
            self.finish(self.http_connections())
            await asyncio.sleep(_POLL_S)

    def finish(self, connections: Iterable[Any]) -> None:
        """Let the response to the request in progress be the last one on a connection; close it if there is none."""
        for connection in connections:
            if connection not in self._finishing:
                self._finishing.add(connection)
                connection.shutdown()

    def http_connections(self) -> list[Any]:
        """All connections but websockets, which uvicorn keeps in the same set and which must be shut down only once."""
        return [connection for connection in self.server_state.connections if hasattr(connection, "cycle")]
