"""A fake for language models: it answers requests to providers instead of letting them leave the broker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from qtasks.broker.ports import DeliveryRequest, Failure, Transport
from qtasks.protocol.messages import Response

ORIGIN: Final = "http://model.qtasks.internal"
"""The address of the server behind ``api/llm`` while a fake answers for it. No server has this address."""

PATHS: Final = ("/chat/completions", "/v1/messages")
"""The ends of the paths that serve chat completions."""

Ask = Callable[[DeliveryRequest], Awaitable[Response | Failure]]
"""Sends a request to the real provider."""


class ProviderFake(Protocol):
    """Answers in place of every provider, at every address."""

    needs_key: bool
    """True if the fake may still ask the real provider (to record), so that requests must carry its key."""

    async def answer(self, request: DeliveryRequest, ask: Ask) -> Response | Failure:
        """The response to a request for a chat completion. Raises nothing but CancelledError."""
        ...


class ProviderFakeTransport:
    """Passes requests for chat completions to `model`, and all others to `others`."""

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
