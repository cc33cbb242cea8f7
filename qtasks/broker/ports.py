"""The transport port: how the broker sends one HTTP request.

Everything that the broker's input does not determine enters through four ports. The others are `qtasks.clock`,
`qtasks.randomness` and the store, `qtasks.broker.store.interface`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol, runtime_checkable

from qtasks.protocol.messages import Headers, Response


class Timing(NamedTuple):
    """How long each part of an attempt took, in milliseconds. None: it did not get there, or that is not known.

    The last part of an attempt that failed is the one in which it ended.
    """

    connect_ms: int | None = None
    """Name lookup, TCP and TLS; 0 on a kept connection."""
    first_byte_ms: int | None = None
    """From there until the response began."""
    body_ms: int | None = None
    """From there to the end of the response; None in a bundle, where it arrives at once."""
    bundled: int | None = None
    """How many deliveries its request carried; None: only this one."""


UNTIMED: Final = Timing()


class Stopwatch:
    """Measures the parts of one attempt. The caller of a transport makes it, and the transport notes what happens.

    `now_s` gives monotonic seconds.
    """

    __slots__ = ("_answered_s", "_began_s", "_connected_s", "_now_s")

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._began_s: float | None = None
        self._connected_s: float | None = None
        self._answered_s: float | None = None

    def begin(self) -> None:
        """The transport begins to connect."""
        self._began_s = self._now_s()

    def connect(self) -> None:
        """There is a connection. Called again if the request is sent once more, on another one."""
        self._connected_s, self._answered_s = self._now_s(), None

    def answer(self) -> None:
        """The response has begun."""
        self._answered_s = self._now_s()

    def timing(self, *, bundled: int | None = None) -> Timing:
        """How long each part has taken, if the attempt ends now."""
        if (began_s := self._began_s) is None:
            return UNTIMED
        end_s = self._now_s()
        if (connected_s := self._connected_s) is None:
            return Timing(_ms(began_s, end_s), bundled=bundled)
        connect_ms = _ms(began_s, connected_s)
        if (answered_s := self._answered_s) is None:
            return Timing(connect_ms, _ms(connected_s, end_s), bundled=bundled)
        return Timing(connect_ms, _ms(connected_s, answered_s), _ms(answered_s, end_s), bundled)


def _ms(from_s: float, to_s: float) -> int:
    return round((to_s - from_s) * 1000)


UNREAD: Final = Stopwatch(lambda: 0.0)


@dataclass(frozen=True, slots=True)
class DeliveryRequest:
    """One HTTP request to an endpoint. The URL is sent byte for byte as it is here."""

    url: str
    method: str
    headers: Headers
    body: bytes
    timeout_ms: int
    """One deadline for the whole attempt: connect, TLS, send, headers and body."""
    stopwatch: Stopwatch = field(default=UNREAD, repr=False, compare=False)
    """By default one that is not read."""


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

        The request's deadline covers everything until then. The caller limits the time of what follows. The
        stopwatch does not note the head, which answers none of the deliveries.
        """
