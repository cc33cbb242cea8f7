"""Serve an application on a socket with uvicorn, and stop within a time limit."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import uvicorn

from qtasks.broker.server.event_loop import tune_interpreter
from qtasks.broker.server.resting_server import RestingServer
from qtasks.broker.server.uvicorn_log import count_lines
from qtasks.cli.signals import SECOND, SENT_AGAIN, STOPPING, end_at_the_next, on_hangup
from qtasks.tasks.ports import ASGIApp

log = logging.getLogger("qtasks.run")

KEEP_ALIVE_S: Final = 75
"""Seconds; longer than that of the broker, so that the side that sends requests closes an idle connection."""
LINGER_S: Final = 2.0
"""Seconds that idle connections stay open at a stop. The qtasks broker closes its own after 1.5 seconds."""
_POLL_S: Final = 0.02
SETTLE_S: Final = 0.2
"""Seconds that the last responses may take to leave; requests without one, half sent perhaps, are cancelled then."""
OVERTIME_S: Final = 2.0
"""Seconds that the shutdown may take after `drain_s` is over."""
FAILED: Final = 2
"""Exit status if the server cannot start, or not go on."""


class UvicornServer(RestingServer):
    """Stops at the first signal, within `drain_s` and `OVERTIME_S` even if requests run; ends at once at the second.

    `hand_back` is called when `drain_s` is over and requests still run: it answers those that run tasks. `is_child` is
    True if a parent process handles Ctrl-C, which the terminal sends to both. `lingers`: see `shutdown`. `started` is
    called when it serves, `retired` when it takes no more requests and only finishes those it has. `running` counts the
    tasks that run; the log says at a stop that they are waited for. `has_failed` is True if the process must end with
    the status `FAILED`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        drain_s: float,
        hand_back: Callable[[], Awaitable[None]],
        started: Callable[[], None],
        retired: Callable[[], None] | None = None,
        is_child: bool = False,
        lingers: bool = True,
        running: Callable[[], int] = lambda: 0,
        has_failed: Callable[[], bool] = lambda: False,
    ) -> None:
        count_lines()
        super().__init__(
            uvicorn.Config(
                app,
                http=_protocol(),
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=SETTLE_S,  # type: ignore[arg-type]  # declared as int, used as any number
            )
        )
        self._drain_s = drain_s
        self._hand_back = hand_back
        self._started_callback = started
        self._retired_callback = retired
        self._is_child = is_child
        self._lingers = lingers
        self._running = running
        self._has_failed = has_failed

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as uvicorn does, then call `started`."""
        await super().startup(sockets=sockets)
        if self.started:
            tune_interpreter()
            if not self._is_child:
                on_hangup(asyncio.get_running_loop(), lambda: os.kill(os.getpid(), signal.SIGTERM))
            self._started_callback()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections and stop as uvicorn does. If it lingers, serve open connections a little longer.

        A client may be sending on a connection that looks idle; closing it would cost that delivery an attempt.
        Websockets are closed last (1012), and nothing waits for their clients.
        """
        for server in self.servers:
            server.close()
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        self.finish([connection for connection in self.http_connections() if not _idle(connection)])
        start_s = time.monotonic()
        if (running := self._running()) and self._drain_s:
            how = "" if self._is_child else f"; {SECOND}, {SENT_AGAIN}"
            log.warning("stopping: waiting up to %g s for running tasks: %d%s", self._drain_s, running, how)
        linger_s = min(LINGER_S, self._drain_s / 2) if self._lingers else 0
        await _wait(lambda: not self._any_idle(), start_s + linger_s)
        if self._retired_callback is not None:
            self._retired_callback()
        if not await _wait(self._is_quiet, start_s + self._drain_s):
            if running := self._running():
                log.warning("stopped before all tasks had ended: the broker sends them again (%d)", running)
            await self._hand_back()
        await super().shutdown(sockets=sockets)

    def _is_quiet(self) -> bool:
        """Finish all connections; True if none is busy. One that was accepted just before the stop may appear late."""
        self.finish(self.http_connections())
        return not self._any_busy()

    def _any_idle(self) -> bool:
        return any(_idle(connection) for connection in self.http_connections())

    def _any_busy(self) -> bool:
        return not all(_idle(connection) for connection in self.http_connections())

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the stop signals while it serves. A requested stop does not count as a failure of the process."""
        previous = {stop_signal: signal.signal(stop_signal, self._stop_once) for stop_signal in STOPPING}
        if self._is_child:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            yield
        finally:
            if not self.should_exit:
                for stop_signal, handler in previous.items():
                    signal.signal(stop_signal, handler)

    @property
    def status(self) -> int:
        """The exit status of the process, if it has started."""
        return FAILED if self._has_failed() else 0

    def retire(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal `RETIRE` of the parent: stop, but linger first."""
        self._lingers = True
        self._stop_once(number, frame)

    def _stop_once(self, _number: int, _frame: FrameType | None) -> None:
        self.should_exit = True
        end_at_the_next()
        if self._is_child:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Python waits for every thread at its end and cannot stop one. The broker delivers an interrupted call again.
        end = threading.Timer(self._drain_s + OVERTIME_S, lambda: os._exit(self.status))
        end.daemon = True
        end.start()


def _idle(connection: Any) -> bool:
    """True if uvicorn waits for the next request of the connection, and nothing of it has arrived.

    The client must have taken the whole response to the request before.
    """
    is_moving = getattr(connection, "is_moving", False)  # a part of `GuardedProtocol` only
    return not is_moving and (connection.cycle is None or connection.cycle.response_complete)


async def _wait(is_over: Callable[[], bool], until_s: float) -> bool:
    """Return when `is_over`, for which uvicorn has no event, at the latest at `until_s`; True if it is over."""
    while not (over := is_over()) and time.monotonic() < until_s:  # noqa: ASYNC110 - as the docstring says
        await asyncio.sleep(_POLL_S)
    return over


def serve(server: UvicornServer, listener: socket.socket) -> int:
    """Serve until a signal; return the exit status."""
    try:
        server.run(sockets=[listener])
    except SystemExit:  # uvicorn has logged why the application does not start
        return FAILED
    return server.status if server.started else FAILED


NO_LIMITS: Final = (
    "httptools is not installed, so slow clients and endless requests have no limits here: "
    "install qstash-tasks[broker], or let only a proxy with such limits reach this port"
)
"""The warning at the start of `qtasks run` if `has_limits` is False."""


def has_limits() -> bool:
    """True if the server limits slow and endless requests: with httptools, which the `broker` extra installs."""
    return importlib.util.find_spec("httptools") is not None


def _protocol() -> Any:
    """`GuardedProtocol` if its parser is installed, else the choice of uvicorn."""
    if not has_limits():
        return "auto"
    from qtasks.broker.server.http_protocol import guarded

    return guarded(is_dispatcher=True)
