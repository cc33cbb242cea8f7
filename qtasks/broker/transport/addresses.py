"""The kinds of IP address ranges. Pure: no lookup, no socket.

The table is our own: `ipaddress.is_global` reports NAT64, 6to4, multicast and two cloud metadata addresses as global.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_LOOPBACK_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"})


class AddressKind(Enum):
    """The purpose of a range of addresses. The value completes the sentence "endpoint resolves to ..."."""

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


def _table(text: dict[str, AddressKind]) -> tuple[tuple[Network, AddressKind], ...]:
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
        AddressKind.METADATA,
    )
)
"""They lie inside wider ranges of other kinds, so this table is consulted first."""

_V4 = _table(
    {
        "0.0.0.0/32": AddressKind.UNSPECIFIED,
        "0.0.0.0/8": AddressKind.RESERVED,
        "10.0.0.0/8": AddressKind.PRIVATE,
        "100.64.0.0/10": AddressKind.SHARED,
        "127.0.0.0/8": AddressKind.LOOPBACK,
        "169.254.0.0/16": AddressKind.LINK_LOCAL,
        "172.16.0.0/12": AddressKind.PRIVATE,
        "192.0.0.0/24": AddressKind.RESERVED,
        "192.0.2.0/24": AddressKind.DOCUMENTATION,
        "192.88.99.0/24": AddressKind.RESERVED,
        "192.168.0.0/16": AddressKind.PRIVATE,
        "198.18.0.0/15": AddressKind.BENCHMARK,
        "198.51.100.0/24": AddressKind.DOCUMENTATION,
        "203.0.113.0/24": AddressKind.DOCUMENTATION,
        "224.0.0.0/4": AddressKind.MULTICAST,
        "255.255.255.255/32": AddressKind.BROADCAST,
        "240.0.0.0/4": AddressKind.RESERVED,
    }
)
"""IANA special-purpose IPv4 addresses. The first match counts; every other IPv4 address is global."""

_V6 = _table(
    {
        "::/128": AddressKind.UNSPECIFIED,
        "::1/128": AddressKind.LOOPBACK,
        "::/96": AddressKind.EMBEDDING,  # IPv4-compatible
        "64:ff9b::/96": AddressKind.EMBEDDING,  # NAT64
        "64:ff9b:1::/48": AddressKind.EMBEDDING,  # NAT64, local use
        "2001::/32": AddressKind.EMBEDDING,  # Teredo
        "2001:db8::/32": AddressKind.DOCUMENTATION,
        "2001::/23": AddressKind.RESERVED,
        "2002::/16": AddressKind.EMBEDDING,  # 6to4
        "3fff::/20": AddressKind.DOCUMENTATION,
        "2000::/3": AddressKind.GLOBAL,
        "fc00::/7": AddressKind.PRIVATE,
        "fe80::/10": AddressKind.LINK_LOCAL,
        "ff00::/8": AddressKind.MULTICAST,
    }
)
"""The first match counts. Every other IPv6 address is reserved: IANA has assigned only 2000::/3."""

_ISATAP = (0x00005EFE, 0x02005EFE)
"""Upper half of an ISATAP interface identifier. The lower half is the IPv4 address, under any prefix."""

_NAT64 = IPv6Network("64:ff9b::/96")
_V4_MASK = 0xFFFFFFFF


def literal(host: str) -> Address | None:
    """The address that `host` spells, or None if `host` is a name."""
    try:
        return _unwrap(ip_address(host))
    except ValueError:
        return None


def loopback_or_literal(host: str) -> Address | None:
    """The address of a literal or of a name for loopback (``localhost``, ``*.localhost``); None for other names."""
    name = host.lower().removesuffix(".")
    if name in _LOOPBACK_NAMES or name.endswith(".localhost"):
        return IPv4Address("127.0.0.1")
    return literal(name)


def read_network(text: str) -> Network | None:
    """The address or CIDR range that `text` spells, brackets allowed; None if it spells neither."""
    try:
        return ip_network(text.strip("[]"), strict=False)
    except ValueError:
        return None


@lru_cache(maxsize=4096)
def kind_of(address: Address) -> AddressKind:
    """The kind of the range that contains `address`."""
    address = _unwrap(address)
    for network, kind in _METADATA:
        if address in network:
            return kind
    if address.version == 6 and (int(address) >> 32) & _V4_MASK in _ISATAP:
        return AddressKind.EMBEDDING
    table, default = (_V4, AddressKind.GLOBAL) if address.version == 4 else (_V6, AddressKind.RESERVED)
    return next((kind for network, kind in table if address in network), default)


def embedded_ipv4(address: Address) -> Address | None:
    """The IPv4 address at the end of a NAT64 address. Other embedding forms lead to no host that may be reached."""
    return IPv4Address(int(address) & _V4_MASK) if address in _NAT64 else None


def _unwrap(address: Address) -> Address:
    """An IPv4-mapped IPv6 address is that IPv4 address: the kernel connects to it so."""
    return (address.version == 6 and address.ipv4_mapped) or address
