"""Which hosts and URLs name this machine itself."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """True for a loopback address, for ``localhost`` and for every name below it, such as ``app.localhost``."""
    name = host.lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def is_loopback_url(url: str) -> bool:
    """True if the host of `url` is a loopback host."""
    return is_loopback(urlsplit(url).hostname or "")
