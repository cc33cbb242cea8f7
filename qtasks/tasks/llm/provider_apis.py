"""How providers want to be asked and how they answer: OpenAI's form, which most others speak, and Anthropic's. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from qtasks.error_codes import ErrorCode
from qtasks.errors import OutputError
from qtasks.tasks.llm.chat_messages import ChatMessage, Usage
from qtasks.tasks.llm.output import Output
from qtasks.tasks.llm.providers import Provider

Json = dict[str, Any]


ANTHROPIC_MAX_TOKENS = 4096
"""The longest answer where nobody says: Anthropic wants to be told, and every model of theirs can do so much."""


MAX_TOKENS = 10**12
"""More than this no answer costs: a provider that says so does not know."""


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """What a model answered."""

    text: str
    """Text; or the JSON of what it gave to the tool that takes the answer."""
    usage: Usage
    turn: Json
    """The answer as a message of the conversation."""
    cut_off: bool = False
    """Whether it ended at the longest length allowed."""
    refusal: str | None = None
    """Why the model will not answer."""


class ProviderApi(Protocol):
    """One form of requests and answers."""

    settings: frozenset[str]
    """Which of `ModelOptions` it knows."""

    def request(
        self, model: str, messages: Sequence[ChatMessage], output: Output[Any], said: Mapping[str, Any]
    ) -> Json:
        """The body that asks `model`; `said` are the settings."""
        ...

    def read(self, document: Json, model: str) -> ModelAnswer:
        """The answer in a body. Raises KeyError, TypeError, IndexError or AttributeError for what is none."""
        ...

    def repair(self, request: Json, answer: ModelAnswer, complaint: str) -> Json:
        """`request` again, with the answer and what is wrong with it at its end."""
        ...


class OpenAIApi:
    """The chat completions of OpenAI, and of servers that are compatible with them."""

    settings = frozenset({"temperature", "max_tokens", "top_p", "stop", "seed", "strict", "extra"})

    def __init__(self, *, length: str = "max_tokens") -> None:
        # OpenAI's newer models take the one name only, compatible servers mostly the other.
        self._length = length

    def request(
        self, model: str, messages: Sequence[ChatMessage], output: Output[Any], said: Mapping[str, Any]
    ) -> Json:
        """See `ProviderApi.request`."""
        body: Json = {"model": model, "messages": list(messages)}
        body |= {name: said[name] for name in ("temperature", "top_p", "stop", "seed") if name in said}
        if "max_tokens" in said:
            body[self._length] = said["max_tokens"]
        if not output.is_text:
            form: Json = {"name": output.name, "schema": output.schema}
            if "strict" in said:
                form["strict"] = said["strict"]
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return body | dict(said.get("extra", {}))

    def read(self, document: Json, model: str) -> ModelAnswer:
        """See `ProviderApi.read`."""
        choice = document["choices"][0]
        message = choice["message"]
        usage = document.get("usage") or {}
        refusal = message.get("refusal") or None
        return ModelAnswer(
            text=_text(message["content"]) if refusal is None else refusal,
            usage=Usage(
                str(document.get("model") or model),
                _count(usage.get("prompt_tokens")),
                _count(usage.get("completion_tokens")),
            ),
            turn={"role": "assistant", "content": message.get("content") or ""},
            cut_off=choice.get("finish_reason") == "length",
            refusal=refusal,
        )

    def repair(self, request: Json, answer: ModelAnswer, complaint: str) -> Json:
        """See `ProviderApi.repair`."""
        asked = {"role": "user", "content": complaint}
        return {**request, "messages": [*request["messages"], answer.turn, asked]}


class AnthropicApi:
    """The messages of Anthropic. An output that is no text is asked for as the input of a tool that must be used."""

    settings = frozenset({"temperature", "max_tokens", "top_p", "stop", "extra"})

    def request(
        self, model: str, messages: Sequence[ChatMessage], output: Output[Any], said: Mapping[str, Any]
    ) -> Json:
        """See `ProviderApi.request`. System messages go where Anthropic wants them: beside the conversation."""
        body: Json = {
            "model": model,
            "max_tokens": said.get("max_tokens", ANTHROPIC_MAX_TOKENS),
            "messages": [message for message in messages if message["role"] != "system"],
        }
        if opening := [_block(message["content"]) for message in messages if message["role"] == "system"]:
            body["system"] = [block for blocks in opening for block in blocks]
        body |= {name: said[name] for name in ("temperature", "top_p") if name in said}
        if "stop" in said:
            body["stop_sequences"] = [said["stop"]] if isinstance(said["stop"], str) else list(said["stop"])
        if not output.is_text:
            tool = {"name": output.name, "description": "Takes the answer.", "input_schema": output.schema}
            body |= {"tools": [tool], "tool_choice": {"type": "tool", "name": output.name}}
        return body | dict(said.get("extra", {}))

    def read(self, document: Json, model: str) -> ModelAnswer:
        """See `ProviderApi.read`."""
        blocks: list[Json] = document["content"]
        usage = document.get("usage") or {}
        used = [block["input"] for block in blocks if block["type"] == "tool_use"]
        said = "".join(block["text"] for block in blocks if block["type"] == "text")
        return ModelAnswer(
            text=json.dumps(used[0], ensure_ascii=False) if used else said,
            usage=Usage(
                str(document.get("model") or model),
                _count(usage.get("input_tokens")),
                _count(usage.get("output_tokens")),
            ),
            turn={"role": "assistant", "content": blocks},
            cut_off=document.get("stop_reason") == "max_tokens",
            refusal="it gives no reason" if document.get("stop_reason") == "refusal" else None,
        )

    def repair(self, request: Json, answer: ModelAnswer, complaint: str) -> Json:
        """See `ProviderApi.repair`. Every use of a tool has to be followed by a result."""
        used = [block["id"] for block in answer.turn["content"] if block["type"] == "tool_use"]
        results: list[Json] = [
            {"type": "tool_result", "tool_use_id": one, "is_error": True, "content": complaint} for one in used
        ]
        asked = {"role": "user", "content": results or complaint}
        return {**request, "messages": [*request["messages"], answer.turn, asked]}


def of(provider: Provider) -> ProviderApi:
    """The API that `provider` speaks."""
    if provider.kind == "anthropic":
        return AnthropicApi()
    return OpenAIApi(length="max_completion_tokens" if provider.kind == "openai" else "max_tokens")


def answered(api: ProviderApi, document: object, model: str) -> ModelAnswer:
    """The answer in a provider's body. Raises OutputError for what is none, and for a refusal of the model."""
    try:
        answer = api.read(document, model)  # type: ignore[arg-type]  # what it is shows in the reading
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise OutputError(
            f"the answer is no chat completion with text: {type(error).__name__}: {error}",
            text=None,
            code=ErrorCode.MODEL_ANSWER_INVALID,
        ) from None
    if answer.refusal is not None:
        raise OutputError(
            f"the model refuses to answer: {answer.refusal}", text=answer.refusal, code=ErrorCode.MODEL_REFUSED
        )
    return answer


def _count(tokens: object) -> int:
    return tokens if type(tokens) is int and 0 <= tokens <= MAX_TOKENS else 0


def _text(content: Any) -> str:
    if not isinstance(content, str):
        raise TypeError(f"its content is of type {type(content).__name__}")
    return content


def _block(content: Any) -> list[Json]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
