"""The transport over plain sockets, for services over plain HTTP: a request costs little more than its system calls."""

from __future__ import annotations

import socket
import time

from qtasks.qstash.conversation import http1_request
from qtasks.qstash.conversation.http1_request import ServiceAddress
from qtasks.qstash.conversation.http1_response import ResponseError, ResponseReader
from qtasks.qstash.conversation.plain_connections import (
    RECEIVE_BYTES,
    KeptConnections,
    PlainConnection,
    UnheardError,
    addresses,
    no_reply,
    not_connected,
)
from qtasks.qstash.conversation.transport import CONNECT_S, MAX_REPLY, Reply, Request


class PlainTransport:
    """Sends requests that `http1_request.split` understands. Thread-safe; a forked process has connections of its own.

    A request whose kept connection turns out to have ended before anything was sent is sent on another one.
    """

    def __init__(self) -> None:
        self._kept = KeptConnections()

    def send(self, request: Request, service: ServiceAddress, target: str, timeout_s: float) -> Reply:
        """Make one attempt of at most `timeout_s` seconds. Raises BrokerUnreachable if there is no reply."""
        self._kept.check_open()
        deadline_s = time.monotonic() + timeout_s
        data = http1_request.to_bytes(request, service, target)
        while True:
            connection = self._kept.take(service)
            is_first = connection is None
            if connection is None:
                try:
                    connection = _connected(service, min(deadline_s, time.monotonic() + CONNECT_S))
                except OSError as error:
                    raise not_connected(request, error, timeout_s) from None
            try:
                reader = _exchanged(connection, data, ResponseReader(request.method, MAX_REPLY), deadline_s)
            except BaseException as error:
                connection.close()
                if isinstance(error, UnheardError) and not is_first:
                    continue
                if isinstance(error, OSError | ResponseError | UnheardError):
                    raise no_reply(request, error, timeout_s, is_first=is_first) from None
                raise
            if reader.can_be_kept:
                self._kept.put_back(service, connection)
            else:
                connection.close()
            return reader.reply()

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._kept.close()


def _connected(service: ServiceAddress, deadline_s: float) -> PlainConnection:
    """A new connection to the first address that answers."""
    last: OSError | None = None
    for family, kind, protocol, address in addresses(service):
        opened = socket.socket(family, kind, protocol)
        try:
            opened.settimeout(_left_s(deadline_s))
            opened.connect(address)
            return PlainConnection(opened)
        except TimeoutError:
            opened.close()
            raise
        except OSError as error:
            opened.close()
            last = error
        except BaseException:
            opened.close()
            raise
    raise last or OSError(f"{service.host} has no address")


def _exchanged(connection: PlainConnection, data: bytes, reader: ResponseReader, deadline_s: float) -> ResponseReader:
    broken = _send(connection, data, deadline_s)
    try:
        while not reader.is_complete:
            connection.socket.settimeout(_left_s(deadline_s))
            received = connection.socket.recv(RECEIVE_BYTES)
            if received:
                reader.feed(received)
            else:
                reader.end()
    except (OSError, ResponseError):
        if broken is not None and not reader.has_begun:
            raise broken from None
        raise
    return reader


def _send(connection: PlainConnection, data: bytes, deadline_s: float) -> OSError | None:
    """Send a request as one piece. Returns the error that ended it early: the server may have answered before it."""
    connection.socket.settimeout(_left_s(deadline_s))
    try:
        sent = connection.socket.send(data)
    except TimeoutError:
        raise
    except OSError as error:
        raise UnheardError from error
    if sent < len(data):
        try:
            connection.socket.sendall(memoryview(data)[sent:])
        except TimeoutError:
            raise
        except OSError as error:
            return error
    return None


def _left_s(deadline_s: float) -> float:
    if (left_s := deadline_s - time.monotonic()) <= 0:
        raise TimeoutError
    return left_s
