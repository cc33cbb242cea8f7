"""Header lines: canonical names, and which of them may travel to a destination (docs/protocol.md 3.5, 4.1).

A header that HTTP cannot carry is refused when the message is accepted, because at the time of delivery no caller waits
for the error. Headers that belong to one connection are left out, because gateways forward whole requests with them; so
are those that the broker writes itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from qtasks.protocol.messages import Headers

MAX_FORWARDED = 64
MAX_FORWARDED_BYTES = 16 * 1024
"""Names and values of the forwarded headers together."""

SHORT_NAME = 128
"""Characters of a name whose reading is kept in memory, at most: a batch can carry names of megabytes."""

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t\x20-\x7e]*")

PER_CONNECTION = frozenset(
    {
        "Connection",
        "Content-Length",
        "Expect",
        "Host",
        "Http2-Settings",
        "Keep-Alive",
        "Proxy-Authenticate",
        "Proxy-Authentication-Info",
        "Proxy-Authorization",
        "Proxy-Connection",
        "Te",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
    }
)
"""Headers that belong to one connection or frame one body: each connection has its own, so they are never forwarded."""

BROKER_OWNED = frozenset(
    {
        "Accept-Encoding",
        "Upstash-Caller-Ip",
        "Upstash-Message-Id",
        "Upstash-Region",
        "Upstash-Retried",
        "Upstash-Schedule-Id",
        "Upstash-Signature",
        "Upstash-Topic-Name",
    }
)
"""Headers the broker writes on every delivery; a forwarded one of these names is dropped."""


DISPATCHER_HEADER = "Qtasks-Dispatcher"
"""On every answer of the framework's dispatcher: an origin that has sent it is known to have a dispatcher behind it."""

BROKER_HEADER = "Qtasks-Broker"
"""On every answer of our broker that accepts messages. The client shares a batch between concurrent calls only with a
service that has sent it."""

INTERRUPTED_HEADER = "Qtasks-Interrupted"
"""On an answer of the dispatcher that ends no attempt: the process drains, or the call runs elsewhere. Its value says
which."""

ENDED_HEADER = "Qtasks-Ended"
"""On an answer of the dispatcher that has ended a failed call: its hooks were called. Reports of the end show it."""


NOTE_HEADER = "Qtasks-Note"
"""On a request that changes something: an operator's note, percent-encoded UTF-8, of at most 200 characters."""


class WireError(ValueError):
    """A request that cannot be accepted: a text for the caller that names the header, and the HTTP status to answer."""

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def is_name(text: str) -> bool:
    """True if HTTP allows `text` as the name of a header (a token of RFC 9110)."""
    return _NAME.fullmatch(text) is not None


def canonical_name(name: str) -> str:
    """A header name as Go's servers write it: ``my-header`` becomes ``My-Header``; an invalid name is kept."""
    return _kept_canonical(name) if len(name) <= SHORT_NAME else _canonical(name)


def _canonical(name: str) -> str:
    if not is_name(name):
        return name
    return "-".join(part[:1].upper() + part[1:].lower() for part in name.split("-"))


_kept_canonical = lru_cache(maxsize=4096)(_canonical)


def check_forwarded(lines: Iterable[tuple[str, str]]) -> Headers:
    """The valid header lines for the destination, in order.

    Left out are those that belong to one connection, with any value, and those that the broker writes itself.
    The names in `lines` must be canonical. Raises WireError: 400 for a name or value that HTTP cannot carry, 431 for
    too many.
    """
    kept = []
    size = 0
    for name, value in lines:
        if not is_name(name):
            raise WireError(f"invalid forwarded header name {name[:64]!r}: letters, digits and hyphens are allowed")
        if name in PER_CONNECTION:
            continue
        if _VALUE.fullmatch(value) is None:
            raise WireError(f"invalid value of forwarded header {name[:64]}: printable ASCII characters are allowed")
        if name in BROKER_OWNED:
            continue
        kept.append((name, value.strip(" \t")))
        size += len(name) + len(value)
    if len(kept) > MAX_FORWARDED:
        raise WireError(f"too many forwarded headers: {len(kept)} > {MAX_FORWARDED}", status=431)
    if size > MAX_FORWARDED_BYTES:
        raise WireError(f"forwarded headers too large: {size} > {MAX_FORWARDED_BYTES} bytes", status=431)
    return tuple(kept)


def decode(raw: bytes) -> str:
    """A name or value as text: UTF-8 if it is valid UTF-8, else Latin-1, the encoding of HTTP. Never fails."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
