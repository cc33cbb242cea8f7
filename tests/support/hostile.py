"""Endpoints on raw sockets that misbehave as a test needs, and record the bytes that they receive.

A behaviour is an async function of one `Connection`; `answering(...)` returns the ordinary one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Connection:
    """One accepted connection, as a behaviour sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: HostileServer) -> None:
        self._reader = reader
        self._writer = writer
        self._server = server

    async def request(self) -> bytes | None:
        """The next request, head and body as received; None if the peer has closed the connection."""
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            self._server.closed_by_peer.set()
            return None
        lines = head.lower().split(b"\r\n")
        length = next((int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:")), 0)
        request = head + await self._reader.readexactly(length)
        self._server.requests.append(request)
        self._server.received.set()
        return request

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def pause(self) -> None:
        """Wait a moment, so that the bytes sent so far arrive separately from the next ones."""
        await asyncio.sleep(0.01)

    async def flood(self, block: bytes) -> None:
        """Send `block` again and again, as fast as the peer reads, until the peer closes."""
        while True:
            await self.send(block)
            await asyncio.sleep(0)

    async def dribble(self, block: bytes, every_s: float = 0.01) -> None:
        """Send `block` byte by byte, over and over: never silent, never done."""
        while True:
            for byte in block:
                await self.send(bytes([byte]))
                await asyncio.sleep(every_s)

    async def wait_until_closed(self) -> None:
        """Wait until the peer closes; what it sends is dropped."""
        while await self._reader.read(65536):
            pass
        self._server.closed_by_peer.set()

    def half_close(self) -> None:
        """Send FIN and continue to read."""
        self._writer.write_eof()

    def reset(self) -> None:
        """Send RST."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Behaviour = Callable[[Connection], Awaitable[None]]


def answering(*answers: bytes) -> Behaviour:
    """Answer each request with the next of `answers`, the last one again and again; the connection stays open."""

    async def behave(connection: Connection) -> None:
        count = 0
        while await connection.request() is not None:
            await connection.send(answers[min(count, len(answers) - 1)])
            count += 1

    return behave


def answering_once(answer: bytes) -> Behaviour:
    """Answer the first request with `answer`, then close."""

    async def behave(connection: Connection) -> None:
        await connection.request()
        await connection.send(answer)

    return behave


class HostileServer:
    """A listener on a free loopback port; `async with` it."""

    def __init__(self, behave: Behaviour, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.behave = behave
        self._host = host
        self._tls = tls
        self._serving: set[asyncio.Task[None]] = set()
        self.requests: list[bytes] = []
        """Every complete request, in order."""
        self.connections = 0
        """Connections accepted so far."""
        self.received = asyncio.Event()
        """Set with the first request."""
        self.closed_by_peer = asyncio.Event()
        """Set when the client closed a connection that the behaviour had not closed."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self._host, 0, ssl=self._tls, limit=4 * 1024 * 1024)
        self.port = int(self._server.sockets[0].getsockname()[1])
        scheme = "https" if self._tls else "http"
        self.url = f"{scheme}://{self._host}:{self.port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()

    def stop_listening(self) -> None:
        """Refuse further connections; those that exist stay."""
        self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            await self.behave(Connection(reader, writer, self))
        except (ConnectionError, asyncio.IncompleteReadError):
            self.closed_by_peer.set()
        except asyncio.CancelledError:
            pass  # the server is being closed
        finally:
            self._serving.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()
