"""Opens a listening socket, or raises an error that says why it cannot."""

from __future__ import annotations

import socket
import sys
from typing import Final

from qtasks.error_codes import ErrorCode
from qtasks.errors import ConfigurationError

BACKLOG: Final = 2048
"""Connections that the system holds until they are accepted."""


class PortTakenError(ConfigurationError):
    """Another program listens on the port."""

    code = ErrorCode.PORT_TAKEN


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free port.

    Raises PortTakenError if another program listens there, ConfigurationError for every other reason.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is given explicitly: asyncio turns Nagle's algorithm off only for sockets that report TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # Not on Windows, where this option lets a second process take a port that is in use.
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if isinstance(error, PermissionError):
            raise ConfigurationError(
                f"port {port} on {host} may not be used by this user", fix="choose one above 1023"
            ) from None
        if error.errno is not None and "in use" in (error.strerror or ""):
            raise PortTakenError(
                f"port {port} on {host} is in use by another program",
                fix="stop that program, or choose another port (0 picks a free one)",
            ) from None
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    listener.setblocking(False)
    return listener
