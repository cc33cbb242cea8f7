"""A cheap load generator: prepared requests over bare sockets, so that the broker is measured and not the client."""

from __future__ import annotations

import asyncio
import functools
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, cast

from benchmarks import waiting
from benchmarks.mixed_app import tasks as application
from benchmarks.processes import HOST
from benchmarks.waiting import Say
from qtasks.protocol import wire
from qtasks.protocol.messages import PublishOptions
from qtasks.tasks.encode import envelope as envelopes

_REPORT_S: Final = 5.0


class RefusedError(Exception):
    """The broker answered a publish with a status other than 201."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to publish, and the base URL of the tasks."""

    port: int
    token: str = field(repr=False)
    base_url: str


@dataclass(frozen=True, slots=True)
class Sent:
    """The result of a load."""

    count: int
    span_s: float
    began_ns: int
    """On the monotonic clock."""

    @property
    def per_s(self) -> float:
        """Publishes a second."""
        return self.count / self.span_s


def requests(
    target: Target, name: str, numbers: Sequence[int], *, delay_ms: int | None = None, not_before_s: int | None = None
) -> list[bytes]:
    """A publish of the task `name` for each of `numbers`: what `.delay()` sends, as bytes."""
    task = application.tasks[name]
    options = replace(task.delivery_options.publish, delay_ms=delay_ms, not_before_s=not_before_s)
    head = _head(target, f"{target.base_url}/{name}", options)
    made: list[bytes] = []
    for number in numbers:
        envelope = envelopes.Envelope(envelopes.new_call_id(), (number,), retries=task.delivery_options.retries)
        body = envelopes.encode(envelope)
        made.append(b"%sContent-Length: %d\r\n\r\n%s" % (head, len(body), body))
    return made


def _head(target: Target, destination: str, options: PublishOptions) -> bytes:
    lines = [
        f"POST /v2/publish/{destination} HTTP/1.1",
        f"Host: {HOST}:{target.port}",
        f"Authorization: Bearer {target.token}",
        *(f"{name}: {value}" for name, value in wire.write(options)),
    ]
    return "".join(f"{line}\r\n" for line in lines).encode()


def publish(target: Target, load: Sequence[bytes], *, in_flight: int, say: Say | None = None) -> Sent:
    """Publish all of `load` over `in_flight` connections, each sending its next as soon as the last is answered.

    Raises RefusedError for the first answer that is not 201, TimeoutError when it takes longer than
    `waiting.limit_s`.
    """
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        return runner.run(_publish(target, load, in_flight, say))


async def _publish(target: Target, load: Sequence[bytes], in_flight: int, say: Say | None) -> Sent:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    remaining = iter(load)
    progress = _Progress(len(load), ended)
    clients = [_Client(remaining, progress) for _ in range(min(in_flight, len(load)))]
    for client in clients:
        await loop.create_connection(functools.partial(_itself, client), HOST, target.port)
    reporter = loop.create_task(_report(progress, say)) if say is not None else None
    began_ns = time.monotonic_ns()
    try:
        for client in clients:
            client.send_next()
        async with asyncio.timeout(waiting.limit_s(len(load))):
            await ended
        span_s = (time.monotonic_ns() - began_ns) / 1e9
    finally:
        if reporter is not None:
            reporter.cancel()
        for client in clients:
            client.close()
    return Sent(len(load), span_s, began_ns)


def _itself(client: _Client) -> _Client:
    return client


async def _report(progress: _Progress, say: Say) -> None:
    while True:
        await asyncio.sleep(_REPORT_S)
        say(f"  {progress.count:,} of {progress.total:,} published")


class _Progress:
    """Counts the answers; ends the load after the last one, or at the first error."""

    def __init__(self, total: int, ended: asyncio.Future[None]) -> None:
        self.total = total
        self.count = 0
        self._ended = ended

    def answered(self) -> None:
        self.count += 1
        if self.count == self.total and not self._ended.done():
            self._ended.set_result(None)

    def failed(self, error: Exception) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)


class _Client(asyncio.Protocol):
    """One connection with one request in flight."""

    def __init__(self, load: Iterator[bytes], progress: _Progress) -> None:
        self._load = load
        self._progress = progress
        self._transport: asyncio.Transport | None = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # By name only: uvloop's transports are not subclasses of it.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not is_complete(self._received):
            return
        answer, self._received = self._received, b""
        if not answer.startswith(b"HTTP/1.1 201"):
            self._progress.failed(RefusedError(answer[:500].decode("latin-1")))
            return
        self._progress.answered()
        self.send_next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._progress.failed(exc or ConnectionError("the broker closed a connection"))

    def send_next(self) -> None:
        """Send the next request, if there is one."""
        if self._transport is not None and (request := next(self._load, None)) is not None:
            self._transport.write(request)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._transport is not None:
            self._transport.close()


def is_complete(answer: bytes) -> bool:
    """Whether an HTTP response with a Content-Length is complete."""
    head, blank, body = answer.partition(b"\r\n\r\n")
    if not blank:
        return False
    length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
    return len(body) >= int(length or 0)


def paced(target: Target, load: Sequence[bytes], per_s: float, before: Callable[[int], None]) -> None:
    """Publish `load` one by one at a fixed rate; `before` receives the index of each request just before it is sent.

    Raises RefusedError.
    """
    with socket.create_connection((HOST, target.port), timeout=30.0) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.monotonic()
        for place, request in enumerate(load):
            waiting.pause(began + place / per_s - time.monotonic())
            before(place)
            connection.sendall(request)
            answer = b""
            while not is_complete(answer):
                if not (piece := connection.recv(65536)):
                    raise ConnectionError("the broker closed the connection")
                answer += piece
            if not answer.startswith(b"HTTP/1.1 201"):
                raise RefusedError(answer[:500].decode("latin-1"))


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
