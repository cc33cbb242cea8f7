"""Connections over plain TCP that are kept between requests, and why a request on one of them has no reply.

The sockets belong to no event loop and no thread. Each exchange has a connection alone until it is put back.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from qtasks.errors import BrokerUnreachable
from qtasks.forks import keep_inherited, per_process
from qtasks.qstash.conversation import failures
from qtasks.qstash.conversation.http1_request import ServiceAddress
from qtasks.qstash.conversation.http1_response import NotHttpError, ResponseError
from qtasks.qstash.conversation.transport import CONNECT_S, IDLE_S, Request

if TYPE_CHECKING:
    from qtasks.qstash.conversation.connection_errors import Explanation

MAX_KEPT: Final = 32
"""Idle connections to one service at most."""

RECEIVE_BYTES: Final = 64 * 1024

Address = tuple[int, int, int, Any]
"""Family, type, protocol and address of a socket."""


class UnheardError(Exception):
    """The connection had ended before anything was sent: the service has surely not heard the request."""


class PlainConnection:
    """One connection. It is put back only after a whole exchange; any other way out of one closes it."""

    __slots__ = ("_idle_since_s", "is_expired", "is_used", "socket")

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.is_used = False
        """True if it has carried an exchange before."""
        self.is_expired = False
        """True once the time of the exchange was up."""
        self._idle_since_s = 0.0

    def __del__(self) -> None:
        self.socket.close()  # a client that was not closed leaves no warning behind

    def close(self) -> None:
        """Close it. Idempotent."""
        self.socket.close()

    def expire(self) -> None:
        """End the exchange, because its time is up: a wait for bytes then sees the end of the connection."""
        self.is_expired = True
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            self.socket.close()

    def rest(self) -> None:
        """Note that an exchange has ended."""
        self.is_used, self._idle_since_s = True, time.monotonic()

    def is_stale(self) -> bool:
        """True if it has been idle for so long that the server may be closing it."""
        return time.monotonic() - self._idle_since_s > IDLE_S

    def has_ended(self) -> bool:
        """True if the server has closed it, or has sent what was not asked for."""
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(self.socket, select.POLLIN)
            return bool(poll.poll(0))
        return bool(select.select([self.socket], [], [], 0)[0])


class KeptConnections:
    """The idle connections of one transport, by service; the one used last is taken first. Without locks.

    Signal handlers and threads may take and put back at any moment. A forked process begins without connections.
    """

    def __init__(self) -> None:
        self._is_closed = False
        self._idle: dict[ServiceAddress, deque[PlainConnection]] = {}
        per_process(self._begin)

    def _begin(self) -> None:
        keep_inherited(*self._idle.values())
        self._idle = {}

    def check_open(self) -> None:
        """Raise RuntimeError after `close`."""
        if self._is_closed:
            raise RuntimeError("the client is closed")

    def take(self, service: ServiceAddress) -> PlainConnection | None:
        """An idle connection that the server has not closed, as far as is known here; None without one."""
        idle = self._idle.get(service)
        while idle:
            try:
                connection = idle.pop()
            except IndexError:  # another thread was faster
                return None
            if not connection.is_stale() and not connection.has_ended():
                return connection
            connection.close()
        return None

    def put_back(self, service: ServiceAddress, connection: PlainConnection) -> None:
        """Keep a connection after a whole exchange. Closes the oldest one if it has been idle for long."""
        connection.rest()
        idle = self._idle.setdefault(service, deque())
        idle.append(connection)
        if len(idle) > 1:
            try:
                oldest = idle.popleft()
            except IndexError:
                return
            if self._is_closed or len(idle) >= MAX_KEPT or oldest.is_stale():
                oldest.close()
            else:
                idle.appendleft(oldest)
        if self._is_closed:
            self.close()

    def close(self) -> None:
        """Close the idle connections; those in use are closed when they are put back. Idempotent."""
        self._is_closed = True
        for idle in list(self._idle.values()):
            while idle:
                try:
                    idle.pop().close()
                except IndexError:
                    break


def numeric_addresses(service: ServiceAddress) -> list[Address] | None:
    """The address of a service whose host is one; None for a name, which must be looked up."""
    try:
        return addresses(service, socket.AI_NUMERICHOST)
    except OSError:
        return None


def addresses(service: ServiceAddress, flags: int = 0) -> list[Address]:
    """The addresses of a service, in the order in which the system would try them. Blocks. Raises OSError."""
    entries = socket.getaddrinfo(service.host, service.port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, kind, protocol, address) for family, kind, protocol, _, address in entries]


def not_connected(request: Request, error: OSError, timeout_s: float) -> BrokerUnreachable:
    """The error of a request for which there was no connection."""
    if isinstance(error, TimeoutError) and not error.errno:
        return failures.unreachable(request.url, f"no connection within {min(CONNECT_S, timeout_s):g} s", sent=False)
    from qtasks.qstash.conversation.connection_errors import explained  # it imports ssl

    explanation = explained(error)
    return failures.unreachable(request.url, explanation.why, sent=False, fix=explanation.fix)


def no_reply(
    request: Request, error: OSError | ResponseError | UnheardError, timeout_s: float, *, is_first: bool
) -> BrokerUnreachable:
    """The error of a request that had a connection. `is_first`: it was the first one on that connection."""
    if isinstance(error, TimeoutError) and not error.errno:
        why = f"no answer within {timeout_s:g} s; the request may have been accepted"
        return failures.unreachable(request.url, why, sent=True)
    explanation = _explanation(error, is_first=is_first)
    if explanation.is_surely_unheard:
        return failures.unreachable(request.url, explanation.why, sent=False, fix=explanation.fix)
    fix = failures.fix_for_cut(request.url)
    return failures.unreachable(
        request.url, f"{explanation.why}; the request may have been accepted", sent=True, fix=fix
    )


def _explanation(error: OSError | ResponseError | UnheardError, *, is_first: bool) -> Explanation:
    from qtasks.qstash.conversation.connection_errors import NOT_HTTP, Explanation, explained

    if isinstance(error, UnheardError):
        return Explanation(explained(error).why, is_surely_unheard=True)
    if isinstance(error, NotHttpError):
        # What has spoken HTTP before may have understood the request.
        return NOT_HTTP if is_first else Explanation(str(error))
    return Explanation(str(error)) if isinstance(error, ResponseError) else explained(error)
