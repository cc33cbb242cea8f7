"""The proxy that the environment names for a URL: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, and `NO_PROXY`.

httpx receives the one to use, instead of reading the variables itself: it sets up every proxy that is named, also for a
service on this machine, which is never reached through one; and of `NO_PROXY` it knows neither networks nor ports.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from urllib.parse import SplitResult, urlsplit

from qtasks.error_codes import ErrorCode
from qtasks.errors import ConfigurationError
from qtasks.protocol.loopback import is_loopback

KINDS = ("http", "https", "socks5", "socks5h")
"""Schemes of proxies that can be used; the last two with the package socksio."""

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and where it is named."""

    url: str = field(repr=False)
    """May contain a password."""
    source: str
    """The variable, or the settings of the system."""

    def __str__(self) -> str:
        kind, _, rest = self.url.partition("://")
        return f"{kind}://{rest.rpartition('@')[2]}"


def proxy_for(url: str, environ: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy through which `url` is reached, or None. Raises ConfigurationError for one that cannot be used."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_this_machine(host):
        return None
    # Imported here: it takes longer to load than this package. It also knows the settings of macOS and Windows.
    from urllib.request import getproxies

    named = getproxies()
    kind = next((kind for kind in (parts.scheme, "all") if named.get(kind)), None)
    if kind is None or is_excluded(host, _port(parts), named.get("no", "")):
        return None
    text = named[kind].strip()
    spellings = (f"{kind}_proxy", f"{kind}_proxy".upper())
    source = next((name for name in spellings if environ.get(name)), "the settings of this system")
    return _checked(Proxy(text if "://" in text else f"http://{text}", source), host)


def is_this_machine(host: str) -> bool:
    """True for the names and the addresses of this machine itself, in every form that the system resolves."""
    host = host.rstrip(".")
    if is_loopback(host):
        return True
    address = _address(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address is not None and (address.is_loopback or address.is_unspecified)


def is_excluded(host: str, port: int | None, no_proxy: str) -> bool:
    """True if `no_proxy` names a host: ``*``, a domain and all below it, an address or a network; maybe with a port."""
    return any(_excludes(entry.lower(), host.lower(), port) for entry in re.split(r"[,;\s]+", no_proxy) if entry)


def _excludes(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    entry = entry.rpartition("://")[2]
    address = _address(host)
    if address is not None and (network := _network(entry)) is not None:
        return address in network
    if (with_port := re.fullmatch(r"(\[[^]]*\]|[^:]*):(\d+)", entry)) is not None:
        if int(with_port[2]) != port:
            return False
        entry = with_port[1]
    if address is not None:
        return (named := _network(entry)) is not None and address in named
    domain = entry.removeprefix("*").strip(".")
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text.strip("[]"), strict=False)
    except ValueError:
        return None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    if not host[:1].isdigit():
        return None
    try:  # short forms, such as 127.1
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def _port(parts: SplitResult) -> int | None:
    return parts.port or _PORTS.get(parts.scheme)


def _checked(proxy: Proxy, host: str) -> Proxy:
    import httpx

    otherwise = f"correct {proxy.source}, or reach the service directly: NO_PROXY={host}"
    try:
        is_usable = urlsplit(proxy.url).scheme in KINDS and bool(httpx.Proxy(proxy.url).url.host)
    except (ValueError, httpx.InvalidURL):
        is_usable = False
    if not is_usable:
        raise ConfigurationError(
            f"{proxy.source} names the proxy {proxy}, which cannot be used",
            details={"expected": f"a URL with {', '.join(f'{kind}://' for kind in KINDS)}"},
            fix=otherwise,
        )
    if proxy.url.lower().startswith("socks") and find_spec("socksio") is None:
        raise ConfigurationError(
            f"{proxy.source} names the SOCKS proxy {proxy}, and httpx's package for such proxies is not installed",
            fix=f'pip install "httpx[socks]", or reach the service directly: NO_PROXY={host}',
            code=ErrorCode.PACKAGE_MISSING,
        )
    return proxy
