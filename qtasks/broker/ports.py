"""The transport, one of the ports through which everything not determined by its input enters the broker.

The others are `qtasks.clock`, `qtasks.randomness` and the store, `qtasks.broker.store.interface`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from qtasks.protocol.messages import Headers, Response


@dataclass(frozen=True, slots=True)
class DeliveryRequest:
    """One HTTP request to an endpoint. The URL goes out byte for byte as given."""

    url: str
    method: str
    headers: Headers
    body: bytes
    timeout_ms: int
    """One deadline around connect, TLS, send, headers and body."""


@dataclass(frozen=True, slots=True)
class Failure:
    """No usable HTTP answer; `error` is for people.

    `code` is stable: ``timeout``, ``dns``, ``connection_refused``, ``connection_lost``, ``tls``, ``bad_response``,
    ``destination_blocked`` or ``unsendable``.
    """

    code: str
    error: str
    final: bool = False
    """Trying again cannot help (a destination the policy refuses): straight to the dead letters."""


class Transport(Protocol):
    """One attempt: a request in, an answer or the reason why there is none out. Never raises but for cancellation."""

    async def send(self, request: DeliveryRequest) -> Response | Failure:
        """Send `request`, follow no redirect, read the answer up to the cap, all within the deadline."""

    async def close(self) -> None:
        """Release connections. Idempotent."""
