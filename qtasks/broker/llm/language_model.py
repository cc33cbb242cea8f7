"""The language model behind ``api/llm`` and the chat endpoint: an OpenAI-compatible server, or an echo that says so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Final

import aiohttp
import orjson
import yarl

from qtasks.broker.core.message_builder import LLM_URL
from qtasks.broker.llm import echo
from qtasks.broker.ports import DeliveryRequest, Failure, Transport
from qtasks.clock import Clock
from qtasks.protocol import strict_json
from qtasks.protocol.messages import DEFAULT_TIMEOUT_MS, Headers, Response

_JSON: Final = (("Content-Type", "application/json"),)
_PATH: Final = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class CompletionStream:
    """An answer that is still coming."""

    status: int
    headers: Headers
    pieces: AsyncIterator[bytes]


class LanguageModel:
    """Sends chat completions to the server at `url`; without one an echo answers where `has_echo` allows it.

    It wraps the transport of deliveries: what is addressed to ``api/llm`` goes to the model, everything else through.
    """

    MISSING: Final = "no language model is configured; set QTASKS_LLM_URL to an OpenAI-compatible server, or to echo"

    def __init__(self, url: str | None, transport: Transport, clock: Clock, *, has_echo: bool) -> None:
        self._url = None if url is None else completions_url(url)
        self._transport = transport
        self._clock = clock
        self._echo = has_echo
        self._session: aiohttp.ClientSession | None = None

    @property
    def available(self) -> bool:
        """Whether anybody answers."""
        return self._url is not None or self._echo

    async def send(self, request: DeliveryRequest) -> Response | Failure:
        """See `Transport.send`."""
        if request.url != LLM_URL:
            return await self._transport.send(request)
        if self._url is None:
            if not self._echo:
                return Failure("destination_blocked", self.MISSING, final=True)
            return self._answer(request.body)
        # The model is no receiver of ours: what identifies and signs a message is none of its business.
        headers = tuple(line for line in request.headers if not line[0].lower().startswith("upstash-"))
        return await self._transport.send(replace(request, url=self._url, headers=headers))

    async def complete(self, body: bytes) -> Response | Failure:
        """The answer to a chat request."""
        return await self.send(DeliveryRequest(LLM_URL, "POST", _JSON, body, DEFAULT_TIMEOUT_MS))

    async def stream(self, body: bytes) -> CompletionStream | Failure:
        """The answer to a chat request as it comes."""
        if self._url is None:
            answer = self._answer(body)
            return CompletionStream(answer.status, answer.headers, _pieces(answer.body))
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=DEFAULT_TIMEOUT_MS / 1000, connect=10)
            self._session = aiohttp.ClientSession(
                timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            )
        try:
            answered = await self._session.post(
                yarl.URL(self._url, encoded=True),
                data=body,
                headers={"Content-Type": "application/json", "Accept-Encoding": "identity"},
                allow_redirects=False,
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return Failure("connection_lost", f"{type(error).__name__}: {error}"[:500])
        headers = tuple((name, value) for name, value in answered.headers.items())
        return CompletionStream(answered.status, headers, _relayed(answered))

    async def close(self) -> None:
        """See `Transport.close`."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        await self._transport.close()

    def _answer(self, body: bytes) -> Response:
        try:
            return echo.answer(strict_json.loads(body), now_s=self._clock.now_ms() // 1000)
        except ValueError as error:
            return Response(status=400, headers=_JSON, body=orjson.dumps({"error": {"message": str(error)}}))


def completions_url(base: str) -> str:
    """The chat endpoint of a server given by its address, by its ``/v1``, or in full."""
    base = base.rstrip("/")
    for end in (_PATH, "/chat/completions", "/v1"):
        if base.endswith(end):
            base = base.removesuffix(end)
            break
    return base.removesuffix("/v1") + _PATH


async def _relayed(answered: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for piece in answered.content.iter_any():
            yield piece
    except (TimeoutError, aiohttp.ClientError):
        return  # the caller sees a stream that ends without [DONE]
    finally:
        answered.close()


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for event in body.split(b"\n\n"):
        if event:
            yield event + b"\n\n"
