"""Let the console of Upstash show this server in its local mode: a page of its origin may speak to the API (CORS).

That page runs in the browser of the developer, and asks the development server on this machine. No other origin is
allowed: the tokens of a development server are public, so every page could publish.
"""

from __future__ import annotations

import re
from typing import Any, Final

from qtasks.broker.server.api_server import Application
from qtasks.broker.server.asgi import Receive, Scope, Send
from qtasks.broker.server.hosts import LOOPBACK_HOSTS, host_refusal

ORIGIN: Final = b"https://console.upstash.com"
_METHODS: Final = b"GET, POST, PUT, PATCH, DELETE"
_NAMES: Final = re.compile(rb"[A-Za-z0-9_-]+(?:\s*,\s*[A-Za-z0-9_-]+)*")
_LONGEST: Final = 2_048
"""Characters of the names of headers that a page may ask for."""
_MAX_AGE_S: Final = b"600"


class UpstashConsole:
    """Passes requests on to `api`; answers the preflight requests of the console, and allows it to read responses."""

    def __init__(self, api: Application) -> None:
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or _values(scope, b"origin") != [ORIGIN]:
            await self._api(scope, receive, send)
            return
        is_preflight = scope["method"] == "OPTIONS" and _values(scope, b"access-control-request-method")
        if is_preflight and host_refusal(scope["headers"], LOOPBACK_HOSTS, "this broker") is None:
            await send({"type": "http.response.start", "status": 204, "headers": _preflight_lines(scope)})
            await send({"type": "http.response.body", "body": b""})
            return

        async def send_allowed(event: Any) -> None:
            if event["type"] == "http.response.start":
                exposed = (b"access-control-expose-headers", b"*")
                event = {**event, "headers": [*event["headers"], *_allowed_lines(), exposed]}
            await send(event)

        await self._api(scope, receive, send_allowed)


def _allowed_lines() -> list[tuple[bytes, bytes]]:
    return [(b"access-control-allow-origin", ORIGIN), (b"vary", b"Origin")]


def _preflight_lines(scope: Scope) -> list[tuple[bytes, bytes]]:
    lines = [
        *_allowed_lines(),
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-max-age", _MAX_AGE_S),
        (b"content-length", b"0"),
    ]
    names = b", ".join(_values(scope, b"access-control-request-headers"))
    if len(names) <= _LONGEST and _NAMES.fullmatch(names):
        lines.append((b"access-control-allow-headers", names))
    if _values(scope, b"access-control-request-private-network") == [b"true"]:
        lines.append((b"access-control-allow-private-network", b"true"))
    return lines


def _values(scope: Scope, header: bytes) -> list[bytes]:
    return [value for name, value in scope["headers"] if name == header]
