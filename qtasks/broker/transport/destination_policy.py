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

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Literal

from qtasks.broker.transport.addresses import (
    Address,
    AddressKind,
    embedded_ipv4,
    kind_of,
    literal,
    loopback_or_literal,
)
from qtasks.broker.transport.allow_rules import FLAG, AllowRule, plain_name, read_rule
from qtasks.broker.transport.destination import DEFAULT_PORTS, INVALID, Destination, parse
from qtasks.protocol.headers import WireError
from qtasks.protocol.targets import before_query

Mode = Literal["local", "public"]
Rules = tuple[AllowRule, ...]

REFUSED_PORTS = frozenset({3306, 5432, 6379, 9200, 11211, 27017})
"""Ports of databases and caches above 1023 that a `public` broker refuses: they may take a request for commands."""

_FIRST_FREE_PORT = 1024
"""Below this port (mail, shells, name service) a `public` broker connects only to the default ports of the web."""

_BLOCKED: Final = "destination blocked: "

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
class DestinationPolicy:
    """Which destinations are allowed. `local` is for a broker on loopback, `public` for every other one.

    `allow` opens further destinations, one rule per element: ``http://host:port``, ``host:port``, ``*.suffix:port``
    (one leading label), an address, or a range such as ``10.1.0.0/16``. A name without a port means 80 and 443. A URL
    with a path, or with methods in front (``POST http://host:port/path``), opens only such requests.
    `own` holds the (address, port) pairs on which this broker listens. Each stands for loopback in all its spellings;
    a wildcard address also stands for every address of the machine (the resolver reports those: `on_this_machine`).

    Raises ConfigurationError for a rule that cannot be read.
    """

    mode: Mode
    allow: tuple[str, ...] = ()
    own: frozenset[tuple[str, int]] = frozenset()
    _rules: Rules = field(init=False, repr=False, compare=False)
    """The rules that count for every request."""
    _limited: Rules = field(init=False, repr=False, compare=False)
    """The rules that count for some paths or methods only."""

    def __post_init__(self) -> None:
        rules = [read_rule(text) for text in self.allow]
        object.__setattr__(self, "_rules", tuple(rule for rule in rules if not rule.is_limited))
        object.__setattr__(self, "_limited", tuple(rule for rule in rules if rule.is_limited))

    def limited_rules(self, request: Destination, method: str) -> Rules:
        """The rules with a path or with methods that may count for a request, in addition to those without.

        A connection that was opened for them must serve only requests for which the same ones count.
        """
        return tuple(rule for rule in self._limited if rule.admits(request, method))

    def check_url(self, url: str, method: str = "POST") -> str | None:
        """The reason to refuse a publish to `url` (the text of the 400), or None if it is allowed. Resolves no name.

        No rule depends on the query of a URL, so those that differ only in it are judged once.
        """
        return self._judgement(before_query(url) or url, method)

    @lru_cache(maxsize=1024)  # noqa: B019 - a broker has one policy, which never changes, and few destinations
    def _judgement(self, url: str, method: str) -> str | None:
        try:
            place = parse(url)
        except WireError as error:
            return str(error)
        if place.userinfo and self.mode == "public":
            return f"{INVALID}credentials in a URL end up in logs: forward an Authorization header instead"
        limited = self.limited_rules(place, method)
        reason = self._refusal(loopback_or_literal(place.host), place.host, place.port, limited)
        return None if reason is None else INVALID + reason

    def check_address(
        self, address: str, host: str, port: int, limited: Rules = (), *, on_this_machine: bool = False
    ) -> str | None:
        """The reason why the broker may not connect to `address`, to which `host` resolved; None if it may.

        The publisher reads it, so it does not say to which address a name resolves. `host` may be the address itself.
        `limited` are the `limited_rules` of the request. `on_this_machine`: the address belongs to this machine, so a
        listener on a wildcard address accepts connections to it.
        """
        parsed = literal(address.partition("%")[0])
        if parsed is None:
            return f"{_BLOCKED}{host} does not resolve to an address"
        if on_this_machine and self.listens_everywhere(port):
            return _BLOCKED + _own_address(parsed, plain_name(host), port)
        reason = self._refusal(parsed, host, port, limited)
        return None if reason is None else _BLOCKED + reason

    def listens_everywhere(self, port: int) -> bool:
        """True if this broker has a wildcard listener on `port`; then every address of the machine is its own."""
        return any(own == port and host in ("0.0.0.0", "::") for host, own in self.own)  # noqa: S104 - compared only

    def _refusal(self, address: Address | None, host: str, port: int, limited: Rules) -> str | None:
        name = plain_name(host)
        rules = (*self._rules, *limited)
        named = any(rule.names(name, port) for rule in rules)
        if address is None:
            if name in _METADATA_NAMES and not named:
                return f"endpoint resolves to {AddressKind.METADATA.value}: {name} {_allow_with(name, port)}"
            return self._refused_port(name, port, allowed=named)
        if self._is_own(address, port):
            return _own_address(address, name, port)
        kind = kind_of(address)
        if not self._may_reach(address, port, rules, named=named):
            return _resolves(kind, address, name, port)
        covered = any(rule.ports and rule.covers(address, port) for rule in rules)
        return self._refused_port(name, port, allowed=named or covered)

    def _may_reach(self, address: Address, port: int, rules: Rules, *, named: bool) -> bool:
        kind = kind_of(address)
        if kind in _OPEN[self.mode] or (named and kind in _OPENED_BY_NAME):
            return True
        if kind is AddressKind.METADATA:
            return any(rule.pins(address, port) for rule in rules)
        if not any(rule.covers(address, port) for rule in rules):
            return False
        inner = embedded_ipv4(address) if kind is AddressKind.EMBEDDING else None
        return inner is None or self._may_reach(inner, port, rules, named=named)

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


def _own_address(address: Address, name: str, port: int) -> str:
    shown = f": {_place(str(address), port)}" if _is_known(name, address) else ""
    return f"endpoint resolves to this broker's own address{shown} (it would deliver to itself)"


def _resolves(kind: AddressKind, address: Address, name: str, port: int) -> str:
    by_name = kind in _OPENED_BY_NAME and literal(name) is None
    if _is_known(name, address):
        return f"endpoint resolves to {kind.value}: {address} {_allow_with(name if by_name else str(address), port)}"
    if by_name:
        return f"endpoint resolves to {kind.value} {_allow_with(name, port)}"
    return f"endpoint resolves to {kind.value} (allow that address itself with {FLAG})"


def _is_known(name: str, address: Address) -> bool:
    """True if the publisher knows the address: it is in the URL, or the name always stands for it."""
    return literal(name) is not None or (address.is_loopback and loopback_or_literal(name) is not None)


def _allow_with(host: str, port: int) -> str:
    return f"(allow it with {FLAG} {_place(host, port)})"


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
