"""The names to which a server answers: a web page that rebinds its own name to this address is refused (DNS rebinding).

Such a page is of the same origin for its browser, which protects nothing then; only the `Host` header gives it away.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})

HeaderLines = Iterable[tuple[bytes, bytes]]


def host_refusal(
    lines: HeaderLines, hosts: frozenset[str] | None, server: str, option: str | None = None
) -> tuple[int, str] | None:
    """Status and reason for a request whose `Host` is not one of `hosts` (lower-case, no port); else None.

    `hosts` None: every name is accepted. `server` is the subject of the sentence, such as ``this broker``, and `option`
    the option of the command line that adds a name.
    """
    names = [value for name, value in lines if name == b"host"]
    if len(names) != 1:
        return 400, f"expected exactly one Host header, got {len(names)}"
    if hosts is not None and _hostname(names[0].decode("latin-1")) not in hosts:
        how = "" if option is None else f" ({option} adds a name)"
        return 421, f"host not allowed: {server} answers to {', '.join(sorted(hosts))}{how}"
    return None


def _hostname(host: str) -> str:
    """The host name in a Host header, lower-case, without the port."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isascii() and port.isdigit() else host).lower()
