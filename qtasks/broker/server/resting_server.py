"""uvicorn's server without its ten looks a second, which are most of what an idle process costs."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import uvicorn

_TICK_S: Final = 1.0
"""How often uvicorn makes the header `Date` anew, in seconds."""


class RestingServer(uvicorn.Server):
    """A uvicorn server that wakes up once a second while it is idle, and at once when `should_exit` is set."""

    def __init__(self, config: uvicorn.Config) -> None:
        self._exits = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
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
