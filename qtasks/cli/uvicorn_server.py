"""An application on a socket: uvicorn underneath, with an end that comes when it was promised."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import uvicorn

from qtasks.broker.server.event_loop import tune_interpreter
from qtasks.cli.signals import STOPPING, end_at_the_next
from qtasks.tasks.ports import ASGIApp

KEEP_ALIVE_S: Final = 75
"""Longer than the broker's own, so that a connection is closed by the side that would use it next."""
LINGER_S: Final = 2.0
"""How long connections without a request stay open at a stop; our broker itself closes them after 1.5 seconds."""
_LOOK_S: Final = 0.02
OVERTIME_S: Final = 0.4
"""What the end itself may take when tasks have used up the time for them."""
FAILED: Final = 2
"""Exit status of a server that could not start."""


class UvicornServer(uvicorn.Server):
    """Stops at the first signal, within `drain_s` and little more whatever runs, and ends at the second.

    `below` says that a parent decides about Ctrl-C, which the terminal sends to both. `lingers`: see `shutdown`.
    `started` is told when it serves, `retired` when it takes no more requests and only works on those it has.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        drain_s: float,
        started: Callable[[], None],
        retired: Callable[[], None] | None = None,
        below: bool = False,
        lingers: bool = True,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_protocol(),
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                # Without a limit one half-sent request keeps the process from ever ending.
                timeout_graceful_shutdown=drain_s,  # type: ignore[arg-type]  # declared whole, used as any number
            )
        )
        self._drain_s = drain_s
        self._told = started
        self._retired = retired
        self._below = below
        self._lingers = lingers

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does, and tell."""
        await super().startup(sockets=sockets)
        if self.started:
            tune_interpreter()
            self._told()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing more, and end as uvicorn does; one that lingers first answers what comes for a moment.

        Somebody may be sending on a connection that looks idle; closing it would cost that delivery an attempt.
        """
        for server in self.servers:
            server.close()
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        for connection in list(self.server_state.connections):
            if not _idle(connection):
                connection.shutdown()  # its answer is the last one there
        began_s = time.monotonic()
        linger_until_s = began_s + (min(LINGER_S, self._drain_s / 2) if self._lingers else 0)
        while self._any_idle() and time.monotonic() < linger_until_s:  # noqa: ASYNC110 - nobody tells of their end
            await asyncio.sleep(_LOOK_S)
        if self._retired is not None:
            self._retired()
        left_s = self._drain_s - (time.monotonic() - began_s)
        self.config.timeout_graceful_shutdown = max(0, left_s)  # type: ignore[assignment]
        await super().shutdown(sockets=sockets)

    def _any_idle(self) -> bool:
        return any(_idle(connection) for connection in self.server_state.connections)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals for as long as it serves; a stop that was asked for is no failure of the process."""
        before = {one: signal.signal(one, self._first) for one in STOPPING}
        if self._below:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            yield
        finally:
            if not self.should_exit:
                for one, handler in before.items():
                    signal.signal(one, handler)

    def retire(self, number: int, frame: FrameType | None) -> None:
        """A signal handler: stop, but linger."""
        self._lingers = True
        self._first(number, frame)

    def _first(self, _number: int, _frame: FrameType | None) -> None:
        self.should_exit = True
        end_at_the_next()
        if self._below:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        # A thread cannot be ended, and the interpreter waits for every one; the broker delivers again what is lost.
        end = threading.Timer(self._drain_s + OVERTIME_S, os._exit, (0,))
        end.daemon = True
        end.start()


def _idle(connection: Any) -> bool:
    """Whether uvicorn waits for a request there."""
    return connection.cycle is None or connection.cycle.response_complete


def serve(server: UvicornServer, listener: socket.socket) -> int:
    """Serve until a signal; the exit status."""
    try:
        server.run(sockets=[listener])
    except SystemExit:  # uvicorn has logged why the application does not start
        return FAILED
    return 0 if server.started else FAILED


def _protocol() -> Any:
    """The guarded protocol where httptools is installed (the `broker` extra brings it), else uvicorn's own choice."""
    if importlib.util.find_spec("httptools") is None:
        return "auto"
    from qtasks.broker.server.http_protocol import GuardedProtocol

    return GuardedProtocol
