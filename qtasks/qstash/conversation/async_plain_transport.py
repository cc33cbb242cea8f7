"""As `plain_transport`, on an event loop."""

from __future__ import annotations

import asyncio
import socket
from weakref import WeakKeyDictionary

from qtasks.forks import per_process
from qtasks.qstash.conversation import http1_request
from qtasks.qstash.conversation.http1_request import ServiceAddress
from qtasks.qstash.conversation.http1_response import ResponseError, ResponseReader
from qtasks.qstash.conversation.plain_connections import (
    RECEIVE_BYTES,
    Address,
    KeptConnections,
    PlainConnection,
    UnheardError,
    addresses,
    no_reply,
    not_connected,
    numeric_addresses,
)
from qtasks.qstash.conversation.transport import CONNECT_S, MAX_REPLY, Reply, Request

MAX_CONNECTIONS = 16
"""Exchanges of one event loop at a time. The others wait in a queue: a service answers in milliseconds."""


class AsyncPlainTransport:
    """As `PlainTransport`, without blocking. Any number of event loops may use it."""

    def __init__(self) -> None:
        self._kept = KeptConnections()
        per_process(self._begin)

    def _begin(self) -> None:
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()

    async def send(self, request: Request, service: ServiceAddress, target: str, timeout_s: float) -> Reply:
        """As `PlainTransport.send`. The time does not include the wait for a free connection.

        A caller that is cancelled closes its connection; the request may have been accepted.
        """
        data = http1_request.to_bytes(request, service, target)
        loop = asyncio.get_running_loop()
        if (turns := self._turns.get(loop)) is None:
            turns = self._turns[loop] = asyncio.Semaphore(MAX_CONNECTIONS)
        async with turns:
            self._kept.check_open()
            deadline_s = loop.time() + timeout_s
            while True:
                connection = self._kept.take(service)
                is_first = connection is None
                if connection is None:
                    try:
                        connection = await _connected(service, min(deadline_s, loop.time() + CONNECT_S))
                    except OSError as error:
                        raise not_connected(request, error, timeout_s) from None
                try:
                    reader = await _exchanged(
                        connection, data, ResponseReader(request.method, MAX_REPLY), deadline_s, loop
                    )
                except BaseException as error:
                    connection.close()
                    if isinstance(error, UnheardError) and not is_first:
                        continue
                    if isinstance(error, OSError | ResponseError | UnheardError):
                        raise no_reply(request, error, timeout_s, is_first=is_first) from None
                    raise
                if reader.can_be_kept and not connection.is_expired:
                    self._kept.put_back(service, connection)
                else:
                    connection.close()
                return reader.reply()

    def close(self) -> None:
        """Close the connections. Idempotent; no event loop is needed."""
        self._kept.close()


async def _connected(service: ServiceAddress, deadline_s: float) -> PlainConnection:
    """A new connection to the first address that answers."""
    last: OSError | None = None
    async with asyncio.timeout_at(deadline_s):
        for address in await _addresses(service):
            try:
                return PlainConnection(await _opened(address))
            except OSError as error:
                last = error
    raise last or OSError(f"{service.host} has no address")


async def _opened(address: Address) -> socket.socket:
    family, kind, protocol, peer = address
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setblocking(False)
        await asyncio.get_running_loop().sock_connect(opened, peer)
    except BaseException:
        opened.close()
        raise
    return opened


async def _addresses(service: ServiceAddress) -> list[Address]:
    numeric = numeric_addresses(service)
    return numeric if numeric is not None else await asyncio.to_thread(addresses, service)


async def _exchanged(
    connection: PlainConnection, data: bytes, reader: ResponseReader, deadline_s: float, loop: asyncio.AbstractEventLoop
) -> ResponseReader:
    timer = loop.call_at(deadline_s, connection.expire)
    broken: OSError | None = None
    try:
        broken = await _send(connection, data, loop)
        while not reader.is_complete:
            received = await loop.sock_recv(connection.socket, RECEIVE_BYTES)
            if received:
                reader.feed(received)
            else:
                reader.end()
            if not reader.is_complete:
                await asyncio.sleep(0)  # a read does not wait while a server sends faster than its answer is read
                if connection.is_expired:
                    raise TimeoutError
    except (OSError, ResponseError):
        if connection.is_expired:
            raise TimeoutError from None
        if broken is not None and not reader.has_begun:
            raise broken from None
        raise
    finally:
        timer.cancel()
    return reader


async def _send(connection: PlainConnection, data: bytes, loop: asyncio.AbstractEventLoop) -> OSError | None:
    """As `plain_transport._send`."""
    try:
        sent = connection.socket.send(data)
    except BlockingIOError:
        sent = 0
    except OSError as error:
        raise UnheardError from error
    if sent < len(data):
        try:
            await loop.sock_sendall(connection.socket, memoryview(data)[sent:])
        except OSError as error:
            return error
    return None
