"""Fault injection between the broker and the application, and answers for services outside the test."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from qtasks.broker.llm import echo, provider_fake
from qtasks.broker.llm.provider_fake import ProviderFake
from qtasks.broker.ports import DeliveryRequest, Failure, Transport
from qtasks.protocol.messages import Response
from qtasks.tasks.send.end_callback import END_TASK

Send = Callable[[DeliveryRequest], Awaitable[Response | Failure]]
Fault = Callable[[DeliveryRequest, Send], Awaitable[Response | Failure]]
"""A way to make one delivery: it gets the request and the function that sends it, and returns the outcome."""

_JSON: Final = (("Content-Type", "application/json"),)
SIGNATURE: Final = "Upstash-Signature"

Answer = int | bytes | str | dict[str, Any] | list[Any] | Response | Callable[[DeliveryRequest], "Answer"]
"""The answer of another service: a status, a body (JSON unless it is text or bytes), a Response, or a function of the
request that returns one of these."""


@dataclass(slots=True)
class _FaultOrder:
    task: str | None
    fault: Fault
    times: int


class FaultyTransport:
    """Delivers to the application, with the faults that a test ordered. Other requests go to `outside`."""

    def __init__(self, base_url: str, application: Transport, outside: Transport) -> None:
        self._base_url = base_url
        self._application = application
        self._outside = outside
        self._orders: list[_FaultOrder] = []

    def order(self, task: str | None, fault: Fault, times: int = 1) -> None:
        """Make the next `times` deliveries to `task` (None: to any task) with `fault`."""
        self._orders.append(_FaultOrder(task, fault, times))

    async def send(self, request: DeliveryRequest) -> Response | Failure:
        """See `Transport.send`."""
        place, _, name = request.url.partition("?")[0].rpartition("/")
        if place != self._base_url:
            return await self._outside.send(request)
        if name == END_TASK:  # no call: faults are for calls
            return await self._application.send(request)
        order = next((each for each in self._orders if each.task in (None, name)), None)
        if order is None:
            return await self._application.send(request)
        order.times -= 1
        if order.times <= 0:
            self._orders.remove(order)
        return await order.fault(request, self._application.send)

    async def close(self) -> None:
        """See `Transport.close`."""
        await self._application.close()
        await self._outside.close()


def failing(status: int) -> Fault:
    """A fault: a proxy answers with `status`, and the application does not get the request."""

    async def fault(_request: DeliveryRequest, _send: Send) -> Response | Failure:
        return Response(status=status, headers=_JSON, body=b'{"error":"ordered by the test"}')

    return fault


def losing(on_loss: Callable[[DeliveryRequest], None]) -> Fault:
    """A fault: the response is lost. `on_loss` is called after the application has answered."""

    async def fault(request: DeliveryRequest, send: Send) -> Response | Failure:
        await send(request)
        on_loss(request)
        return Failure("connection_lost", "the response was lost, as ordered by the test")

    return fault


def twice(sign_again: Callable[[DeliveryRequest], str]) -> Fault:
    """A fault: the delivery is made twice, each with its own signature. The second response counts."""

    async def fault(request: DeliveryRequest, send: Send) -> Response | Failure:
        await send(request)
        headers = tuple((name, sign_again(request) if name == SIGNATURE else value) for name, value in request.headers)
        return await send(replace(request, headers=headers))

    return fault


@dataclass(slots=True)
class OutsideServices:
    """Every service except the application. A test reaches none of them; it defines their answers."""

    now_s: Callable[[], int]
    model: ProviderFake | None = None
    """The model that answers in place of every language model."""
    requests: list[DeliveryRequest] = field(default_factory=list)
    """The requests that would have been made."""
    _answers: list[tuple[str, Answer]] = field(default_factory=list)

    def answer(self, prefix: str, answer: Answer) -> None:
        """Answer requests to URLs that begin with `prefix`; of several definitions the latest counts."""
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
            f"a test reaches no other service, and no answer is defined for {request.url} "
            f'(define one: qtasks.answer("{request.url}", ...))',
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
