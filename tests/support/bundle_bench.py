"""A delivery loop in front of a dispatcher that takes bundles, whose responses the test writes line by line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Self

from qtasks.broker.core.rules import Stage
from qtasks.broker.ports import DeliveryRequest, Failure, ResponseStream, StreamBroken
from qtasks.broker.settings import DeliveryLimits
from qtasks.broker.store.sqlite import SqliteStore
from qtasks.protocol import bundles
from qtasks.protocol.bundles import SLOTS_HEADER, BundleItem, ItemOutcome
from qtasks.protocol.headers import DISPATCHER_HEADER
from qtasks.protocol.messages import Headers, Response
from tests.support import outage

OF_DISPATCHER = (DISPATCHER_HEADER, "true")
NDJSON: Headers = (("Content-Type", bundles.CONTENT_TYPE), OF_DISPATCHER, (SLOTS_HEADER, "64"))


@dataclass
class WrittenBundle:
    """A bundle that has arrived, and the response that the test writes."""

    request: DeliveryRequest
    items: list[BundleItem]
    answer: asyncio.Future[ResponseStream | Failure]
    pieces: asyncio.Queue[bytes | Failure | None] = field(default_factory=asyncio.Queue)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ids(self) -> list[str]:
        """The ids of its messages."""
        return [dict(item.headers)["Upstash-Message-Id"] for item in self.items]

    def begin(self, status: int = 200, headers: Headers = NDJSON) -> None:
        """Send the head of the response."""
        self.answer.set_result(ResponseStream(status, headers, self._read(), self._close))

    def say(self, piece: bytes) -> None:
        """Send a piece of the body."""
        self.pieces.put_nowait(piece)

    def running(self) -> None:
        """Say that deliveries run."""
        self.say(bundles.running_line(len(self.items)))

    def outcome(
        self, *places: int, status: int = 200, after_ms: int = 1, headers: Headers = (), body: bytes = b""
    ) -> None:
        """Send the outcomes of these places, in one piece."""
        headers = (OF_DISPATCHER, *headers)
        outcomes = [ItemOutcome(place, status, headers, body, after_ms) for place in places]
        self.say(b"".join(map(bundles.outcome_line, outcomes)))

    def end(self) -> None:
        """End the response."""
        self.pieces.put_nowait(None)

    def break_off(self, failure: Failure | None = None) -> None:
        """The connection ends in the middle of the response."""
        self.pieces.put_nowait(failure or Failure("connection_lost", "the response ended early"))

    async def _read(self) -> AsyncIterator[bytes]:
        while (piece := await self.pieces.get()) is not None:
            if isinstance(piece, Failure):
                raise StreamBroken(piece)
            yield piece

    async def _close(self) -> None:
        self.closed.set()


class BundleBench(outage.World):
    """A broker in front of a dispatcher with free slots. The first answer to a single delivery states them."""

    slots: int | None = 64

    def __init__(self, store: SqliteStore, limits: DeliveryLimits) -> None:
        super().__init__(store, limits)
        self.arrived: asyncio.Queue[WrittenBundle] = asyncio.Queue()
        self.transport = _Dispatcher(self)
        self.answer = self.done

    @classmethod
    async def with_known_slots(cls, limits: DeliveryLimits | None = None) -> Self:
        """A broker that has seen an answer which states the slots."""
        bench = await cls.opened(limits)
        await bench.learn()
        return bench

    async def learn(self) -> None:
        """Let the broker see an answer that states the slots."""
        [learned] = await self.publish()
        assert await self.stage(learned) is Stage.DELIVERED
        self.sent.clear()

    def done(self, _request: DeliveryRequest) -> Response:
        """A success of a single delivery."""
        slots = () if self.slots is None else ((SLOTS_HEADER, str(self.slots)),)
        return Response(status=200, headers=(OF_DISPATCHER, *slots))

    async def take(self, request: DeliveryRequest) -> ResponseStream | Failure:
        """Take a bundle."""
        request.stopwatch.begin()
        request.stopwatch.connect()
        bundle = WrittenBundle(request, bundles.read_items(request.body), asyncio.get_running_loop().create_future())
        self.arrived.put_nowait(bundle)
        return await bundle.answer

    async def bundle(self, count: int = 3, **changes: Any) -> WrittenBundle:
        """Publish `count` messages that leave in one bundle, whose response has begun."""
        await self.publish(count, **changes)
        bundle = self.only_bundle()
        bundle.begin()
        bundle.running()
        await self.settle()
        return bundle

    def only_bundle(self) -> WrittenBundle:
        """The bundle that has arrived since the last one."""
        bundle = self.arrived.get_nowait()
        assert self.arrived.empty()
        return bundle

    async def stages(self, message_ids: list[str]) -> list[Stage]:
        """The stages of messages."""
        return [await self.stage(message_id) for message_id in message_ids]

    async def errors(self, message_id: str) -> list[str]:
        """The errors in the log of a message."""
        return [entry.error for entry in await self.log(message_id) if entry.error]


class _Dispatcher:
    """The transport to it."""

    def __init__(self, bench: BundleBench) -> None:
        self._bench = bench
        self.open = bench.take
        self.send = bench.send
        self.close = bench.close
