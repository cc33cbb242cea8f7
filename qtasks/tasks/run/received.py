"""The signed requests that this process has received: a request that arrives a second time runs nothing.

A signature is valid for five minutes. A stranger who has recorded a delivery could send it again until then, and a
proxy in front of the application may repeat a request whose connection it has lost; the broker signs each of its
attempts anew. The request that arrives again gets, by how the first one goes:

* it still runs: the same response, once there is one;
* it has succeeded: 200, without the result;
* it has failed, or its end is not known: 503, which counts as an attempt;
* it was interrupted: it runs, because the same attempt is expected again.

The memory is that of one process. Several processes need a result backend, where the lease catches replays. Only a
signed request is remembered, so a stranger cannot fill it.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import Final

from qtasks.clock import Clock
from qtasks.error_codes import ErrorCode
from qtasks.protocol.signing import TOLERANCE_S, Claims
from qtasks.tasks.run.decision import DUPLICATE_HEADER, DispatchResponse

MAX_REQUESTS: Final = 100_000
"""Requests that are remembered, about 300 bytes each. Beyond, the oldest is forgotten and could be sent again."""

MAX_WAITING: Final = 64
"""Repeated requests that wait for the response of the first one; further ones are answered at once."""

REPEATED_AFTER_MS: Final = 1_000
"""How long the client of a repeated request waits before its next one."""


class ReceivedRequest:
    """One request that this process runs or has run."""

    __slots__ = ("end", "forget_s", "has_succeeded", "is_running")

    def __init__(self, forget_s: float) -> None:
        self.forget_s = forget_s
        """When its signature is no longer valid, on the monotonic clock."""
        self.is_running = True
        self.has_succeeded = False
        self.end: Future[DispatchResponse] | None = None
        """Its response, if another request waits for it."""

    def response(self) -> DispatchResponse:
        """The response to a request that arrives again after this one has ended."""
        if not self.has_succeeded:
            return DispatchResponse.repeated(after_ms=REPEATED_AFTER_MS)
        note = "this request was received before, and its call has ended"
        response = DispatchResponse.without_result("duplicate", note, ErrorCode.REQUEST_REPEATED)
        return response.with_header(*DUPLICATE_HEADER)


class ReceivedRequests:
    """Remembers requests by the `jti` of their signature, until it expires. May be used from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._requests: OrderedDict[str, ReceivedRequest] = OrderedDict()
        """By `jti`, in the order of arrival."""
        self._waiting = 0
        self._forget_s = -math.inf
        """When the oldest request is to be forgotten, or earlier."""

    def begin(self, claims: Claims) -> ReceivedRequest | None:
        """Remember a request whose run begins; or return the earlier one, and then nothing must run."""
        if not claims.jti:
            return None
        now_s = self._clock.monotonic()
        valid_s = claims.expires_s + TOLERANCE_S - self._clock.now_ms() / 1000
        with self._lock:
            if (earlier := self._requests.get(claims.jti)) is not None:
                return earlier
            self._requests[claims.jti] = ReceivedRequest(now_s + valid_s)
            if now_s >= self._forget_s or len(self._requests) > MAX_REQUESTS:
                self._forget(now_s)
        return None

    def end(self, claims: Claims, response: DispatchResponse | None) -> None:
        """Note how the run of a request ended; `response` None: it is not known."""
        with self._lock:
            if (request := self._requests.get(claims.jti)) is None:
                return
            if response is not None and response.is_interrupted:
                del self._requests[claims.jti]
            request.is_running = False
            request.has_succeeded = response is not None and response.status == 200
            waited_for, request.end = request.end, None
        if waited_for is not None:
            waited_for.set_result(response or request.response())

    async def response_of(self, request: ReceivedRequest, timeout_s: float) -> DispatchResponse | None:
        """The response of a request that runs; None if it does not end in time, or if too many wait already."""
        with self._lock:
            if not request.is_running:
                return request.response()
            if self._waiting >= MAX_WAITING or timeout_s <= 0:
                return None
            self._waiting += 1
            if request.end is None:
                request.end = Future()
            end = asyncio.wrap_future(request.end)
        try:
            # Unlike `wait_for` it does not cancel what it waits for: others may wait for it, too.
            await asyncio.wait([end], timeout=timeout_s)
        finally:
            with self._lock:
                self._waiting -= 1
        return end.result() if end.done() else None

    def _forget(self, now_s: float) -> None:
        """Forget the oldest requests: those that have expired, and those beyond `MAX_REQUESTS`."""
        while self._requests:
            jti, oldest = next(iter(self._requests.items()))
            if len(self._requests) <= MAX_REQUESTS and oldest.forget_s > now_s:
                self._forget_s = oldest.forget_s
                return
            del self._requests[jti]
