"""The transport between the client of the application and the broker of a test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from qtasks.broker.broker import Broker
from qtasks.embedded_transport import InProcessTransport
from qtasks.protocol import durations
from qtasks.qstash.conversation.transport import Reply, Request
from qtasks.testing.brokers.callers_loop import LoopRunner

_DELAY: Final = "upstash-delay"


@dataclass(slots=True)
class _Delay:
    task: str | None
    span_ms: int


class ClientTransport(InProcessTransport):
    """Passes requests to the broker by function call, without a timeout: a debugger may stop in between.

    `follow` is called after each request, on the caller's thread, and may return work to run. Its argument is true if
    the caller's event loop runs meanwhile.
    """

    def __init__(
        self,
        broker: Broker,
        runner: LoopRunner,
        base_url: str,
        follow: Callable[[bool], Coroutine[Any, Any, Any] | None],
    ) -> None:
        super().__init__(broker, runner.submit)
        self._runner = runner
        self._base_url = base_url
        self._follow = follow
        self._delays: list[_Delay] = []

    def delay(self, task: str | None, span_ms: int) -> None:
        """Delay the next published call of `task` (None: of any task) by `span_ms` milliseconds."""
        self._delays.append(_Delay(task, span_ms))

    def send(self, request: Request, timeout_s: float) -> Reply:  # noqa: ARG002 - see above
        """See `SyncTransport.send`."""
        reply = self._runner.call(self.handle(self._delayed(request)))
        if (following := self._follow(False)) is not None:
            self._runner.call(following)
        return reply

    async def asend(self, request: Request) -> Reply:
        """As `send`, without blocking."""
        reply = await asyncio.wrap_future(self.submit(self._delayed(request)))
        if (following := self._follow(True)) is not None:
            await asyncio.wrap_future(self._runner.submit(following))
        return reply

    def _delayed(self, request: Request) -> Request:
        """`request`, with a delay on its calls if the test has ordered one with `delay`."""
        if not self._delays:
            return request
        path, separator, destination = request.url.partition(f"/{self._base_url}/")
        if separator and ("/v2/publish" in path or "/v2/enqueue/" in path):
            headers = self._delayed_headers(destination, dict(request.headers))
            return replace(request, headers=tuple(headers.items()))
        if request.url.endswith("/v2/batch"):
            items = [self._delayed_item(item) for item in json.loads(request.body)]
            return replace(request, body=json.dumps(items).encode())
        return request

    def _delayed_item(self, item: dict[str, Any]) -> dict[str, Any]:
        place, _, task = item["destination"].rpartition("/")
        return (
            {**item, "headers": self._delayed_headers(task, item.get("headers", {}))}
            if place == self._base_url
            else item
        )

    def _delayed_headers(self, task: str, headers: Mapping[str, str]) -> dict[str, str]:
        order = next((each for each in self._delays if each.task in (None, task)), None)
        if order is None:
            return dict(headers)
        self._delays.remove(order)
        delay = next((value for name, value in headers.items() if name.lower() == _DELAY), "0s")
        others = {name: value for name, value in headers.items() if name.lower() != _DELAY}
        return {**others, "Upstash-Delay": durations.format(durations.parse(delay) + order.span_ms)}


class AsyncClientTransport:
    """`ClientTransport` for the asynchronous client."""

    def __init__(self, transport: ClientTransport) -> None:
        self._transport = transport

    async def send(self, request: Request, timeout_s: float) -> Reply:  # noqa: ARG002 - as of `ClientTransport`
        """See `AsyncTransport.send`."""
        return await self._transport.asend(request)

    async def close(self) -> None:
        """Nothing to release: the environment owns the broker."""
