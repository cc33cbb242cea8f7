"""The language model behind ``api/llm`` and the chat endpoint: an OpenAI-compatible server, or an echo that says so."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any, Final

import aiohttp
import orjson
import yarl

from qtasks.broker.composing import LLM_URL
from qtasks.broker.ports import Clock, Failure, Request, Transport
from qtasks.protocol import strict_json
from qtasks.protocol.messages import DEFAULT_TIMEOUT_MS, Headers, Response

_JSON: Final = (("Content-Type", "application/json"),)
_EVENTS: Final = (("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache"))
_PATH: Final = "/v1/chat/completions"
ECHO_MODEL: Final = "qtasks-echo"


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer that is still coming."""

    status: int
    headers: Headers
    pieces: AsyncIterator[bytes]


class LanguageModel:
    """Sends chat completions to the server at `url`; without one an echo answers where `echo` allows it.

    It wraps the transport of deliveries: what is addressed to ``api/llm`` goes to the model, everything else through.
    """

    MISSING: Final = "no language model is configured; set QTASKS_LLM_URL to an OpenAI-compatible server"

    def __init__(self, url: str | None, transport: Transport, clock: Clock, *, echo: bool) -> None:
        self._url = None if url is None else completions_url(url)
        self._transport = transport
        self._clock = clock
        self._echo = echo
        self._session: aiohttp.ClientSession | None = None

    @property
    def available(self) -> bool:
        """Whether anybody answers."""
        return self._url is not None or self._echo

    async def send(self, request: Request) -> Response | Failure:
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
        return await self.send(Request(LLM_URL, "POST", _JSON, body, DEFAULT_TIMEOUT_MS))

    async def stream(self, body: bytes) -> Stream | Failure:
        """The answer to a chat request as it comes."""
        if self._url is None:
            answer = self._answer(body)
            return Stream(answer.status, answer.headers, _pieces(answer.body))
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=DEFAULT_TIMEOUT_MS / 1000, connect=10)
            self._session = aiohttp.ClientSession(timeout=timeout, auto_decompress=False)
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
        return Stream(answered.status, headers, _relayed(answered))

    async def close(self) -> None:
        """See `Transport.close`."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        await self._transport.close()

    def _answer(self, body: bytes) -> Response:
        try:
            return echo(strict_json.loads(body), now_s=self._clock.now_ms() // 1000)
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


# -- the echo


def echo(wanted: Any, *, now_s: int) -> Response:
    """A deterministic answer that says what it is. Raises ValueError for what is no chat request."""
    if not isinstance(wanted, dict) or not isinstance(wanted.get("messages"), list) or not wanted["messages"]:
        raise ValueError("expected a JSON object with model and messages")
    said = [one.get("content") for one in wanted["messages"] if isinstance(one, dict) and one.get("role") == "user"]
    last = said[-1] if said and isinstance(said[-1], str) else ""
    text = f"This is the built-in echo model of qtasks, not a language model. You said: {last}"
    head = {
        "id": "chatcmpl-" + hashlib.sha256(orjson.dumps(wanted["messages"])).hexdigest()[:24],
        "created": now_s,
        "model": ECHO_MODEL,
    }
    prompt_tokens, completion_tokens = len(orjson.dumps(wanted["messages"]).split()), len(text.split())
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    if wanted.get("stream") is True:
        return Response(status=200, headers=_EVENTS, body=_events(head, text, usage))
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    answer = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
    return Response(status=200, headers=_JSON, body=orjson.dumps(answer))


def _events(head: dict[str, object], text: str, usage: dict[str, int]) -> bytes:
    """The answer word by word: the role in the first event, the usage in the last, then ``[DONE]``."""
    first, *words = text.split(" ")
    deltas: list[dict[str, str]] = [
        {"role": "assistant", "content": first},
        *({"content": f" {word}"} for word in words),
    ]
    events = [_chunk(head, delta) for delta in deltas]
    events.append({**_chunk(head, {}, "stop"), "usage": usage})
    return b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def _chunk(head: dict[str, object], delta: dict[str, str], finish_reason: str | None = None) -> dict[str, object]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {**head, "object": "chat.completion.chunk", "choices": [choice]}
