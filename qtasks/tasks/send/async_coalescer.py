"""Concurrent calls on one event loop share a request; see `coalescer`.

Shared requests are made by asyncio tasks of their own, so that a cancelled caller cancels no call of another one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Protocol

from qtasks.errors import BrokerUnreachable
from qtasks.tasks.send.departures import IN_FLIGHT, PATIENCE_S, CallInCompany, Departures, Outcome
from qtasks.tasks.send.prepared_call import PreparedCall

if TYPE_CHECKING:
    from qtasks.qstash.operations.publishing import PublishResponse


class AsyncRequests(Protocol):
    """As `Requests`, without blocking."""

    async def asend_alone(self, call: PreparedCall) -> PublishResponse:
        """As `Requests.send_alone`."""
        ...

    async def asend_together(self, calls: Sequence[CallInCompany]) -> Sequence[PublishResponse | None]:
        """As `Requests.send_together`."""
        ...


class AwaitingCall(CallInCompany):
    """A call of an asyncio task that waits for a request."""

    __slots__ = ("settled",)

    def __init__(self, call: PreparedCall, settled: asyncio.Future[Outcome | Exception]) -> None:
        super().__init__(call)
        self.settled = settled

    def settle(self, outcome: Outcome | Exception) -> None:
        """Tell the caller what became of its call, unless it waits no more."""
        if not self.settled.done():
            self.settled.set_result(outcome)


class AsyncCoalescer:
    """Sends calls, those of concurrent asyncio tasks together. For one event loop; see `Coalescer`."""

    def __init__(
        self, requests: AsyncRequests, *, longest_s: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._requests = requests
        self._loop = asyncio.get_running_loop()
        self._departures: Departures[AwaitingCall] = Departures(longest_s, monotonic)
        self._patience: asyncio.TimerHandle | None = None
        self._turn_end: asyncio.Handle | None = None
        self._under_way = 0
        """Calls that have been sent and have no answer yet."""

    async def send(self, call: PreparedCall) -> PublishResponse:
        """Send a call. Raises as if it were sent alone.

        While there is room beside another request, the calls of one turn of the event loop leave together at its end:
        an answer to many callers lets all of them go on in one turn.
        """
        if self._departures.is_idle:
            request = object()
            self._begin(request, 1)
            try:
                return await self._requests.asend_alone(call)
            finally:
                self._end(request, 1)
        waiting = AwaitingCall(call, self._loop.create_future())
        self._departures.wait(waiting)
        if self._patience is None:
            self._patience = self._loop.call_later(PATIENCE_S, self._leave)
        if self._turn_end is None and self._departures.is_free:
            self._turn_end = self._loop.call_soon(self._end_turn)
        outcome = await waiting.settled
        if isinstance(outcome, Exception):
            raise outcome
        return await self._requests.asend_alone(call) if outcome is None else outcome

    def _end_turn(self) -> None:
        self._turn_end = None
        self._fill()

    def _begin(self, request: Hashable, calls: int) -> None:
        self._departures.begin(request)
        self._under_way += calls

    def _end(self, request: Hashable, calls: int) -> None:
        self._departures.end(request)
        self._under_way -= calls
        self._fill()

    def _fill(self) -> None:
        """Let those that wait leave while there is room."""
        while self._departures.first() is not None and self._departures.is_free:
            self._leave()

    def _leave(self) -> None:
        """Begin a request with those that wait."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        while group := self._departures.leave(most=self._share):
            if alive := [waiting for waiting in group if not waiting.settled.done()]:
                self._begin(self._loop.create_task(self._send_group(alive)), len(alive))
                break
        if self._departures.first() is not None:
            self._patience = self._loop.call_later(PATIENCE_S, self._leave)

    @property
    def _share(self) -> int:
        """How many calls a request takes: with equal shares one request is made while another is stored."""
        return -(-(len(self._departures) + self._under_way) // IN_FLIGHT)

    async def _send_group(self, group: Sequence[AwaitingCall]) -> None:
        """Send the calls, and settle each of them, also if this asyncio task is cancelled."""
        outcomes: Sequence[Outcome | Exception] = [None] * len(group)
        try:
            if len(group) == 1:
                outcomes = [await self._requests.asend_alone(group[0].call)]
            else:
                outcomes = await self._requests.asend_together(group)
        except BrokerUnreachable as error:
            outcomes = [error] * len(group)
        except Exception as error:
            if len(group) == 1:
                outcomes = [error]
            # Else refused as a whole, or not understood: each call is sent alone, and gets an answer of its own.
        finally:
            for waiting, outcome in zip(group, outcomes, strict=True):
                waiting.settle(outcome)
            self._end(asyncio.current_task(), len(group))
