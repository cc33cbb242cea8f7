"""Concurrent calls of blocking code share a request.

No thread exists for it: the thread of one of the calls sends them all. If that thread is interrupted, the others send
their calls themselves. The broker stores each of them once, because of its deduplication id.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from qtasks.errors import BrokerUnreachable
from qtasks.forks import per_process
from qtasks.tasks.send.departures import PATIENCE_S, CallInCompany, Departures, Outcome
from qtasks.tasks.send.prepared_call import PreparedCall

if TYPE_CHECKING:
    from qtasks.qstash.operations.publishing import PublishResponse


class Requests(Protocol):
    """The requests that send calls."""

    def send_alone(self, call: PreparedCall) -> PublishResponse:
        """Send one call."""
        ...

    def send_together(self, calls: Sequence[CallInCompany]) -> Sequence[PublishResponse | None]:
        """Send calls in one request. None for a call that the broker refused. Raises if there is no answer to all."""
        ...


class WaitingCall(CallInCompany):
    """A call of a thread that waits for its turn to send, or for another thread that sends it."""

    __slots__ = ("is_settled", "outcome", "until_s", "wake")

    def __init__(self, call: PreparedCall) -> None:
        super().__init__(call)
        self.wake = threading.Event()
        """Set when the call may leave, and when it is settled."""
        self.until_s: float | None = None
        """The time at which the request that has the call has ended at the latest; None before it leaves."""
        self.is_settled = False
        self.outcome: Outcome = None

    def settle(self, outcome: Outcome) -> None:
        """Tell the thread what became of its call."""
        self.outcome, self.is_settled = outcome, True
        self.wake.set()


class Coalescer:
    """Sends calls, those of concurrent threads together. Thread-safe.

    `longest_s` is how many seconds a request takes at most.
    """

    def __init__(
        self, requests: Requests, *, longest_s: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._requests = requests
        self._longest_s = longest_s
        self._monotonic = monotonic
        per_process(self._begin)

    def _begin(self) -> None:
        self._lock = threading.RLock()  # a signal handler may send a call
        self._departures: Departures[WaitingCall] = Departures(self._longest_s, self._monotonic)

    def send(self, call: PreparedCall) -> PublishResponse:
        """Send a call. Raises as if it were sent alone."""
        request = object()
        try:
            if self._may_begin(request):
                return self._requests.send_alone(call)
        finally:
            self._end(request)
        return self._send_in_company(WaitingCall(call))

    def _may_begin(self, request: object) -> bool:
        with self._lock:
            if is_free := self._departures.is_free:
                self._departures.begin(request)
            return is_free

    def _end(self, request: object) -> None:
        """Note the end of a request, and let the call leave that has waited longest."""
        with self._lock:
            departures = self._departures
            departures.end(request)
            if (first := departures.first()) is not None and departures.is_free:
                departures.begin(first)
                first.wake.set()

    def _send_in_company(self, waiting: WaitingCall) -> PublishResponse:
        try:
            if group := self._group_of(waiting):
                self._send_group(group)
        finally:
            with self._lock:
                self._departures.give_up(waiting)
            self._end(waiting)
        if isinstance(waiting.outcome, BrokerUnreachable):
            raise waiting.outcome
        return self._requests.send_alone(waiting.call) if waiting.outcome is None else waiting.outcome

    def _group_of(self, waiting: WaitingCall) -> list[WaitingCall]:
        """Wait until the call may leave. Returns it with those that leave with it; empty if another one took it along.

        It is then settled, unless the thread that took it has disappeared.
        """
        with self._lock:
            self._departures.wait(waiting)
            if self._departures.is_free:
                return self._leave(waiting)
        limit_s = PATIENCE_S
        while limit_s > 0:
            waiting.wake.wait(limit_s)
            with self._lock:
                if waiting.is_settled:
                    break
                if waiting.until_s is None:
                    return self._leave(waiting)
                waiting.wake.clear()  # it was called when another one had taken it along
                limit_s = waiting.until_s - self._monotonic()
        return []

    def _leave(self, leader: WaitingCall) -> list[WaitingCall]:
        until_s = self._departures.begin(leader)
        group = self._departures.leave(leader)
        for waiting in group:
            waiting.until_s = until_s
        return group

    def _send_group(self, group: Sequence[WaitingCall]) -> None:
        """Send the calls, and settle each of them, also if this thread is interrupted."""
        outcomes: Sequence[Outcome] = [None] * len(group)
        try:
            if len(group) == 1:
                outcomes = [self._requests.send_alone(group[0].call)]
            else:
                outcomes = self._requests.send_together(group)
        except BrokerUnreachable as error:
            outcomes = [error] * len(group)
        except Exception:
            if len(group) == 1:
                raise
            # Refused as a whole, or not understood: each call is sent alone, and gets an answer of its own.
        finally:
            with self._lock:
                for waiting, outcome in zip(group, outcomes, strict=True):
                    waiting.settle(outcome)
