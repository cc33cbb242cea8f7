"""A dispatcher that takes bundles, in front of any transport that makes single deliveries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Final

from qtasks.broker.ports import DeliveryRequest, Failure, ResponseStream, StreamBroken, Transport
from qtasks.clock import Clock
from qtasks.protocol import bundles
from qtasks.protocol.bundles import SLOTS_HEADER, BundleItem, ItemOutcome
from qtasks.protocol.headers import DISPATCHER_HEADER
from qtasks.protocol.messages import Headers, Response

_FIRST_HEADERS: Final = (("Content-Type", bundles.CONTENT_TYPE), (DISPATCHER_HEADER, "true"))


class BundlingTransport:
    """Passes every delivery on to `inner`, one by one, and states free slots in each answer of a dispatcher.

    It answers a bundle as a dispatcher does, with one line for each delivery as it ends. A delivery whose connection
    is lost has no line: the response breaks off once all others have ended. One that times out has none either: the
    response goes on until it is closed. `sizes` lists how many deliveries each bundle had.
    """

    def __init__(self, inner: Transport, clock: Clock, *, slots: Callable[[], int] = lambda: 256) -> None:
        self._inner = inner
        self._clock = clock
        self._slots = slots
        self.sizes: list[int] = []

    async def send(self, request: DeliveryRequest) -> Response | Failure:
        """See `Transport.send`."""
        outcome = await self._inner.send(request)
        return outcome if isinstance(outcome, Failure) else replace(outcome, headers=self._stated(outcome.headers))

    async def open(self, request: DeliveryRequest) -> ResponseStream | Failure:
        """See `StreamingTransport.open`."""
        items = bundles.read_items(request.body)
        self.sizes.append(len(items))
        deliveries = [self._delivery(request, item) for item in items]
        lines = _Lines(self._inner, self._clock, deliveries, self._stated)
        return ResponseStream(200, self._stated(_FIRST_HEADERS), lines.pieces(), lines.close)

    def _delivery(self, request: DeliveryRequest, item: BundleItem) -> DeliveryRequest:
        url = request.url.removesuffix(bundles.NAME) + item.target
        return DeliveryRequest(url, "POST", item.headers, item.body, request.timeout_ms)

    def _stated(self, headers: Headers) -> Headers:
        is_dispatcher = any(name == DISPATCHER_HEADER for name, _ in headers)
        return (*headers, (SLOTS_HEADER, str(self._slots()))) if is_dispatcher else headers

    async def close(self) -> None:
        """See `Transport.close`."""
        await self._inner.close()


class _Lines:
    """The response to one bundle."""

    def __init__(
        self,
        inner: Transport,
        clock: Clock,
        deliveries: list[DeliveryRequest],
        stated: Callable[[Headers], Headers],
    ) -> None:
        self._clock = clock
        self._stated = stated
        self._arrived_ms = clock.now_ms()
        self._runs = {asyncio.ensure_future(inner.send(delivery)): place for place, delivery in enumerate(deliveries)}

    async def pieces(self) -> AsyncIterator[bytes]:
        """The lines, as the deliveries end."""
        yield bundles.running_line(len(self._runs))
        open_runs = set(self._runs)
        lost: list[Failure] = []
        while open_runs:
            done, open_runs = await asyncio.wait(open_runs, return_when=asyncio.FIRST_COMPLETED)
            for run in sorted(done, key=self._runs.__getitem__):
                outcome = run.result()
                if isinstance(outcome, Response):
                    yield self._line(self._runs[run], outcome)
                else:
                    lost.append(outcome)
        if any(failure.code == "timeout" for failure in lost):
            await asyncio.Event().wait()
        if lost:
            raise StreamBroken(lost[0])

    def _line(self, place: int, response: Response) -> bytes:
        after_ms = max(0, self._clock.now_ms() - self._arrived_ms)
        headers = self._stated(response.headers)
        return bundles.outcome_line(ItemOutcome(place, response.status, headers, response.body, after_ms))

    async def close(self) -> None:
        """The reader is gone: what runs is cut."""
        for run in self._runs:
            run.cancel()
