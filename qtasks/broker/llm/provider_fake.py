"""A stand-in for language models: it answers the requests that go to a provider, on their way out of the broker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from qtasks.broker.ports import DeliveryRequest, Failure, Transport
from qtasks.protocol.messages import Response

ORIGIN: Final = "http://model.qtasks.internal"
"""The server behind ``api/llm`` where a stand-in answers for it: nobody is there."""

PATHS: Final = ("/chat/completions", "/v1/messages")
"""How the paths end under which chat completions are asked for."""

Ask = Callable[[DeliveryRequest], Awaitable[Response | Failure]]
"""Asks the real provider."""


class ProviderFake(Protocol):
    """Answers in place of every provider, whatever its address."""

    needs_key: bool
    """Whether it asks the providers after all, so that requests must carry their keys."""

    async def answer(self, request: DeliveryRequest, ask: Ask) -> Response | Failure:
        """The answer to a request for a chat completion. Never raises but for cancellation."""
        ...


class ProviderFakeTransport:
    """Hands requests for chat completions to `model`, and all others to `others`."""

    def __init__(self, model: ProviderFake, others: Transport) -> None:
        self._model = model
        self._others = others

    async def send(self, request: DeliveryRequest) -> Response | Failure:
        """See `Transport.send`."""
        if request.url.partition("?")[0].endswith(PATHS):
            return await self._model.answer(request, self._others.send)
        return await self._others.send(request)

    async def close(self) -> None:
        """See `Transport.close`."""
        await self._others.close()
