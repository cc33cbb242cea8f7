"""Refuses the requests of other web pages: any page may send requests to any address, with the cookies of its visitor.

Browsers say where a request comes from in `Sec-Fetch-Site` (over HTTPS and on loopback) and in `Origin` (with every
request that may change something). A program that is not a browser sends neither. A broker is such a program, too, and
sends what its publishers choose: it sends no request here either.
"""

from __future__ import annotations

import hmac
from typing import Final
from urllib.parse import urlsplit

from qtasks.broker.api.api_request import ApiRequest, HttpError
from qtasks.protocol.messages import Headers

CSRF_HEADER: Final = "QTasks-CSRF"
SAFE_METHODS: Final = ("GET", "HEAD")

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS: Final[Headers] = (
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=()"),
)
"""On every response of the console."""


def check_origin(request: ApiRequest) -> None:
    """HttpError 403 for a request that a page of another origin, or a publisher through a broker, has sent."""
    if request.header("upstash-message-id") is not None:
        raise HttpError(403, "the console answers to people and programs, and this request is a delivery of a broker")
    site = request.header("sec-fetch-site")
    if site is not None:
        if site != "same-origin" and not (site == "none" and request.method in SAFE_METHODS):
            raise HttpError(403, "the console answers only to its own pages, and this request is from another page")
        return
    if (origin := request.header("origin")) is not None and not _is_own(origin, request.header("host") or ""):
        raise HttpError(403, "the console answers only to its own pages, and this request is from another origin")


def _is_own(origin: str, host: str) -> bool:
    """True if `origin` is that of `host`; a proxy in front of the server may have removed the scheme and its port."""
    try:
        parts = urlsplit(origin)
        has_port = parts.port is not None
    except ValueError:
        return False
    own = host.lower() if has_port else host.lower().removesuffix(":443").removesuffix(":80")
    return parts.scheme in ("http", "https") and parts.netloc.lower() == own


def check_csrf(request: ApiRequest, expected: str) -> None:
    """HttpError 403 for a request that may change something without the text that the page got with its session."""
    if request.method in SAFE_METHODS:
        return
    received = request.header(CSRF_HEADER.lower())
    if received is None or not hmac.compare_digest(received.encode("utf-8", "surrogateescape"), expected.encode()):
        raise HttpError(403, f"the header {CSRF_HEADER} does not have the value of this session: load the page again")


def is_https(request: ApiRequest) -> bool:
    """True if the visitor's browser uses HTTPS, maybe to a proxy in front of the server."""
    origin = request.header("origin") or ""
    return origin.lower().startswith("https://") or (request.header("x-forwarded-proto") or "").lower() == "https"
