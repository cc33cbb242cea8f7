"""The HTTP protocol of our servers on real sockets, with an application of the test and a clock that the test moves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import uvicorn
from uvicorn.server import ServerState

from qtasks.broker.server.connection_watch import ConnectionLimits, ConnectionWatch, Phase
from qtasks.broker.server.http_protocol import GuardedProtocol
from qtasks.tasks.ports import ASGIApp
from qtasks.testing.fakes.virtual_clock import VirtualClock
from tests.support.api_client import Answer, split_answers

PATIENCE_S = 5.0


class RawClient:
    """The client's end of one connection: it sends exactly what it is told to, and reads only when it is told to."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.socket, data)

    async def read(self, size: int) -> int:
        """Read `size` bytes; the number of bytes read, fewer if the server closed."""
        got = 0
        while got < size and (piece := await self._receive(min(65536, size - got))):
            got += len(piece)
        return got

    async def answers(self) -> list[Answer]:
        """All answers until the server closes."""
        received = bytearray()
        while piece := await self._receive(65536):
            received += piece
        return split_answers(bytes(received))

    async def answer(self) -> Answer:
        """The next answer, whose body has a length."""
        received = b""
        while not (answers := split_answers(received)) or len(answers[0].body) < int(
            answers[0].headers.get("content-length", "0")
        ):
            piece = await self._receive(65536)
            assert piece, f"closed after {received!r}"
            received += piece
        return answers[0]

    async def _receive(self, size: int) -> bytes:
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._loop.sock_recv(self.socket, size)
        except ConnectionError:
            return b""


class WatchedServer:
    """Connections of `GuardedProtocol` to `app`, without a listener: `async with` it."""

    def __init__(self, app: ASGIApp, limits: ConnectionLimits | None = None, *, is_dispatcher: bool = False) -> None:
        self._is_dispatcher = is_dispatcher
        self.clock = VirtualClock(0)
        self.watch = ConnectionWatch(limits, self.clock)
        self.state = ServerState()
        self._config = uvicorn.Config(app, lifespan="off", log_config=None, ws="none", access_log=False)
        self._clients: list[RawClient] = []

    async def connect(self) -> RawClient:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await asyncio.get_running_loop().connect_accepted_socket(self._protocol, ours)
        self._clients.append(RawClient(theirs))
        return self._clients[-1]

    def _protocol(self) -> GuardedProtocol:
        loop = asyncio.get_running_loop()
        return GuardedProtocol(self._config, self.state, {}, loop, watch=self.watch, is_dispatcher=self._is_dispatcher)

    @property
    def connections(self) -> list[GuardedProtocol]:
        return [connection for connection in self.state.connections if isinstance(connection, GuardedProtocol)]

    async def until(self, what: Callable[[], Any]) -> None:
        """Let the event loop run until `what()` is true."""
        async with asyncio.timeout(PATIENCE_S):
            while not what():  # noqa: ASYNC110 - the sockets have no event for it
                await asyncio.sleep(0)

    async def settle(self) -> None:
        """Let the event loop run a few turns, so that what was sent arrives separately from what follows."""
        for _ in range(3):
            await asyncio.sleep(0)

    async def until_received(self, size: int) -> None:
        """Let the event loop run until a connection has received `size` bytes of its body."""
        await self.until(lambda: any(connection.body_received >= size for connection in self.connections))

    async def until_phase(self, phase: Phase) -> None:
        """Let the event loop run until every connection is in `phase`; the watch sees it."""
        await self.until(lambda: all(connection.phase() is phase for connection in self.connections))
        self.watch.look()

    async def spend(self, seconds: float, *, step_s: float = 1.0) -> None:
        """Let time pass, with a look of the watch at each step, until the connections have noticed."""
        for _ in range(round(seconds / step_s)):
            self.clock.advance(round(step_s * 1000))
            self.watch.look()
            await asyncio.sleep(0)

    def stop(self) -> None:
        """Begin to stop, as the servers do at a signal."""
        for connection in self.connections:
            connection.shutdown()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self.connections:
            connection.abort()
        for client in self._clients:
            client.socket.close()
        for task in list(self.state.tasks):
            task.cancel()
        await self.until(lambda: not self.state.connections and not self.state.tasks)
