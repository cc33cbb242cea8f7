"""The HTTP server of a broker's API: uvicorn, started and stopped by the caller instead of by signals."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Final

import uvicorn

from qtasks.broker.broker import Broker
from qtasks.broker.server.asgi import AsgiApi
from qtasks.broker.server.connection_watch import API_LIMITS, ConnectionLimits
from qtasks.broker.server.hosts import LOOPBACK_HOSTS
from qtasks.broker.server.http_protocol import guarded
from qtasks.broker.server.resting_server import RestingServer
from qtasks.errors import ConfigurationError

KEEP_ALIVE_S: Final = 75
"""Seconds that an idle connection of a client is kept."""


class _SignalFreeServer(RestingServer):
    """A server that installs no signal handlers: the caller decides when it stops."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class ApiServer:
    """Serves a broker's API on listening sockets."""

    def __init__(
        self,
        broker: Broker,
        listeners: list[socket.socket],
        *,
        hosts: frozenset[str] | None = LOOPBACK_HOSTS,
        grace_s: float = 5.0,
        limits: ConnectionLimits = API_LIMITS,
    ) -> None:
        application = AsgiApi(broker.api, ready=broker.ready, hosts=hosts)
        self._listeners = listeners
        self._server = _SignalFreeServer(
            uvicorn.Config(
                application,
                http=guarded(limits, broker.clock),
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
        if self._task is not None:
            self._server.should_exit = True
            await self._task
            self._task = None
