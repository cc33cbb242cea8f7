"""Deliveries inside the process: requests to one origin call an ASGI application, all others use the network."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from typing import Final

from qtasks.broker.ports import DeliveryRequest, Failure, ResponseStream, Stopwatch, StreamingTransport, Transport
from qtasks.broker.transport.asgi_exchange import (
    LOOP_ENDED,
    AsgiApp,
    CollectedExchange,
    StreamedExchange,
    is_being_cancelled,
)
from qtasks.protocol.messages import Response

_LOOP_CLOSED: Final = Failure("connection_refused", "the application's event loop is closed", interrupted=True)


class AsgiTransport:
    """Passes requests for one origin to an ASGI application on its own event loop, and all others to `others`.

    The application sees an ordinary HTTP request. When the deadline passes, it receives ``http.disconnect``, as from a
    server whose client has disconnected; it is not cancelled.
    """

    def __init__(self, origin: str, app: AsgiApp, loop: asyncio.AbstractEventLoop, others: Transport) -> None:
        self._origin = origin
        self._app = app
        self._loop = loop
        self._others = others

    def serve(self, app: AsgiApp, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver to `app` on `loop` from now on."""
        self._app, self._loop = app, loop

    async def send(self, request: DeliveryRequest) -> Response | Failure:
        """See `Transport.send`."""
        if not self._is_inside(request):
            return await self._others.send(request)
        exchange = CollectedExchange(request)
        running = self._start(exchange, request.stopwatch)
        if running is None:
            return _LOOP_CLOSED
        try:
            async with asyncio.timeout(request.timeout_ms / 1000):
                await asyncio.shield(asyncio.wrap_future(running))
                return exchange.outcome()
        except TimeoutError:
            self._disconnect(exchange)
            return _timed_out(request)
        except asyncio.CancelledError:
            if not running.cancelled() or is_being_cancelled():
                raise
            return LOOP_ENDED

    async def open(self, request: DeliveryRequest) -> ResponseStream | Failure:
        """See `StreamingTransport.open`. The application waits while much of its response is unread."""
        if not self._is_inside(request):
            if isinstance(self._others, StreamingTransport):
                return await self._others.open(request)
            return Failure("unsendable", "the response to this request cannot be read as it arrives", final=True)
        exchange = StreamedExchange(request, self._loop)
        running = self._start(exchange, request.stopwatch)
        if running is None:
            return _LOOP_CLOSED
        exchange.follow(running)
        try:
            async with asyncio.timeout(request.timeout_ms / 1000):
                return await exchange.opened
        except TimeoutError:
            await exchange.close()
            return _timed_out(request)
        except BaseException:
            await exchange.close()
            raise

    def _is_inside(self, request: DeliveryRequest) -> bool:
        return request.url.startswith(self._origin + "/")

    def _start(
        self, exchange: CollectedExchange | StreamedExchange, stopwatch: Stopwatch
    ) -> concurrent.futures.Future[None] | None:
        """Run the application; None if its event loop is closed."""
        stopwatch.begin()
        stopwatch.connect()
        run = exchange.run(self._app)
        try:
            return asyncio.run_coroutine_threadsafe(run, self._loop)
        except RuntimeError:
            run.close()
            return None

    def _disconnect(self, exchange: CollectedExchange) -> None:
        # If the loop has closed meanwhile, the application no longer runs and needs no event.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(exchange.disconnected.set)

    async def close(self) -> None:
        """See `Transport.close`."""
        await self._others.close()


def _timed_out(request: DeliveryRequest) -> Failure:
    return Failure("timeout", f"no answer within {request.timeout_ms / 1000:g} s")
