"""A destination URL in its parts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Final

from qtasks.protocol import targets
from qtasks.protocol.headers import WireError

DEFAULT_PORTS: Final = {"http": 80, "https": 443}

INVALID: Final = "invalid destination url: "
"""The beginning of a refusal at publish."""

_PARTS: Final = re.compile(
    r"(?P<scheme>https?)://(?:(?P<userinfo>[^/?]*)@)?"
    r"(?P<authority>(?P<host>\[.*?\]|[^/?:]*)(?::(?P<port>[0-9]+))?)"
    r"(?P<target>(?:[/?].*)?)",
    re.IGNORECASE,
)
"""For URLs that `protocol.targets` has accepted as readable in one way only."""


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
        raise WireError(f"{INVALID}no host can be read from it")
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
