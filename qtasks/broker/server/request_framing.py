"""Where a request ends, and why a proxy may see another end than we do. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

HeaderFields = Sequence[tuple[bytes, bytes]]
"""The lines of a header, their names in lower case."""

FRAMING_FIELDS: Final = frozenset({b"content-length", b"transfer-encoding"})
"""The fields that say where a body ends."""
_OF_UPGRADE: Final = frozenset({b"upgrade", b"http2-settings"})


class Parsed(Protocol):
    """What the parser knows of a request at the end of its header."""

    def get_method(self) -> bytes:
        """Such as ``GET``."""

    def get_http_version(self) -> str:
        """Such as ``1.1``."""


def find_ambiguity(parsed: Parsed, url: bytes, framing: HeaderFields) -> str | None:
    """The reason why a proxy may read this request in another way than our parser; None if it is unambiguous.

    `framing` are the lines with the names in `FRAMING_FIELDS`.
    """
    if not url.startswith((b"/", b"*")) or parsed.get_method() == b"CONNECT":
        return "the request target must be a path: this server is not a proxy"
    if b"#" in url:
        return "the request target contains a fragment (#): percent-encode it as %23, or leave it out"
    codings = [value.strip().lower() for name, value in framing if name == b"transfer-encoding"]
    if codings and parsed.get_http_version() == "1.0":
        return "Transfer-Encoding does not exist in HTTP/1.0"
    if codings and codings != [b"chunked"]:
        return "Transfer-Encoding: only chunked is supported"
    return None


def body_length(framing: HeaderFields) -> int | None:
    """The length of the body, bytes; None if it comes in chunks. The parser has refused two lengths."""
    if not framing:
        return 0
    name, value = framing[0]
    return int(value) if name == b"content-length" else None


def without_upgrade(method: bytes, url: bytes, fields: HeaderFields) -> bytes:
    """The header of the same request, as bytes, without the offer to continue in another protocol."""
    lines = [b"%b %b HTTP/1.1" % (method, url)]
    for name, value in fields:
        if name in _OF_UPGRADE:
            continue
        kept = b", ".join(_tokens_apart_from_upgrade(value)) if name == b"connection" else value
        if kept or name != b"connection":
            lines.append(b"%b: %b" % (name, kept))
    return b"\r\n".join((*lines, b"", b""))


def _tokens_apart_from_upgrade(value: bytes) -> Iterable[bytes]:
    tokens = (token.strip() for token in value.split(b","))
    return (token for token in tokens if token and token.lower() not in _OF_UPGRADE)
