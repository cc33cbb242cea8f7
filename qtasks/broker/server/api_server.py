"""The HTTP server of a broker's API: uvicorn, started and stopped by the caller instead of by signals."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import uvicorn

from qtasks.broker.broker import Broker
from qtasks.broker.console.console_context import Role, Viewer
from qtasks.broker.core.operator_changes import CONSOLE, DEVELOPER, Actor
from qtasks.broker.server.asgi import AsgiApi, Receive, Scope, Send
from qtasks.broker.server.connection_watch import API_LIMITS, ConnectionLimits
from qtasks.broker.server.hosts import LOOPBACK_HOSTS
from qtasks.broker.server.http_protocol import guarded
from qtasks.broker.server.resting_server import RestingServer
from qtasks.broker.server.uvicorn_log import count_lines
from qtasks.broker.settings import DEV_CREDENTIALS
from qtasks.clock import Clock, SystemClock
from qtasks.errors import ConfigurationError
from qtasks.protocol.loopback import is_loopback

Application = Callable[[Scope, Receive, Send], Awaitable[None]]

KEEP_ALIVE_S: Final = 75
"""Seconds that an idle connection of a client is kept."""


class _SignalFreeServer(RestingServer):
    """A server that installs no signal handlers: the caller decides when it stops."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class AsgiServer:
    """Serves an application on listening sockets. `closing` is called when the stop begins."""

    def __init__(
        self,
        application: Application,
        listeners: list[socket.socket],
        *,
        closing: Callable[[], None],
        clock: Clock | None = None,
        grace_s: float = 5.0,
        limits: ConnectionLimits = API_LIMITS,
    ) -> None:
        count_lines()
        self._closing = closing
        self._listeners = listeners
        self._server = _SignalFreeServer(
            uvicorn.Config(
                application,
                http=guarded(limits, clock or SystemClock()),
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                # A request that is never sent to its end must not prevent the stop.
                timeout_graceful_shutdown=max(1, round(grace_s)),
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start serving; return when requests are accepted. Raises ConfigurationError if the server cannot start."""
        self._task = asyncio.create_task(self._server.serve(sockets=self._listeners), name="qtasks-api")
        while not self._server.started:
            if self._task.done():
                await self._task
                raise ConfigurationError("the API server ended while starting")
            await asyncio.sleep(0)

    async def stop(self) -> None:
        """Refuse new connections, answer the requests in progress, then stop. Idempotent."""
        self._closing()
        if self._task is not None:
            self._server.should_exit = True
            await self._task
            self._task = None


class ApiServer(AsgiServer):
    """Serves a broker's API and its console.

    The console needs no sign-in if only programs on this machine can reach it, and every one of them knows the token
    anyway: with the public development credentials, on loopback addresses, by a loopback name.

    `hosts` and `host_option`: see `AsgiApi`. `around` makes the application that is served of that of the API.
    """

    def __init__(
        self,
        broker: Broker,
        listeners: list[socket.socket],
        *,
        hosts: frozenset[str] | None = LOOPBACK_HOSTS,
        host_option: str | None = None,
        grace_s: float = 5.0,
        limits: ConnectionLimits = API_LIMITS,
        around: Callable[[Application], Application] = lambda api: api,
    ) -> None:
        console = broker.console(open_to=_developer(broker, listeners, hosts))
        api = AsgiApi(broker.api, ready=broker.ready, console=console, hosts=hosts, host_option=host_option)
        # The streams of the console have no end of their own.
        super().__init__(
            around(api), listeners, closing=console.close, clock=broker.clock, grace_s=grace_s, limits=limits
        )


def _developer(broker: Broker, listeners: list[socket.socket], hosts: frozenset[str] | None) -> Viewer | None:
    """The first development user; None where a person must sign in."""
    settings = broker.settings
    is_local = hosts is not None and hosts <= LOOPBACK_HOSTS and all(_is_local(listener) for listener in listeners)
    if not is_local or settings.credentials != DEV_CREDENTIALS:
        return None
    return Viewer(broker.accounts[settings.credentials[0].name], Role.OPERATOR, Actor(DEVELOPER, CONSOLE))


def _is_local(listener: socket.socket) -> bool:
    return listener.family in (socket.AF_INET, socket.AF_INET6) and is_loopback(listener.getsockname()[0])
