"""Destinations: how a request path names one, and the URLs to which messages can be delivered (docs/protocol.md 2.1).

Syntax only; the destination policy decides which addresses may be reached. A URL is stored, signed and sent byte for
byte as it arrived. Therefore every URL that two parsers could read differently is refused here: it could pass the check
of one host and reach another.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple
from urllib.parse import unquote_plus

from qtasks.protocol.headers import WireError

MAX_URL = 4096
"""Characters of a destination URL; a longer one is answered 414."""

_SHORT = 512
"""Characters of a destination whose reading is kept in memory, at most."""

INVALID_SCHEME = "invalid destination url: endpoint has invalid scheme, add http:// or https://"

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_MERGED_SLASHES = re.compile(r"(https?:/)(?=[^/])", re.IGNORECASE)
_ENCODED_SCHEME = re.compile(r"https?%(25)*3a", re.IGNORECASE)
_UNSENDABLE = re.compile(r"[^\x21-\x7e]|[\\#]|%00")
_URL = re.compile(
    r"(?P<scheme>https?)://"
    r"(?:[^/?#@]*@)?"
    r"(?P<host>\[[^\]/?#@]*\]|[^/?#@:\[\]]*)"
    r"(?::(?P<port>[^/?#@:]*))?"
    r"(?:[/?].*)?",
    re.IGNORECASE | re.DOTALL,
)
_HOST = re.compile(r"(?:[A-Za-z0-9_~-]{1,63}\.)*[A-Za-z0-9_~-]{1,63}\.?")
_NUMERIC = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9A-Fa-f]*)\.?")


@dataclass(frozen=True, slots=True)
class Target:
    """The parts of a publish path: the destination as it will be stored, and the configuration in its query."""

    destination: str
    query: tuple[tuple[str, str], ...] = ()
    """Parameters whose names start with ``upstash-``, decoded, in order."""
    token: str | None = field(default=None, repr=False)
    """Value of ``qstash_token``, decoded."""


def split_target(raw: str) -> Target:
    """Split the raw text after ``/v2/publish/``, query string included, into its parts.

    Only ``qstash_token`` and ``upstash-*`` parameters are removed (any case); the rest keeps its order and encoding. A
    destination that is not a URL has no query of its own. A proxy that merges the slashes of a path, as nginx does,
    turns ``https://host`` into ``https:/host``: that is read as it was meant. Raises WireError for a value that is not
    UTF-8.
    """
    # Those with a query may have a token in it, which is not kept.
    return _kept_target(raw) if len(raw) <= _SHORT and "?" not in raw else _target(raw)


def _target(raw: str) -> Target:
    base, mark, query = raw.partition("?")
    base = _MERGED_SLASHES.sub(r"\1/", base, count=1) if _MERGED_SLASHES.match(base) else base
    kept: list[str] = []
    configuration: list[tuple[str, str]] = []
    token: str | None = None
    for part in query.split("&"):
        name, _, value = part.partition("=")
        name = unquote_plus(name).lower()
        if name == "qstash_token":
            token = unquote_plus(value) if token is None else token
        elif name.startswith("upstash-"):
            configuration.append((name, _decoded(name, value)))
        else:
            kept.append(part)
    own = "&".join(kept)
    if _is_name(base.removeprefix("api/")) or (not own and (configuration or token is not None)):
        mark = own = ""
    return Target(base + mark + own, tuple(configuration), token)


_kept_target = lru_cache(maxsize=1024)(_target)


def _decoded(name: str, value: str) -> str:
    try:
        return unquote_plus(value, errors="strict")
    except UnicodeDecodeError:
        raise WireError(f"{name}: the value is not UTF-8: {value[:64]!r}") from None


def destination_kind(text: str) -> Literal["url", "group", "api"]:
    """What a destination names: a URL, a URL group, or an API such as ``api/llm``.

    Only the form counts: `check_url` checks a URL, and the store knows which groups exist. Raises WireError for a
    text of none of these forms.
    """
    if _SCHEME.match(text):
        return "url"
    if text.startswith("api/") and _NAME.fullmatch(text, 4):
        return "api"
    if _is_name(text):
        return "group"
    if _ENCODED_SCHEME.match(text):
        raise WireError(f"{INVALID_SCHEME} (it is percent-encoded: append it as it is, /v2/publish/https://...)")
    raise WireError(INVALID_SCHEME)


def check_name(text: str, what: str) -> str:
    """`text` if it may name a queue, group, schedule ...: 1 to 128 of ``A-Z a-z 0-9 . _ -``, not ``.`` or ``..``.

    Raises WireError for any other text; `what` says in it what the name is for.
    """
    if not _NAME.fullmatch(text) or text in {".", ".."}:
        shown = text[:64].encode("unicode_escape").decode("ascii")
        raise WireError(
            f'invalid {what} "{shown}": 1 to 128 letters, digits, dots, hyphens and underscores are allowed'
        )
    return text


def check_url(text: str) -> None:
    """Refuse a URL that could not be requested exactly as it is written, or that parsers disagree about.

    Raises WireError: 414 beyond 4 KiB, 400 for anything else.
    """
    _parsed(text)


def before_query(url: str) -> str | None:
    """What is before the query of a URL, with the question mark; None if it has no query, or none that can be sent.

    No check depends on anything else: if this part passes `check_url`, so does the URL.
    """
    return _kept_before_query(url) if len(url) <= MAX_URL else None


@lru_cache(maxsize=16)
def _kept_before_query(url: str) -> str | None:
    """`before_query`, kept because a call has one URL for its reports, which is read and judged several times."""
    base, mark, query = url.partition("?")
    return base + mark if mark and _UNSENDABLE.search(query) is None else None


def host_of(url: str) -> str:
    """The ``host:port`` of a URL that passes `check_url`, lower case, with the scheme's port if none is given."""
    parts = _parsed(url)
    return f"{parts.host}:{parts.port}"


class _Parts(NamedTuple):
    host: str
    port: int


@lru_cache(maxsize=4096)
def origin_of(url: str) -> str:
    """``scheme://host[:port]`` of a URL."""
    return "/".join(url.split("/", 3)[:3])


def _parsed(text: str) -> _Parts:
    text = before_query(text) or text
    return _kept_parts(text) if len(text) <= _SHORT else _parse(text)


def _parse(text: str) -> _Parts:
    if len(text) > MAX_URL:
        raise WireError(f"destination url too long: {len(text)} > {MAX_URL}", status=414)
    if not _SCHEME.match(text):
        raise WireError(INVALID_SCHEME)
    if bad := _UNSENDABLE.search(text):
        shown = bad[0] if bad[0].isprintable() else bad[0].encode("unicode_escape").decode("ascii")
        raise WireError(
            f"invalid destination url: '{shown}' at position {bad.start()} must be percent-encoded or left out"
        )
    if (parts := _URL.fullmatch(text)) is None:
        raise WireError("invalid destination url: no host can be read from it")
    host = parts["host"].lower()
    _check_host(host)
    port = {"http": 80, "https": 443}[parts["scheme"].lower()] if parts["port"] is None else _port(parts["port"])
    return _Parts(host, port)


_kept_parts = lru_cache(maxsize=1024)(_parse)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise WireError(f"invalid destination url: port {text[:16]!r} is not a number from 1 to 65535")
    return int(text)


def _check_host(host: str) -> None:
    if not host:
        raise WireError("invalid destination url: the host is missing")
    if host.startswith("["):
        _check_address(host[1:-1], 6)
    elif _NUMERIC.fullmatch(host):
        # 127.1, 2130706433, 0x7f.1, 127.0.0.1. : some resolvers read these as addresses, others as names.
        _check_address(host, 4)
    elif not _HOST.fullmatch(host) or len(host) > 253:
        raise WireError(f"invalid destination url: {host[:64]!r} is not a host name")


def _check_address(text: str, version: Literal[4, 6]) -> None:
    try:
        if "%" in text:  # an IPv6 zone
            raise ValueError(text)
        _ = ipaddress.IPv4Address(text) if version == 4 else ipaddress.IPv6Address(text)
    except ValueError:
        form = "four decimal numbers such as 192.0.2.1" if version == 4 else "an IPv6 address in brackets"
        raise WireError(f"invalid destination url: {text[:64]!r} looks like an address but is not {form}") from None


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None
