"""Language models for tests: a fake with fixed answers, and one that repeats recorded answers of a real model.

    model = fake_llm(Summary(title="t"), refused(429, "slow down", retry_after="1"))
    tasks = QTasks(embedded=Embedded(":memory:", llm=model))

Both answer in the broker, in place of every provider: the tasks under test stay unchanged and need neither a key nor a
port. Everything else is real, including the request that the provider would get.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

from pydantic import TypeAdapter

from qtasks.broker.llm.provider_fake import Ask
from qtasks.broker.ports import DeliveryRequest, Failure
from qtasks.protocol.messages import Headers, Response
from qtasks.tasks.run.decision import NEVER

RECORD: Final = "QTASKS_RECORD_LLM"
"""Environment variable: 1 makes missing recordings."""

_NOTHING: Final = object()
_JSON: Final = (("Content-Type", "application/json"),)


@dataclass(frozen=True, slots=True)
class ProviderRequest:
    """A request to a model."""

    url: str
    body: Mapping[str, Any]
    """The JSON body that the provider gets."""
    headers: Headers = field(default=(), repr=False)

    @property
    def model(self) -> str:
        """The name of the requested model."""
        return str(self.body.get("model"))

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages of the request; Anthropic's system messages are apart from them, in `body`."""
        return list(self.body.get("messages", ()))

    @property
    def text(self) -> str:
        """The text of the last message."""
        return str(self.messages[-1]["content"]) if self.messages else ""


@dataclass(frozen=True, slots=True)
class ProviderRefusal:
    """A provider's refusal; made by `refused`."""

    status: int
    message: str
    headers: Headers = ()


def refused(status: int, message: str = "refused", **headers: str) -> ProviderRefusal:
    """The error response of a provider: ``refused(429, "slow down", retry_after="2")``. Keywords are headers."""
    return ProviderRefusal(
        status, message, tuple((name.replace("_", "-").title(), value) for name, value in headers.items())
    )


Reply = Any
"""A text, a value that pydantic encodes as JSON (such as a model), or the result of `refused`."""


def fake_llm(*answers: Reply | Callable[[ProviderRequest], Reply | Awaitable[Reply]]) -> FakeModel:
    """A model that gives these answers in order, or the results of one function of the request.

    It does not check its answers. A request after the last answer fails its call with an error that says so.
    """
    return FakeModel(*answers)


def recorded_llm(path: str | Path, *, record: bool | None = None) -> RecordedModel:
    """A model that repeats the answers in the file `path`, which a real model gave to the same requests.

    With `record` (None: `QTASKS_RECORD_LLM=1`), a request that is not in the file goes to the provider, and a
    successful answer is added to the file. The file holds requests and answers, and no keys. Without `record`, such a
    request fails its call with an error that names the file.
    """
    return RecordedModel(Path(path), record=os.environ.get(RECORD) == "1" if record is None else record)


class FakeModel:
    """See `fake_llm`. `asked` lists the requests in order."""

    needs_key = False

    def __init__(self, *answers: Any) -> None:
        self.asked: list[ProviderRequest] = []
        self._function = answers[0] if len(answers) == 1 and callable(answers[0]) else None
        self._answers = answers
        self._remaining: Iterator[Reply] = iter(answers)

    async def answer(self, request: DeliveryRequest, ask: Ask) -> Response:  # noqa: ARG002 - it makes no request
        """See `ProviderFake.answer`."""
        asked = self._noted(request)
        try:
            reply = self._reply(asked)
            return _response_of(asked, await reply if inspect.isawaitable(reply) else reply)
        except Exception as error:
            return _never(f"fake_llm: {type(error).__name__}: {error}")

    def __call__(self, request: DeliveryRequest) -> Response:
        """The model as a function of the request, for `Environment.answer`. It cannot await an ``async def``."""
        asked = self._noted(request)
        try:
            return _response_of(asked, self._reply(asked))
        except Exception as error:
            return _never(f"fake_llm: {type(error).__name__}: {error}")

    def _noted(self, request: DeliveryRequest) -> ProviderRequest:
        self.asked.append(ProviderRequest(request.url, json.loads(request.body), request.headers))
        return self.asked[-1]

    def _reply(self, asked: ProviderRequest) -> Any:
        if self._function is not None:
            return self._function(asked)
        if (reply := next(self._remaining, _NOTHING)) is _NOTHING:
            raise LookupError(f"it has {len(self._answers)} answers and got one more request: {asked.text[:200]!r}")
        return reply


class RecordedModel:
    """See `recorded_llm`."""

    def __init__(self, path: Path, *, record: bool) -> None:
        self.path = path
        self.needs_key = record
        self._record = record
        self._entries: list[dict[str, Any]] | None = None
        self._played: dict[str, int] = {}

    async def answer(self, request: DeliveryRequest, ask: Ask) -> Response | Failure:
        """See `ProviderFake.answer`. The same request a second time gets its second answer, if it has one."""
        responses, number = self._found(request)
        if number >= len(responses) and self._record:
            return await self._recorded(request, ask)
        return self._played_back(request, responses, number)

    def __call__(self, request: DeliveryRequest) -> Response:
        """The model as a function of the request, for `Environment.answer`; it records nothing."""
        return self._played_back(request, *self._found(request))

    def _found(self, request: DeliveryRequest) -> tuple[list[dict[str, Any]], int]:
        """The recorded answers to a request, and how many of them were given already."""
        key = _key(_asked(request))
        number = self._played.get(key, 0)
        self._played[key] = number + 1
        return [entry["response"] for entry in self._loaded() if _key(entry["request"]) == key], number

    def _played_back(self, request: DeliveryRequest, responses: list[dict[str, Any]], number: int) -> Response:
        if not responses:
            return _never(self._missing(ProviderRequest(request.url, json.loads(request.body))))
        answer = responses[min(number, len(responses) - 1)]
        return Response(status=answer["status"], headers=_JSON, body=json.dumps(answer["body"]).encode())

    async def _recorded(self, request: DeliveryRequest, ask: Ask) -> Response | Failure:
        answer = await ask(request)
        if isinstance(answer, Response) and 200 <= answer.status < 300:
            self._loaded().append(
                {"request": _asked(request), "response": {"status": answer.status, "body": json.loads(answer.body)}}
            )
            self.path.parent.mkdir(parents=True, exist_ok=True)
            written = self.path.with_name(f"{self.path.name}.new")
            written.write_text(json.dumps(self._loaded(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            written.replace(self.path)
        return answer

    def _loaded(self) -> list[dict[str, Any]]:
        if self._entries is None:
            exists = self.path.exists()
            self._entries = json.loads(self.path.read_text(encoding="utf-8")) if exists else []
        return cast("list[dict[str, Any]]", self._entries)

    def _missing(self, asked: ProviderRequest) -> str:
        return (
            f"{self.path} has no recording of this request to {asked.model}: {asked.text[:200]!r}; "
            f"run once with {RECORD}=1 and the provider's key to make one"
        )


def _response_of(asked: ProviderRequest, reply: Reply) -> Response:
    if isinstance(reply, ProviderRefusal):
        body = json.dumps({"error": {"message": reply.message}}).encode()
        return Response(status=reply.status, headers=(*_JSON, *reply.headers), body=body)
    return Response(status=200, headers=_JSON, body=json.dumps(_completion(asked, reply)).encode())


def _never(why: str) -> Response:
    """An error that is not retried: the test must be corrected."""
    body = json.dumps({"error": {"message": why}}).encode()
    return Response(status=NEVER, headers=(*_JSON, ("Upstash-NonRetryable-Error", "true")), body=body)


def _asked(request: DeliveryRequest) -> dict[str, Any]:
    """A request as it is recorded. Without the host, which differs for the broker's own model."""
    return {"path": urlsplit(request.url).path, "body": json.loads(request.body)}


def _completion(asked: ProviderRequest, reply: Reply) -> dict[str, Any]:
    """An answer in the format of the requested provider."""
    text = reply if isinstance(reply, str) else TypeAdapter(type(reply)).dump_json(reply).decode()
    words_in, words_out = len(json.dumps(asked.messages).split()), len(text.split())
    if asked.url.endswith("/v1/messages"):
        block: dict[str, Any] = {"type": "text", "text": text}
        if (tools := asked.body.get("tools")) and not isinstance(reply, str):
            block = {"type": "tool_use", "id": "toolu_fake", "name": tools[0]["name"], "input": json.loads(text)}
        usage = {"input_tokens": words_in, "output_tokens": words_out}
        return {"model": asked.model, "content": [block], "stop_reason": "end_turn", "usage": usage}
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "created": 0,
        "model": asked.model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": words_in, "completion_tokens": words_out, "total_tokens": words_in + words_out},
    }


def _key(request: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
