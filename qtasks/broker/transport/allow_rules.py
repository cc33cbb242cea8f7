"""What `--allow-destination` opens: a host, an origin, a range of addresses, or some paths and methods of an origin.

A rule that is limited to a path is for one application behind an origin. Its path must therefore be read in one way
only: a request whose path a server may resolve to another one (dots, escapes, empty segments) is not below it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_network
from typing import Final

from qtasks.broker.transport.addresses import Address, Network, literal, read_network
from qtasks.broker.transport.destination import DEFAULT_PORTS, INVALID, Destination, parse
from qtasks.errors import ConfigurationError
from qtasks.protocol.headers import WireError

FLAG: Final = "--allow-destination"
"""The command-line option that a refusal names. Its value is one element of `DestinationPolicy.allow`."""

_METHODS: Final = re.compile(r"(?P<methods>[A-Z]+(?:,[A-Z]+)*) (?P<url>[^ ]+://[^ ]+)")
_SEGMENT: Final = r"(?:[A-Za-z0-9._~!$&'()*+,=:@-]|%(?!2[EFef5]|5[Cc]|3[Bb]|7[Ff])[2-7][0-9A-Fa-f])+"
"""Of a path that every server reads in the same way: no escape of a dot, a slash, a backslash, ``%`` or ``;``, and none
of a character that is not ASCII."""
_PLAIN: Final = re.compile(rf"(?:/{_SEGMENT})*/?")


@dataclass(frozen=True, slots=True)
class AllowRule:
    """One parsed element of `DestinationPolicy.allow`. Either `network` or `name` is set."""

    network: Network | None = None
    name: str = ""
    wildcard: bool = False
    """`name` stands for every name with exactly one more label in front."""
    ports: frozenset[int] | None = None
    """None for a range of addresses, which says nothing about ports."""
    path: str = ""
    """The rule is for this path and those below it; empty: for every path."""
    methods: frozenset[str] | None = None
    """None: for every method."""

    @property
    def is_limited(self) -> bool:
        """True if the rule opens only some of the requests to a destination."""
        return bool(self.path) or self.methods is not None

    def names(self, host: str, port: int) -> bool:
        """True if the rule names this host and port."""
        if not self.name or (self.ports is not None and port not in self.ports):
            return False
        return (host.partition(".")[2] if self.wildcard else host) == self.name

    def covers(self, address: Address, port: int) -> bool:
        """True if the rule's range contains this address and port."""
        return self.network is not None and address in self.network and (self.ports is None or port in self.ports)

    def pins(self, address: Address, port: int) -> bool:
        """True if the rule names exactly this one address."""
        return self.network is not None and self.network.num_addresses == 1 and self.covers(address, port)

    def admits(self, request: Destination, method: str) -> bool:
        """True if the rule may count for a request: port, path and method match, and the name if it has one."""
        if self.ports is not None and request.port not in self.ports:
            return False
        if self.name and not self.names(plain_name(request.host), request.port):
            return False
        if self.methods is not None and method.upper() not in self.methods:
            return False
        path = request.target.partition("?")[0]
        if request.userinfo or not _is_plain(path):
            return False
        return path == self.path or path.startswith(f"{self.path}/")


def plain_name(host: str) -> str:
    """A host name as rules contain it: lower-case, without a final dot."""
    return host.lower().removesuffix(".")


@lru_cache(maxsize=256)
def read_rule(text: str) -> AllowRule:
    """Parse one `--allow-destination`: ``http://host:port``, ``host:port``, an address, a CIDR or ``*.suffix:port``.

    A name or origin without a port means ports 80 and 443. A URL may have a path, and methods in front:
    ``POST,PUT http://host:port/path``. Raises ConfigurationError.
    """
    try:
        if "://" in text:
            return _rule_of_url(text)
        if (network := read_network(text)) is not None:
            return AllowRule(network=network)
        if "/" in text:
            raise WireError("it is neither a URL with http:// or https:// nor a range of addresses")
        wildcard = text.startswith("*.")
        place = parse("http://" + text.removeprefix("*."))
    except WireError as error:
        raise ConfigurationError(
            f"{FLAG} {text!r} cannot be read: {str(error).removeprefix(INVALID)}",
            details={
                "expected": "host:port, http://host:port, http://host:port/path, *.suffix:port, an address or a range "
                "(10.1.0.0/16)"
            },
        ) from error
    has_port = ":" in place.authority.rpartition("]")[2]
    ports = frozenset({place.port} if has_port else DEFAULT_PORTS.values())
    return _rule_for(place.host, ports, wildcard=wildcard)


def _rule_of_url(text: str) -> AllowRule:
    with_methods = _METHODS.fullmatch(text)
    methods = None if with_methods is None else frozenset(with_methods["methods"].split(","))
    place = parse(text if with_methods is None else with_methods["url"])
    if not _is_plain(place.target):
        raise WireError(f"its path {place.target!r} may be read in several ways, or has a query")
    return _rule_for(place.host, frozenset({place.port}), path=place.target.rstrip("/"), methods=methods)


def _rule_for(
    host: str,
    ports: frozenset[int],
    *,
    wildcard: bool = False,
    path: str = "",
    methods: frozenset[str] | None = None,
) -> AllowRule:
    if (address := literal(host)) is not None:
        return AllowRule(network=ip_network(address), ports=ports, path=path, methods=methods)
    return AllowRule(name=plain_name(host), wildcard=wildcard, ports=ports, path=path, methods=methods)


def _is_plain(path: str) -> bool:
    return _PLAIN.fullmatch(path) is not None and not {".", ".."} & set(path.split("/"))
