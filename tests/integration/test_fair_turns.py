"""However many destinations never answer and however many names never resolve, healthy ones keep their latency."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from qtasks.broker.broker import Broker
from qtasks.broker.events import MessageEvent
from qtasks.broker.settings import BrokerSettings
from qtasks.broker.transport.destination_policy import DestinationPolicy
from qtasks.broker.transport.http_transport import HttpTransport
from qtasks.broker.transport.resolver import SystemResolver
from qtasks.protocol.messages import State
from tests.support.broker import publication
from tests.support.hostile import OK, HostileServer, answering

pytestmark = pytest.mark.anyio

DEAD_HOSTS = 50
SILENT_NAMES = 120
ROUNDS = 8
"""One good round is enough: in another one this machine may have been busy with something else."""
MESSAGES = 100
"""Due messages of each dead host."""


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@contextmanager
def dead_host(*, accepts: bool) -> Iterator[str]:
    """A listener that nobody serves: it accepts connections and never answers, or its backlog is full."""
    with ExitStack() as opened:
        listener = opened.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(512 if accepts else 0)
        for _ in range(0 if accepts else 4):
            filler = opened.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"


class NameServer:
    """A system call for lookups: ``healthy.test`` is this machine, and no other name is ever answered."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def __call__(self, host: str) -> list[str]:
        if host != "healthy.test":
            self.closed.wait()
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return ["127.0.0.1"]


class Deliveries:
    """A broker, and the ends of its messages."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.ends: list[MessageEvent] = []
        self._number = 0
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._noted = asyncio.Event()
        broker.watchers.add(self._note)

    def _note(self, event: MessageEvent) -> None:
        if event.state in (State.DELIVERED, State.FAILED, State.RETRY):
            self.ends.append(event)
            self._noted.set()
        if event.state is State.DELIVERED and event.message.id in self._waiting:
            self._waiting.pop(event.message.id).set_result(None)

    @property
    def timeouts(self) -> list[MessageEvent]:
        return [event for event in self.ends if event.error is not None and "no connection" in event.error]

    async def first_end(self, url_part: str) -> None:
        """Wait until an attempt to a URL that contains `url_part` has ended."""
        async with asyncio.timeout(30):
            while not any(url_part in event.message.url for event in self.ends):
                self._noted.clear()
                await self._noted.wait()

    async def publish(self, url: str, count: int = 1, timeout_ms: int = 900_000) -> None:
        publications = [
            publication(self._number + offset, url=url, timeout_ms=timeout_ms, now_ms=self.broker.clock.now_ms())
            for offset in range(count)
        ]
        self._number += count
        self.broker.deliverer.wake()
        await self.broker.store.accept(publications, now_ms=self.broker.clock.now_ms())

    async def deliver(self, url: str) -> float:
        """Publish a message and wait for its delivery; the seconds that took."""
        delivered = self._waiting[f"msg_{self._number}"] = asyncio.get_running_loop().create_future()
        started_s = time.monotonic()
        await self.publish(url)
        async with asyncio.timeout(30):
            await delivered
        return time.monotonic() - started_s


@pytest.fixture
async def deliveries() -> AsyncIterator[Deliveries]:
    names = NameServer()
    transport = HttpTransport(DestinationPolicy("local"), resolve=SystemResolver(names))
    broker = await Broker.open(BrokerSettings(path=":memory:", drain_s=0), transport=transport)
    broker.start()
    yield Deliveries(broker)
    names.closed.set()
    await broker.stop()


@pytest.fixture
def dead_urls() -> Iterator[list[str]]:
    with ExitStack() as opened:
        yield [opened.enter_context(dead_host(accepts=number % 2 == 0)) for number in range(DEAD_HOSTS)]


async def test_healthy_deliveries_keep_their_latency_beside_dead_hosts_and_silent_names(
    deliveries: Deliveries, dead_urls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qtasks.broker.transport.http_transport.CONNECT_TIMEOUT_S", 0.5)
    monkeypatch.setattr("qtasks.broker.transport.resolver.LOOKUP_TIMEOUT_S", 0.5)
    async with HostileServer(answering(OK)) as server:
        healthy = [f"http://127.0.0.1:{server.port}/", f"http://healthy.test:{server.port}/"]
        for url in healthy:
            await deliveries.deliver(url)
        for url in dead_urls:
            await deliveries.publish(url, MESSAGES)
        for number in range(SILENT_NAMES):
            await deliveries.publish(f"http://silent{number}.test/", 5)
        p99s_s = []
        for _ in range(ROUNDS):
            latencies_s = sorted([await deliveries.deliver(healthy[number % 2]) for number in range(120)])
            p99s_s.append(latencies_s[118])
            if p99s_s[-1] < 0.1:
                break
    assert min(p99s_s) < 0.1, p99s_s
    await deliveries.first_end("silent")
    unresolved = [event for event in deliveries.ends if "silent" in event.message.url]
    assert all(event.error and event.error.startswith("interrupted, no retry is spent") for event in unresolved)


async def test_a_new_host_is_served_beside_dead_ones_long_before_they_time_out(
    deliveries: Deliveries, dead_urls: list[str]
) -> None:
    for url in dead_urls:
        await deliveries.publish(url, MESSAGES)
    async with HostileServer(answering(OK)) as server:
        await deliveries.deliver(f"http://healthy.test:{server.port}/")
    assert not deliveries.timeouts
