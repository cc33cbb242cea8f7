"""Under `qtasks dev` the application answers its developer, and no web page of others.

The signing keys of `qtasks dev` are public. Without this guard a page could sign a delivery and send it: from its own
site if the application allows every origin (CORS), or after it has rebound its own name to this machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import urlsplit

from qtasks.broker.server.hosts import LOOPBACK_HOSTS, host_refusal
from qtasks.protocol.loopback import is_loopback
from qtasks.tasks.ports import ASGIApp, Receive, Scope, Send
from qtasks.tasks.web.gateway import NO_DELIVERY_KEY

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods of requests that a page may send without a header `Origin`."""

_PROXY_LINES: Final = frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip"})
"""A tunnel or proxy adds one of them, also if it writes the name of this machine into `Host`."""


class DevGuard:
    """Passes requests on to `app` if their `Host` and `Origin` are of this machine or of `hosts`.

    Deliveries must be for this machine itself, and come from it: a tunnel is open to every stranger.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] = ()) -> None:
        self._app = app
        self._allowed = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request. The events of the application's lifespan pass."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif (refusal := self._refusal(scope)) is None:
            await self._app(_without_delivery(scope), receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[1]})
        else:
            await _refuse(send, *refusal)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason, or None for a request that may pass."""
        lines = scope["headers"]
        hosts = LOOPBACK_HOSTS | self._allowed
        if (refusal := host_refusal(lines, hosts, "qtasks dev", "--allow-host")) is not None:
            return refusal
        foreign = next((origin for origin in _values(lines, b"origin") if not self._is_known(origin, lines)), None)
        if foreign is None and scope.get("method", "GET") not in _SAFE and not _values(lines, b"origin"):
            foreign = next((site for site in _values(lines, b"sec-fetch-site") if site == "cross-site"), None)
        if foreign is None:
            return None
        return 403, (
            f"refused: the request comes from a web page of another site ({foreign[:80]}), and qtasks dev has public "
            "keys. If the page is yours, start qtasks dev with --allow-host and the host name of the page (or null for "
            "a page that is a file)"
        )

    def _is_known(self, origin: str, lines: Iterable[tuple[bytes, bytes]]) -> bool:
        if origin == "null":  # a page without an origin, or one that does not tell it; the browser knows which
            return origin in self._allowed or _values(lines, b"sec-fetch-site") in (["same-origin"], ["none"])
        try:
            host = urlsplit(origin).hostname or ""
        except ValueError:
            return False
        return is_loopback(host) or host in self._allowed


def _without_delivery(scope: Scope) -> Scope:
    """The scope of a request that may pass; if it has come through a tunnel, it says that it may run no task."""
    lines = scope["headers"]
    refusal = host_refusal(lines, LOOPBACK_HOSTS, "the task")
    seen = "the request came through a proxy" if refusal is None else refusal[1]
    if refusal is None and not any(name in _PROXY_LINES for name, _ in lines):
        return scope
    reason = f"{seen}: the signing keys of qtasks dev are public, so its tasks run for its broker only"
    return {**scope, NO_DELIVERY_KEY: reason}


def _values(lines: Iterable[tuple[bytes, bytes]], header: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in lines if name == header]


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
