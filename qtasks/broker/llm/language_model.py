"""The language model behind ``api/llm`` and the chat endpoint: an OpenAI-compatible server, or the built-in echo."""

from __future__ import annotations

import logging
import re
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
from qtasks.counted_log import CountedLog
from qtasks.protocol import strict_json
from qtasks.protocol.messages import DEFAULT_TIMEOUT_MS, Headers, Response
from qtasks.protocol.targets import host_of

log = logging.getLogger("qtasks.broker")

_JSON: Final = (("Content-Type", "application/json"),)
_PATH: Final = "/v1/chat/completions"
_EMPTY_DELTA: Final = re.compile(rb'("delta"\s*:\s*)\{\s*\}')
"""It cannot stand inside a text, where each of its quotation marks has a backslash in front of it."""
_LONGEST_LINE: Final = 64 * 1024
"""Bytes of an unfinished line that are held back at most."""


@dataclass(frozen=True, slots=True)
class CompletionStream:
    """A completion whose body arrives in pieces."""

    status: int
    headers: Headers
    pieces: AsyncIterator[bytes]


class LanguageModel:
    """Sends chat completions to the server at `url`; without a server, the echo answers if `has_echo` is true.

    It wraps the transport of deliveries: requests for ``api/llm`` go to the model through `to_model`, all others to
    `transport`. The operator chose the model's server, so `to_model` may reach it where publishers may not.
    """

    MISSING: Final = "no language model is configured; set QTASKS_LLM_URL to an OpenAI-compatible server, or to echo"

    def __init__(
        self,
        url: str | None,
        transport: Transport,
        clock: Clock,
        *,
        has_echo: bool,
        to_model: Transport,
    ) -> None:
        self._url = None if url is None else completions_url(url)
        self._transport = transport
        self._to_model = to_model
        self._clock = clock
        self._log = CountedLog(log, clock.monotonic)
        self._echo = has_echo
        self._session: aiohttp.ClientSession | None = None

    @property
    def available(self) -> bool:
        """True if a server is configured or the echo answers."""
        return self._url is not None or self._echo

    async def send(self, request: DeliveryRequest) -> Response | Failure:
        """See `Transport.send`."""
        if request.url != LLM_URL:
            return await self._transport.send(request)
        if self._url is None:
            if not self._echo:
                return Failure("destination_blocked", self.MISSING, final=True)
            return self._echo_response(request.body)
        # The model server does not verify deliveries, so it gets no header that identifies or signs the message.
        headers = tuple(line for line in request.headers if not line[0].lower().startswith("upstash-"))
        outcome = await self._to_model.send(replace(request, url=self._url, method="POST", headers=headers))
        return self._without_address(outcome) if isinstance(outcome, Failure) else outcome

    async def complete(self, body: bytes) -> Response | Failure:
        """The completion of a chat request, whole."""
        return await self.send(DeliveryRequest(LLM_URL, "POST", _JSON, body, DEFAULT_TIMEOUT_MS))

    async def stream(self, body: bytes) -> CompletionStream | Failure:
        """The completion of a chat request, in pieces as they arrive. The caller reads them to the end."""
        if self._url is None:
            echoed = self._echo_response(body)
            return CompletionStream(echoed.status, echoed.headers, _events(echoed.body))
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=DEFAULT_TIMEOUT_MS / 1000, connect=10)
            self._session = aiohttp.ClientSession(
                timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            )
        try:
            response = await self._session.post(
                yarl.URL(self._url, encoded=True),
                data=body,
                headers={"Content-Type": "application/json", "Accept-Encoding": "identity"},
                allow_redirects=False,
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._warn(f"{type(error).__name__}: {error}")
            return Failure("connection_lost", f"{type(error).__name__} (the log of the broker says more)")
        headers = tuple((name, value) for name, value in response.headers.items())
        return CompletionStream(response.status, headers, _relay(response))

    async def close(self) -> None:
        """See `Transport.close`."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        await self._transport.close()
        if self._to_model is not self._transport:
            await self._to_model.close()

    def _warn(self, reason: str) -> None:
        self._log.warning("requests that did not reach the language model", "no language model: %s", reason)

    def _without_address(self, failure: Failure) -> Failure:
        """The failure as a publisher may read it: where the model's server is, is the operator's matter."""
        if self._url is None:
            return failure
        self._warn(failure.error)
        return replace(failure, error=failure.error.replace(host_of(self._url), "the language model"))

    def _echo_response(self, body: bytes) -> Response:
        try:
            return echo.answer(strict_json.loads(body), now_s=self._clock.wall_ms() // 1000)
        except ValueError as error:
            return Response(status=400, headers=_JSON, body=orjson.dumps({"error": {"message": str(error)}}))


def completions_url(base: str) -> str:
    """The chat endpoint of a server; `base` is its origin, its ``/v1`` URL, or the endpoint itself."""
    base = base.rstrip("/")
    for end in (_PATH, "/chat/completions", "/v1"):
        if base.endswith(end):
            base = base.removesuffix(end)
            break
    return base.removesuffix("/v1") + _PATH


async def _relay(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    has_events = response.status == 200 and response.content_type == "text/event-stream"
    pieces = response.content.iter_any()
    try:
        async for piece in with_texts(pieces) if has_events else pieces:
            yield piece
    except (TimeoutError, aiohttp.ClientError):
        return  # the caller sees a stream that ends without [DONE]
    finally:
        response.close()


async def with_texts(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Server-sent events as they are, but with an empty text in the place of an empty delta.

    OpenAI's last chunk has no `content`; clients of QStash's chat API take it for granted in every chunk. A line is
    passed on when it is complete, so this delays nothing.
    """
    line = b""
    async for piece in pieces:
        line += piece
        whole = len(line) if len(line) > _LONGEST_LINE else max(line.rfind(b"\n"), line.rfind(b"\r")) + 1
        if whole:
            yield _EMPTY_DELTA.sub(rb'\1{"content":""}', line[:whole])
            line = line[whole:]
    if line:
        yield _EMPTY_DELTA.sub(rb'\1{"content":""}', line)


async def _events(body: bytes) -> AsyncIterator[bytes]:
    for event in body.split(b"\n\n"):
        if event:
            yield event + b"\n\n"
