"""Where a request ends, and why a proxy may see another end than we do. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

HeaderFields = Sequence[tuple[bytes, bytes]]
"""The lines of a header, their names in lower case."""

_OF_UPGRADE: Final = frozenset({b"upgrade", b"http2-settings"})


def find_ambiguity(method: bytes, url: bytes, fields: HeaderFields, version: str) -> str | None:
    """The reason why a proxy may read this request in another way than our parser; None if it is unambiguous."""
    if method == b"CONNECT" or not url.startswith((b"/", b"*")):
        return "the request target must be a path: this server is not a proxy"
    if b"#" in url:
        return "the request target contains a fragment (#): percent-encode it as %23, or leave it out"
    codings = [value.strip().lower() for name, value in fields if name == b"transfer-encoding"]
    if codings and version == "1.0":
        return "Transfer-Encoding does not exist in HTTP/1.0"
    if codings and codings != [b"chunked"]:
        return "Transfer-Encoding: only chunked is supported"
    return None


def body_length(fields: HeaderFields) -> int | None:
    """The length of the body, bytes; None if it comes in chunks. The parser has checked the header."""
    length = 0
    for name, value in fields:
        if name == b"transfer-encoding":
            return None
        if name == b"content-length":
            length = int(value)
    return length


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
