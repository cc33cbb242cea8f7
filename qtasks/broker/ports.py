"""The transport port: how the broker sends one HTTP request.

Everything that the broker's input does not determine enters through four ports. The others are `qtasks.clock`,
`qtasks.randomness` and the store, `qtasks.broker.store.interface`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from qtasks.protocol.messages import Headers, Response


@dataclass(frozen=True, slots=True)
class DeliveryRequest:
    """One HTTP request to an endpoint. The URL is sent byte for byte as it is here."""

    url: str
    method: str
    headers: Headers
    body: bytes
    timeout_ms: int
    """One deadline for the whole attempt: connect, TLS, send, headers and body."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt without a usable HTTP response. `error` is a sentence for people.

    `code` is stable: ``timeout``, ``dns``, ``connection_refused``, ``connection_lost``, ``tls``, ``bad_response``,
    ``destination_blocked`` or ``unsendable``.
    """

    code: str
    error: str
    final: bool = False
    """True if a retry cannot help (the policy refuses the destination): the message becomes a dead letter at once."""
    attempted: bool = True
    """False if this broker could not even try (no file descriptor, a silent name server): for no message an attempt."""
    interrupted: bool = False
    """True if the connection was refused, reset or cut before an answer: an interruption for messages that ask so."""
    mid_run: bool = False
    """With `interrupted`: the whole request had been sent, so the endpoint may have begun to work on it."""


class Transport(Protocol):
    """Makes one attempt: a request in, a response or a failure out. Raises nothing but CancelledError."""

    async def send(self, request: DeliveryRequest) -> Response | Failure:
        """Send `request` and read the response up to the size limit, within the deadline; follow no redirect."""

    async def close(self) -> None:
        """Release connections. Idempotent."""


@dataclass(frozen=True, slots=True)
class ResponseStream:
    """A response whose body arrives in pieces. The caller must always call `close`, even after reading it to its end.

    `chunks` raises `StreamBroken` if the response does not end as it should.
    """

    status: int
    headers: Headers
    chunks: AsyncIterator[bytes] = field(repr=False)
    close: Callable[[], Awaitable[None]] = field(repr=False)


class StreamBroken(Exception):
    """A response ended before its end. `failure` says how."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error)
        self.failure = failure


@runtime_checkable
class StreamingTransport(Protocol):
    """A transport that can also return a response before its body is complete. Only bundles need it."""

    async def open(self, request: DeliveryRequest) -> ResponseStream | Failure:
        """As `Transport.send`, but return after the head of the response.

        The request's deadline covers everything until then. The caller limits the time of what follows.
        """
