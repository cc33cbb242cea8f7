"""Which destinations the broker may deliver to: protection against server-side request forgery (SSRF).

A publisher chooses the URL and, through callbacks and dead letters, reads the response. Without a policy, a token for
the broker would give access to every service behind its firewall. Pure: text in, a refusal (a sentence) or None out.

Two checks share one table of addresses. `check_url` judges the text of a URL at publish, so that a refusal is an
immediate 400; it never resolves names. `check_address` judges each address that a name resolved to, immediately before
the connection is made. Only this second check is authoritative: what the name resolved to earlier does not matter.

`addresses` says what each range is for. There are three groups:

* ranges that the mode opens: `local` opens all but the two groups below, `public` only global unicast;
* ranges that only an address rule opens (link-local, reserved, multicast, addresses that embed another one): no
  trusted host name resolves there legitimately;
* metadata services: only a rule for the exact address opens them, never a wider range.

The addresses on which the broker itself listens are never open: a message to the broker would create further messages
to the broker, without end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv6Address, ip_network
from typing import Literal

from qtasks.broker.transport.addresses import (
    Address,
    AddressKind,
    Network,
    embedded_ipv4,
    kind_of,
    literal,
    loopback_or_literal,
    read_network,
)
from qtasks.errors import ConfigurationError
from qtasks.protocol import targets
from qtasks.protocol.headers import WireError

Mode = Literal["local", "public"]

FLAG = "--allow-destination"
"""The command-line option that a refusal names. Its value is one element of `DestinationPolicy.allow`."""

DEFAULT_PORTS = {"http": 80, "https": 443}

REFUSED_PORTS = frozenset({3306, 5432, 6379, 9200, 11211, 27017})
"""Ports of databases and caches above 1023 that a `public` broker refuses: they may take a request for commands."""

_FIRST_FREE_PORT = 1024
"""Below this port (mail, shells, name service) a `public` broker connects only to the default ports of the web."""

_INVALID = "invalid destination url: "
_BLOCKED = "destination blocked: "

_PARTS = re.compile(
    r"(?P<scheme>https?)://(?:(?P<userinfo>[^/?]*)@)?"
    r"(?P<authority>(?P<host>\[.*?\]|[^/?:]*)(?::(?P<port>[0-9]+))?)"
    r"(?P<target>(?:[/?].*)?)",
    re.IGNORECASE,
)
"""For URLs that `protocol.targets` has accepted as readable in one way only."""

_METADATA_NAMES = frozenset({"metadata.google.internal", "metadata.goog", "instance-data.ec2.internal"})

_OPEN: dict[Mode, frozenset[AddressKind]] = {
    "local": frozenset(
        {
            AddressKind.GLOBAL,
            AddressKind.LOOPBACK,
            AddressKind.PRIVATE,
            AddressKind.SHARED,
            AddressKind.BENCHMARK,
            AddressKind.DOCUMENTATION,
        },
    ),
    "public": frozenset({AddressKind.GLOBAL}),
}
_OPENED_BY_NAME = _OPEN["local"]


@dataclass(frozen=True, slots=True)
class Destination:
    """The parts of a URL. Joined again, they give the text that was parsed."""

    scheme: str
    """``http`` or ``https``, lower-case."""
    userinfo: str = field(repr=False)
    """Credentials in front of the host, percent-encoded as in the URL; empty if the URL has none."""
    authority: str
    """Host and port as written, the value of the `Host` header."""
    host: str
    """Lower-case, without brackets."""
    port: int
    target: str = field(repr=False)
    """Path and query as written; at least ``/``."""


def parse(url: str) -> Destination:
    """Split a destination URL into its parts.

    Raises WireError for every text that two parsers might read in two ways, see `protocol.targets.check_url`.
    """
    targets.check_url(url)
    parts = _PARTS.fullmatch(url)
    if parts is None:
        raise WireError(f"{_INVALID}no host can be read from it")
    scheme = parts["scheme"].lower()
    host = parts["host"].lower()
    target = parts["target"]
    return Destination(
        scheme=scheme,
        userinfo=parts["userinfo"] or "",
        authority=parts["authority"],
        host=str(IPv6Address(host[1:-1])) if host.startswith("[") else host,
        port=int(parts["port"] or DEFAULT_PORTS[scheme]),
        target=target if target.startswith("/") else f"/{target}",
    )


@dataclass(frozen=True, slots=True)
class _AllowRule:
    """One parsed element of `allow`. Either `network` or `name` is set."""

    network: Network | None = None
    name: str = ""
    wildcard: bool = False
    """`name` stands for every name with exactly one more label in front."""
    ports: frozenset[int] | None = None
    """None for a range of addresses, which says nothing about ports."""

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


@lru_cache(maxsize=256)
def _read_rule(text: str) -> _AllowRule:
    """Parse one `--allow-destination`: ``http://host:port``, ``host:port``, an address, a CIDR or ``*.suffix:port``.

    A name or origin without a port means ports 80 and 443. Raises ConfigurationError.
    """
    try:
        if "://" in text:
            place = parse(text)
            return _rule_for(place.host, frozenset({place.port}))
        if (network := read_network(text)) is not None:
            return _AllowRule(network=network)
        if "/" in text:
            raise WireError("it is not a range of addresses")
        wildcard = text.startswith("*.")
        place = parse("http://" + text.removeprefix("*."))
    except WireError as error:
        raise ConfigurationError(
            f"{FLAG} {text!r} cannot be read: {str(error).removeprefix(_INVALID)}",
            details={"expected": "host:port, http://host:port, *.suffix:port, an address or a range (10.1.0.0/16)"},
        ) from error
    has_port = ":" in place.authority.rpartition("]")[2]
    ports = frozenset({place.port} if has_port else DEFAULT_PORTS.values())
    return _rule_for(place.host, ports, wildcard=wildcard)


def _rule_for(host: str, ports: frozenset[int], *, wildcard: bool = False) -> _AllowRule:
    if (address := literal(host)) is not None:
        return _AllowRule(network=ip_network(address), ports=ports)
    return _AllowRule(name=host.removesuffix("."), wildcard=wildcard, ports=ports)


@dataclass(frozen=True, slots=True)
class DestinationPolicy:
    """Which destinations are allowed. `local` is for a broker on loopback, `public` for every other one.

    `allow` opens further destinations, one rule per element: ``http://host:port``, ``host:port``, ``*.suffix:port``
    (one leading label), an address, or a range such as ``10.1.0.0/16``. A name without a port means 80 and 443.
    `own` holds the (address, port) pairs on which this broker listens. Each stands for loopback in all its spellings;
    a wildcard address also stands for every address of the machine (the resolver reports those: `on_this_machine`).

    Raises ConfigurationError for a rule that cannot be read.
    """

    mode: Mode
    allow: tuple[str, ...] = ()
    own: frozenset[tuple[str, int]] = frozenset()
    _rules: tuple[_AllowRule, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rules", tuple(_read_rule(text) for text in self.allow))

    @lru_cache(maxsize=1024)  # noqa: B019 - a broker has one policy, which never changes, and few destinations
    def check_url(self, url: str) -> str | None:
        """The reason to refuse a publish to `url` (the text of the 400), or None if it is allowed. Resolves no name."""
        try:
            place = parse(url)
        except WireError as error:
            return str(error)
        if place.userinfo and self.mode == "public":
            return f"{_INVALID}credentials in a URL end up in logs: forward an Authorization header instead"
        reason = self._refusal(loopback_or_literal(place.host), place.host, place.port)
        return None if reason is None else _INVALID + reason

    def check_address(self, address: str, host: str, port: int, *, on_this_machine: bool = False) -> str | None:
        """The reason why the broker may not connect to `address`, to which `host` resolved; None if it may.

        `host` may be the address itself. `on_this_machine`: the address belongs to this machine, so a listener on a
        wildcard address accepts connections to it.
        """
        parsed = literal(address.partition("%")[0])
        if parsed is None:
            return f"{_BLOCKED}{host} resolves to {address!r}, which is not an address"
        if on_this_machine and self.listens_everywhere(port):
            return _BLOCKED + _own_address(parsed, port)
        reason = self._refusal(parsed, host, port)
        return None if reason is None else _BLOCKED + reason

    def listens_everywhere(self, port: int) -> bool:
        """True if this broker has a wildcard listener on `port`; then every address of the machine is its own."""
        return any(own == port and host in ("0.0.0.0", "::") for host, own in self.own)  # noqa: S104 - compared only

    def _refusal(self, address: Address | None, host: str, port: int) -> str | None:
        name = host.lower().removesuffix(".")
        named = any(rule.names(name, port) for rule in self._rules)
        if address is None:
            if name in _METADATA_NAMES and not named:
                return _resolves(AddressKind.METADATA.value, name, name, port)
            return self._refused_port(name, port, allowed=named)
        if self._is_own(address, port):
            return _own_address(address, port)
        kind = kind_of(address)
        if not self._may_reach(address, port, kind, named=named):
            by_name = kind in _OPENED_BY_NAME and literal(name) is None
            flag_host = name if by_name else str(address)
            return _resolves(kind.value, str(address), flag_host, port)
        covered = any(rule.ports and rule.covers(address, port) for rule in self._rules)
        return self._refused_port(name, port, allowed=named or covered)

    def _may_reach(self, address: Address, port: int, kind: AddressKind, *, named: bool) -> bool:
        if kind in _OPEN[self.mode] or (named and kind in _OPENED_BY_NAME):
            return True
        if kind is AddressKind.METADATA:
            return any(rule.pins(address, port) for rule in self._rules)
        if not any(rule.covers(address, port) for rule in self._rules):
            return False
        inner = embedded_ipv4(address) if kind is AddressKind.EMBEDDING else None
        return inner is None or self._may_reach(inner, port, kind_of(inner), named=named)

    def _is_own(self, address: Address, port: int) -> bool:
        reaches_loopback = kind_of(address) in (AddressKind.LOOPBACK, AddressKind.UNSPECIFIED)
        for host, own_port in self.own:
            if own_port != port:
                continue
            own = loopback_or_literal(host)
            if own == address:
                return True
            if reaches_loopback and own is not None and (own.is_loopback or own.is_unspecified):
                return True
        return False

    def _refused_port(self, host: str, port: int, *, allowed: bool) -> str | None:
        if self.mode == "local" or allowed or port in DEFAULT_PORTS.values():
            return None
        if port >= _FIRST_FREE_PORT and port not in REFUSED_PORTS:
            return None
        return f"port {port} is not a port of the web {_allow_with(host, port)}"


def _own_address(address: Address, port: int) -> str:
    return f"endpoint resolves to this broker's own address: {_place(str(address), port)} (it would deliver to itself)"


def _resolves(kind: str, address: str, flag_host: str, port: int) -> str:
    return f"endpoint resolves to {kind}: {address} {_allow_with(flag_host, port)}"


def _allow_with(host: str, port: int) -> str:
    return f"(allow it with {FLAG} {_place(host, port)})"


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
