"""Python imports this module at its start if the folder is on PYTHONPATH: the process reaches no other machine."""

from __future__ import annotations

import sys
from typing import Any

_LOOPBACK = ("127.", "::1", "localhost")


def _guard(event: str, arguments: tuple[Any, ...]) -> None:
    address = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments
    host = address[0] if isinstance(address, tuple) and address else None
    if isinstance(host, str) and not host.startswith(_LOOPBACK):
        raise PermissionError(f"this process may not reach {host}")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        _guard(event, arguments)


sys.addaudithook(_audit)
