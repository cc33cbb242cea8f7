"""The broker on a socket: uvicorn underneath, signals and the stop in our own hands."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Final

import uvicorn

from qtasks.broker.broker import Broker
from qtasks.broker.server.asgi import LOOPBACK_HOSTS, AsgiApi
from qtasks.broker.server.http_protocol import GuardedProtocol
from qtasks.errors import ConfigurationError

KEEP_ALIVE_S: Final = 75


class _Server(uvicorn.Server):
    """A uvicorn server that leaves the process's signals alone: whoever runs it decides when to stop."""

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
    ) -> None:
        edge = AsgiApi(broker.api, ready=broker.ready, hosts=hosts)
        self._listeners = listeners
        self._server = _Server(
            uvicorn.Config(
                edge,
                http=GuardedProtocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                # A half-sent request must not keep the process from stopping.
                timeout_graceful_shutdown=max(1, round(grace_s)),
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return once requests are served."""
        self._task = asyncio.create_task(self._server.serve(sockets=self._listeners), name="qtasks-api")
        while not self._server.started:
            if self._task.done():
                await self._task
                raise ConfigurationError("the API server ended while starting")
            await asyncio.sleep(0)

    async def stop(self) -> None:
        """Refuse new connections, answer the requests under way, end. Idempotent."""
        if self._task is not None:
            self._server.should_exit = True
            await self._task
            self._task = None
