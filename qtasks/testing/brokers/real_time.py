"""The broker of mode ``"full"``: broker and application each behind a socket, in real time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Final

import uvicorn

from qtasks.broker.broker import Broker
from qtasks.broker.server.api_server import ApiServer
from qtasks.broker.server.listen import listen
from qtasks.broker.transport.destination_policy import DestinationPolicy
from qtasks.broker.transport.http_transport import HttpTransport
from qtasks.clock import SystemClock
from qtasks.error_codes import ErrorCode
from qtasks.errors import QTasksError
from qtasks.qstash.conversation.service_transport import ServiceTransport
from qtasks.randomness import SystemRandom
from qtasks.tasks.ports import ASGIApp, Connection
from qtasks.tasks.web.gateway import Outermost, SocketGateway
from qtasks.testing.app_under_test import AppUnderTest
from qtasks.testing.brokers.base_broker import ACCOUNT, TOKEN, EnvironmentBroker, settings
from qtasks.testing.call_log import CallLog
from qtasks.testing.fakes.faults import FaultyTransport
from qtasks.testing.fakes.stepped_results import EnvironmentResults

HOST: Final = "127.0.0.1"
PATIENCE_S: Final = 60.0
"""Seconds that due calls may take to end."""


class RealTimeBroker(EnvironmentBroker):
    """A broker in real time; `serve` starts it."""

    def __init__(self, application: AppUnderTest) -> None:
        super().__init__(application)
        self.runner = self.threads.real_time
        self.clock = SystemClock()
        self.random = SystemRandom()
        self.results = EnvironmentResults()
        self._broker_socket, self._app_socket = listen(HOST, 0), listen(HOST, 0)
        self._base_url = f"{_url(self._app_socket)}{application.prefix}"
        self.call_log = CallLog(self._base_url, application.tasks.runtime.tasks, self.kept)
        self._client = ServiceTransport()
        self._server: uvicorn.Server | None = None
        self._serving: Future[None] | None = None
        self.threads.real_time.call(self._open())

    def serve(self) -> None:
        """See `EnvironmentBroker.serve`: start the application, its lifespan included, then the deliveries."""
        app = self.application.app or self.application.tasks.asgi_app()
        whole = Outermost(app, self.application.tasks.lifespan_if_missing)
        gateway = SocketGateway(whole, self.application.prefix)
        config = uvicorn.Config(gateway, lifespan="on", log_config=None, access_log=False, proxy_headers=False)
        self._server = server = uvicorn.Server(config)
        self._serving = self.threads.tasks.submit(_serve(server, self._app_socket))
        self.threads.tasks.call(_started(server, self._serving))
        self.threads.real_time.loop.call_soon_threadsafe(self.broker.start)

    def start(self, app: ASGIApp, loop: asyncio.AbstractEventLoop | None) -> Connection:  # noqa: ARG002 - it is served
        """See `EmbeddedBroker.start`."""
        return Connection(
            url=_url(self._broker_socket),
            token=TOKEN,
            keys=self.keys,
            base_url=self._base_url,
            results="memory://",
            model_keys=False,
            transport=self._client,
        )

    def stop(self) -> None:
        """See `EmbeddedBroker.stop`."""

    def run(
        self,
        *,
        span_ms: int = 0,
        most: int | None = None,
        awaited: bool = False,  # noqa: ARG002 - calls run by themselves
    ) -> Coroutine[Any, Any, list[str]]:
        """See `EnvironmentBroker.run`; calls run by themselves, so this waits until no call is due."""
        if span_ms or most is not None:
            raise QTasksError(
                'in mode "full" time is real: it cannot be moved, and calls run by themselves',
                fix="leave out the mode, or wait for the result",
                code=ErrorCode.TEST_MODE_WRONG,
            )
        return self._settled()

    def close(self) -> None:
        """See `EnvironmentBroker.close`."""
        with contextlib.suppress(TimeoutError):
            self.threads.real_time.call(self._close(), PATIENCE_S)
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            with contextlib.suppress(QTasksError):  # `serve` raised it already
                self._serving.result(PATIENCE_S)
        self._client.close()
        for listener in (self._broker_socket, self._app_socket):
            listener.close()
        self.threads.tidy()

    async def _open(self) -> None:
        self.faults = FaultyTransport(self._base_url, HttpTransport(DestinationPolicy("local")), self.outside)
        how = replace(settings(), drain_s=5)
        self.broker = await Broker.open(how, transport=self.faults)
        self.broker.watchers.add(self.call_log)
        self.keys = await self.broker.keys.of(self.broker.accounts[ACCOUNT])
        self._api = ApiServer(self.broker, [self._broker_socket])
        await self._api.start()

    async def _close(self) -> None:
        await self.broker.stop()
        await self._api.stop()

    async def _settled(self) -> list[str]:
        cancelled = await self._cancelled()

        def is_done(due: Mapping[str, int], active: int) -> bool:
            return not active and all(
                time_ms > self.now_ms for message_id, time_ms in due.items() if message_id not in cancelled
            )

        before = [call for call in self.call_log.calls if self.call_log.due_ms(call) is not None]
        if not await asyncio.to_thread(self.call_log.wait_until, is_done, PATIENCE_S):
            raise QTasksError(f"after {PATIENCE_S:g} s calls are still due or running", code=ErrorCode.TEST_NEVER_IDLE)
        return [call.message_id for call in before if self.call_log.due_ms(call) is None]


def _url(listener: socket.socket) -> str:
    return f"http://{HOST}:{listener.getsockname()[1]}"


async def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    try:
        await server.serve(sockets=[listener])
    except SystemExit:  # uvicorn raises it after a failed lifespan; it would end this event loop
        raise QTasksError(
            "the application ended while it was starting; its log says why", code=ErrorCode.APPLICATION_ENDED
        ) from None


async def _started(server: uvicorn.Server, serving: Future[None]) -> None:
    while not server.started:
        if serving.done():
            serving.result()
        await asyncio.sleep(0)
