"""Where the broker may deliver to: the guard against being used to reach what only its machine can reach.

A publisher chooses the URL and, by callbacks and dead letters, reads the answer; so without a guard a token for the
broker is a token for everything behind its firewall. Pure: text in, a refusal (a sentence) or None out.

Two checks, one table. `Policy.check_url` judges the text at publish, so that a refusal is an immediate 400; it never
resolves names. `Policy.check_address` judges every address a name resolved to, at the moment of dialling; it is the
authoritative one, and makes it irrelevant what a name answered earlier.

The table is our own: `ipaddress.is_global` calls NAT64, 6to4, multicast and two cloud metadata addresses global.
Three kinds of range:

* open by mode: `local` reaches everything but the two below, `public` only global unicast;
* opened by an address rule only (link-local, reserved, multicast, addresses that embed another one): no name we
  were told to trust resolves there by right;
* metadata services: opened by the exact address only, never by a wider range.

The broker's own listeners are never opened (a message to itself is a storm).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal

from qtasks.errors import ConfigurationError
from qtasks.protocol import targets
from qtasks.protocol.headers import WireError

Mode = Literal["local", "public"]
Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

FLAG = "--allow-destination"
"""The option a refusal names; its value is one element of `Policy.allow`."""

DEFAULT_PORTS = {"http": 80, "https": 443}

REFUSED_PORTS = frozenset({3306, 5432, 6379, 9200, 11211, 27017})
"""Databases and caches above 1023 that a `public` broker does not speak to: they may take a request for commands."""

_FIRST_FREE_PORT = 1024
"""Below it (mail, shells, name service) a `public` broker speaks to the web's own two ports only."""

_INVALID = "invalid destination url: "
_BLOCKED = "destination blocked: "

_PARTS = re.compile(
    r"(?P<scheme>https?)://(?:(?P<userinfo>[^/?]*)@)?"
    r"(?P<authority>(?P<host>\[.*?\]|[^/?:]*)(?::(?P<port>[0-9]+))?)"
    r"(?P<target>(?:[/?].*)?)",
    re.IGNORECASE,
)
"""For URLs that `protocol.targets` has found to be readable in one way only."""

_LOOPBACK_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"})
_METADATA_NAMES = frozenset({"metadata.google.internal", "metadata.goog", "instance-data.ec2.internal"})


@dataclass(frozen=True, slots=True)
class Destination:
    """A URL taken apart. The parts put together again are the text it was made from."""

    scheme: str
    """``http`` or ``https``, lower-case."""
    userinfo: str = field(repr=False)
    """Credentials in front of the host, percent-encoded as given; empty if there are none."""
    authority: str
    """Host and port as written, the value of the `Host` header."""
    host: str
    """Lower-case, without brackets."""
    port: int
    target: str = field(repr=False)
    """Path and query as written; at least ``/``."""


class Kind(Enum):
    """What a range of addresses is for; the value completes "endpoint resolves to ..."."""

    GLOBAL = "a global address"
    LOOPBACK = "a loopback address"
    PRIVATE = "a private address"
    SHARED = "a shared (carrier-grade NAT) address"
    BENCHMARK = "a benchmark address"
    DOCUMENTATION = "a documentation address"
    LINK_LOCAL = "a link-local address"
    MULTICAST = "a multicast address"
    BROADCAST = "a broadcast address"
    UNSPECIFIED = "an unspecified address"
    RESERVED = "a reserved address"
    EMBEDDING = "an address that embeds an IPv4 address"
    METADATA = "a metadata address"


_OPEN: dict[Mode, frozenset[Kind]] = {
    "local": frozenset(
        {Kind.GLOBAL, Kind.LOOPBACK, Kind.PRIVATE, Kind.SHARED, Kind.BENCHMARK, Kind.DOCUMENTATION},
    ),
    "public": frozenset({Kind.GLOBAL}),
}
_OPENED_BY_NAME = _OPEN["local"]


def _table(text: dict[str, Kind]) -> tuple[tuple[Network, Kind], ...]:
    return tuple((ip_network(network), kind) for network, kind in text.items())


_METADATA = _table(
    dict.fromkeys(
        (
            "169.254.169.254",  # AWS, Azure, Google, OpenStack and most others
            "169.254.170.2",  # AWS container credentials
            "169.254.170.23",  # AWS pod identity
            "100.100.100.200",  # Alibaba
            "192.0.0.192",  # Oracle
            "168.63.129.16",  # Azure platform
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
        ),
        Kind.METADATA,
    )
)
"""Inside wider ranges of other kinds, therefore asked first."""

_V4 = _table(
    {
        "0.0.0.0/32": Kind.UNSPECIFIED,
        "0.0.0.0/8": Kind.RESERVED,
        "10.0.0.0/8": Kind.PRIVATE,
        "100.64.0.0/10": Kind.SHARED,
        "127.0.0.0/8": Kind.LOOPBACK,
        "169.254.0.0/16": Kind.LINK_LOCAL,
        "172.16.0.0/12": Kind.PRIVATE,
        "192.0.0.0/24": Kind.RESERVED,
        "192.0.2.0/24": Kind.DOCUMENTATION,
        "192.88.99.0/24": Kind.RESERVED,
        "192.168.0.0/16": Kind.PRIVATE,
        "198.18.0.0/15": Kind.BENCHMARK,
        "198.51.100.0/24": Kind.DOCUMENTATION,
        "203.0.113.0/24": Kind.DOCUMENTATION,
        "224.0.0.0/4": Kind.MULTICAST,
        "255.255.255.255/32": Kind.BROADCAST,
        "240.0.0.0/4": Kind.RESERVED,
    }
)
"""IANA special-purpose IPv4 addresses; the first match counts. What is not listed is global."""

_V6 = _table(
    {
        "::/128": Kind.UNSPECIFIED,
        "::1/128": Kind.LOOPBACK,
        "::/96": Kind.EMBEDDING,  # IPv4-compatible
        "64:ff9b::/96": Kind.EMBEDDING,  # NAT64
        "64:ff9b:1::/48": Kind.EMBEDDING,  # NAT64, local use
        "2001::/32": Kind.EMBEDDING,  # Teredo
        "2001:db8::/32": Kind.DOCUMENTATION,
        "2001::/23": Kind.RESERVED,
        "2002::/16": Kind.EMBEDDING,  # 6to4
        "3fff::/20": Kind.DOCUMENTATION,
        "2000::/3": Kind.GLOBAL,
        "fc00::/7": Kind.PRIVATE,
        "fe80::/10": Kind.LINK_LOCAL,
        "ff00::/8": Kind.MULTICAST,
    }
)
"""The first match counts. What is not listed is reserved: only 2000::/3 has been given out."""

_ISATAP = (0x00005EFE, 0x02005EFE)
"""Upper half of an ISATAP interface identifier; the lower half is the IPv4 address, under any prefix."""

_NAT64 = IPv6Network("64:ff9b::/96")
_V4_MASK = 0xFFFFFFFF


def parse(url: str) -> Destination:
    """Take a destination apart.

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


def literal(host: str) -> Address | None:
    """The address that `host` spells, or None if it is a name."""
    try:
        return _unwrap(ip_address(host))
    except ValueError:
        return None


def _unwrap(address: Address) -> Address:
    """An IPv4-mapped IPv6 address is that IPv4 address: the kernel dials it so."""
    return (address.version == 6 and address.ipv4_mapped) or address


@lru_cache(maxsize=4096)
def kind_of(address: Address) -> Kind:
    """What `address` is for, by our own table.

    `ipaddress.is_global` is not enough: it calls NAT64, 6to4 and some cloud metadata addresses global, and its answers
    differ between Python versions.
    """
    address = _unwrap(address)
    for network, kind in _METADATA:
        if address in network:
            return kind
    if address.version == 6 and (int(address) >> 32) & _V4_MASK in _ISATAP:
        return Kind.EMBEDDING
    table, otherwise = (_V4, Kind.GLOBAL) if address.version == 4 else (_V6, Kind.RESERVED)
    return next((kind for network, kind in table if address in network), otherwise)


def _embedded(address: Address) -> Address | None:
    """The IPv4 address at the end of a NAT64 address. Other embedding forms lead to no host we would want."""
    return IPv4Address(int(address) & _V4_MASK) if address in _NAT64 else None


@dataclass(frozen=True, slots=True)
class _Rule:
    """One element of `allow`, read. Either `network` or `name` is set."""

    network: Network | None = None
    name: str = ""
    wildcard: bool = False
    """`name` stands for every name with exactly one more label in front."""
    ports: frozenset[int] | None = None
    """None: a range of addresses, which says nothing about ports."""

    def names(self, host: str, port: int) -> bool:
        """Whether the rule is about this host and port by name."""
        if not self.name or (self.ports is not None and port not in self.ports):
            return False
        return (host.partition(".")[2] if self.wildcard else host) == self.name

    def covers(self, address: Address, port: int) -> bool:
        """Whether the rule is about this address and port."""
        return self.network is not None and address in self.network and (self.ports is None or port in self.ports)

    def pins(self, address: Address, port: int) -> bool:
        """Whether the rule is about exactly this one address."""
        return self.network is not None and self.network.num_addresses == 1 and self.covers(address, port)


@lru_cache(maxsize=256)
def _read_rule(text: str) -> _Rule:
    """One `--allow-destination` value: ``http://host:port``, ``host:port``, an address, a CIDR, ``*.suffix:port``.

    Without a port a name or origin means the default ports of the web. Raises ConfigurationError.
    """
    try:
        if "://" in text:
            place = parse(text)
            return _rule_for(place.host, frozenset({place.port}))
        if (network := _network(text)) is not None:
            return _Rule(network=network)
        if "/" in text:
            raise WireError("it is no range of addresses")
        wildcard = text.startswith("*.")
        place = parse("http://" + text.removeprefix("*."))
    except WireError as error:
        raise ConfigurationError(
            f"{FLAG} {text!r} cannot be read: {str(error).removeprefix(_INVALID)}",
            details={"expected": "host:port, http://host:port, *.suffix:port, an address or a range (10.1.0.0/16)"},
        ) from error
    named_port = ":" in place.authority.rpartition("]")[2]
    ports = frozenset({place.port} if named_port else DEFAULT_PORTS.values())
    return _rule_for(place.host, ports, wildcard=wildcard)


def _network(text: str) -> Network | None:
    try:
        return ip_network(text.strip("[]"), strict=False)
    except ValueError:
        return None


def _rule_for(host: str, ports: frozenset[int], *, wildcard: bool = False) -> _Rule:
    if (address := literal(host)) is not None:
        return _Rule(network=ip_network(address), ports=ports)
    return _Rule(name=host.removesuffix("."), wildcard=wildcard, ports=ports)


@dataclass(frozen=True, slots=True)
class Policy:
    """Which destinations are allowed. `local` is for a broker on loopback, `public` for every other one.

    `allow` opens more, one rule an element: ``http://host:port``, ``host:port``, ``*.suffix:port`` (one leading label),
    an address, or a range such as ``10.1.0.0/16``; a name without port means 80 and 443.
    `own` are the (address, port) pairs this broker listens on; each stands for loopback in all its spellings, a
    wildcard address for every address of the machine as well (the dialler says which: `on_this_machine`).

    Raises ConfigurationError for an unreadable rule.
    """

    mode: Mode
    allow: tuple[str, ...] = ()
    own: frozenset[tuple[str, int]] = frozenset()
    _rules: tuple[_Rule, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rules", tuple(_read_rule(text) for text in self.allow))

    @lru_cache(maxsize=1024)  # noqa: B019 - a broker has one policy, which never changes, and few destinations
    def check_url(self, url: str) -> str | None:
        """Why a publish to `url` is refused (the text of the 400), or None. Resolves nothing."""
        try:
            place = parse(url)
        except WireError as error:
            return str(error)
        if place.userinfo and self.mode == "public":
            return f"{_INVALID}credentials in a URL end up in logs: forward an Authorization header instead"
        reason = self._refusal(_known_address(place.host), place.host, place.port)
        return None if reason is None else _INVALID + reason

    def check_address(self, address: str, host: str, port: int, *, on_this_machine: bool = False) -> str | None:
        """Why `address`, which `host` resolved to, may not be dialled; None if it may. `host` may be the literal.

        `on_this_machine`: the address is one of this machine's, so a listener on a wildcard address answers there.
        """
        found = literal(address.partition("%")[0])
        if found is None:
            return f"{_BLOCKED}{host} resolves to {address!r}, which is not an address"
        if on_this_machine and self.listens_everywhere(port):
            return _BLOCKED + _own_address(found, port)
        reason = self._refusal(found, host, port)
        return None if reason is None else _BLOCKED + reason

    def listens_everywhere(self, port: int) -> bool:
        """Whether this broker has a wildcard listener on `port`: then every address of the machine is its own."""
        return any(own == port and host in ("0.0.0.0", "::") for host, own in self.own)  # noqa: S104 - compared only

    def _refusal(self, address: Address | None, host: str, port: int) -> str | None:
        name = host.lower().removesuffix(".")
        named = any(rule.names(name, port) for rule in self._rules)
        if address is None:
            if name in _METADATA_NAMES and not named:
                return _resolves(Kind.METADATA.value, name, name, port)
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

    def _may_reach(self, address: Address, port: int, kind: Kind, *, named: bool) -> bool:
        if kind in _OPEN[self.mode] or (named and kind in _OPENED_BY_NAME):
            return True
        if kind is Kind.METADATA:
            return any(rule.pins(address, port) for rule in self._rules)
        if not any(rule.covers(address, port) for rule in self._rules):
            return False
        inner = _embedded(address) if kind is Kind.EMBEDDING else None
        return inner is None or self._may_reach(inner, port, kind_of(inner), named=named)

    def _is_own(self, address: Address, port: int) -> bool:
        reaches_loopback = kind_of(address) in (Kind.LOOPBACK, Kind.UNSPECIFIED)
        for host, own_port in self.own:
            if own_port != port:
                continue
            own = _known_address(host)
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


def _known_address(host: str) -> Address | None:
    """The address of a literal or of a name for loopback; None for every other name."""
    name = host.lower().removesuffix(".")
    if name in _LOOPBACK_NAMES or name.endswith(".localhost"):
        return IPv4Address("127.0.0.1")
    return literal(name)


def _resolves(what: str, seen: str, flag_host: str, port: int) -> str:
    return f"endpoint resolves to {what}: {seen} {_allow_with(flag_host, port)}"


def _allow_with(host: str, port: int) -> str:
    return f"(allow it with {FLAG} {_place(host, port)})"


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
