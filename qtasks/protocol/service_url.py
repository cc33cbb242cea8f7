"""The base URL of a service or of an application, as people write it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from qtasks.protocol.loopback import is_loopback

_API_PATH: Final = re.compile(r"(?<=[^/:])/+v2(?:/+publish)?/*$")
_SCHEME: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_USER: Final = re.compile(r"(//|^).*@")
_QUOTES: Final = "\"'`"
_SHOWN: Final = 200
"""Characters of a wrong URL that an error shows."""


@dataclass(frozen=True, slots=True)
class UrlProblem:
    """Why a text cannot be used as a base URL, to follow "which", and what to write instead."""

    what: str
    fix: str


def without_api_path(url: str) -> str:
    """The base URL of a service. ``/v2`` and ``/v2/publish`` at its end are left out: clients add them themselves."""
    return _API_PATH.sub("", url.strip()).rstrip("/")


def shown(url: str) -> str:
    """A URL for an error text, without a user name, a password and what follows the path."""
    return _USER.sub(r"\1***@", re.split(r"[?#]", url, maxsplit=1)[0])[:_SHOWN]


def problem_of(url: str) -> UrlProblem | None:
    """What is wrong with a base URL; None if it can be used."""
    if url[:1] in _QUOTES and url[:1] == url[-1:]:
        return UrlProblem("is in quotation marks", "remove the quotation marks")
    if " " in url or not url.isprintable():
        return UrlProblem("contains a space or a control character", "remove that character")
    if (scheme := _SCHEME.match(url)) is None:
        return UrlProblem("does not begin with http:// or https://", _with_scheme(url))
    if scheme[0].lower() not in ("http://", "https://"):
        return UrlProblem(f"begins with {scheme[0]}", "write a URL that begins with http:// or https://")
    try:
        parts = urlsplit(url)
        if "@" in parts.netloc:
            return UrlProblem("contains a user name or a password", "leave them out; a token belongs into QSTASH_TOKEN")
        usable = bool(parts.hostname) and parts.port != 0
        (parts.hostname or "").encode("idna")  # as the system's look-up does
    except ValueError:  # not a valid port, IPv6 address or name
        usable = False
    if not usable:
        return UrlProblem(
            "has no valid host and port", "write a URL such as https://example.com or http://127.0.0.1:8080"
        )
    if parts.query or parts.fragment:
        return UrlProblem("contains a query or a fragment", "leave out what follows the path")
    return None


def _with_scheme(url: str) -> str:
    """The fix for a URL without scheme: the one that was probably meant."""
    rest = re.sub(r"^(?:https?:?)?/+|^https?:", "", shown(url))
    try:
        host = urlsplit(f"//{rest}").hostname or ""
    except ValueError:
        host = ""
    return f"write {'http' if is_loopback(host) else 'https'}://{rest or 'example.com'}"
