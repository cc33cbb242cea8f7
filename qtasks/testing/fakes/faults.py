"""The way from the broker to the application, and what may happen to a delivery on it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from qtasks.broker.llm import echo, provider_fake
from qtasks.broker.llm.provider_fake import ProviderFake
from qtasks.broker.ports import DeliveryRequest, Failure, Transport
from qtasks.protocol.messages import Response

Send = Callable[[DeliveryRequest], Awaitable[Response | Failure]]
Fate = Callable[[DeliveryRequest, Send], Awaitable[Response | Failure]]
"""What becomes of one delivery: it gets the request, and a way to make it."""

_JSON: Final = (("Content-Type", "application/json"),)
SIGNATURE: Final = "Upstash-Signature"

Answer = int | bytes | str | dict[str, Any] | list[Any] | Response | Callable[[DeliveryRequest], "Answer"]
"""What somebody outside answers: a status, a body (JSON where it is not text or bytes), or whatever a function of the
request returns."""


@dataclass(slots=True)
class _Order:
    task: str | None
    fate: Fate
    times: int


class Faults:
    """Delivers to the application, save for what a test has ordered otherwise. All else goes to `outside`."""

    def __init__(self, base_url: str, application: Transport, outside: Transport) -> None:
        self._base_url = base_url
        self._application = application
        self._outside = outside
        self._orders: list[_Order] = []

    def order(self, task: str | None, fate: Fate, times: int = 1) -> None:
        """Let `fate` befall the next `times` deliveries to `task`; None: to any task."""
        self._orders.append(_Order(task, fate, times))

    async def send(self, request: DeliveryRequest) -> Response | Failure:
        """See `Transport.send`."""
        place, _, name = request.url.partition("?")[0].rpartition("/")
        if place != self._base_url:
            return await self._outside.send(request)
        order = next((one for one in self._orders if one.task in (None, name)), None)
        if order is None:
            return await self._application.send(request)
        order.times -= 1
        if order.times <= 0:
            self._orders.remove(order)
        return await order.fate(request, self._application.send)

    async def close(self) -> None:
        """See `Transport.close`."""
        await self._application.close()
        await self._outside.close()


def failing(status: int) -> Fate:
    """Somebody on the way answers with `status`; the application hears nothing of it."""

    async def fate(_request: DeliveryRequest, _send: Send) -> Response | Failure:
        return Response(status=status, headers=_JSON, body=b'{"error":"ordered by the test"}')

    return fate


def losing(lose: Callable[[DeliveryRequest], None]) -> Fate:
    """The application answers, but nobody hears it; `lose` is called in between."""

    async def fate(request: DeliveryRequest, send: Send) -> Response | Failure:
        await send(request)
        lose(request)
        return Failure("connection_lost", "the answer was lost, as ordered by the test")

    return fate


def twice(resign: Callable[[DeliveryRequest], str]) -> Fate:
    """The delivery is made twice, signed anew; what the second one is answered counts."""

    async def fate(request: DeliveryRequest, send: Send) -> Response | Failure:
        await send(request)
        headers = tuple((name, resign(request) if name == SIGNATURE else value) for name, value in request.headers)
        return await send(replace(request, headers=headers))

    return fate


@dataclass(slots=True)
class Outside:
    """Everything that is not the application. A test reaches none of it: it says who answers, or nobody does."""

    now_s: Callable[[], int]
    model: ProviderFake | None = None
    """Answers in place of every language model."""
    requests: list[DeliveryRequest] = field(default_factory=list)
    """What would have gone out."""
    _answers: list[tuple[str, Answer]] = field(default_factory=list)

    def answer(self, prefix: str, answer: Answer) -> None:
        """Answer what goes to a URL that begins with `prefix`; of several the latest counts."""
        self._answers.insert(0, (prefix, answer))

    async def send(self, request: DeliveryRequest) -> Response | Failure:
        """See `Transport.send`."""
        self.requests.append(request)
        path = request.url.partition("?")[0]
        if self.model is not None and path.endswith(provider_fake.PATHS):
            return await self.model.answer(request, self._refused)
        for prefix, answer in self._answers:
            if request.url.startswith(prefix):
                return _response(answer, request)
        if path.startswith(provider_fake.ORIGIN):
            return echo.answer(json.loads(request.body), now_s=self.now_s())
        return await self._refused(request)

    async def _refused(self, request: DeliveryRequest) -> Response | Failure:
        return Failure(
            "destination_blocked",
            f"a test reaches nobody outside, and nothing answers for {request.url} "
            f'(qtasks.answer("{request.url}", ...) does)',
            final=True,
        )

    async def close(self) -> None:
        """See `Transport.close`."""


def _response(answer: Answer, request: DeliveryRequest) -> Response:
    if callable(answer):
        return _response(answer(request), request)
    if isinstance(answer, Response):
        return answer
    if isinstance(answer, int):
        return Response(status=answer)
    if isinstance(answer, (str, bytes)):
        return Response(status=200, body=answer.encode() if isinstance(answer, str) else answer)
    return Response(status=200, headers=_JSON, body=json.dumps(answer).encode())
