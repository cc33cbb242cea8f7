"""Requests and answers in the form of each provider's API. Pure.

There are two forms: OpenAI's chat completions, which most other servers accept too, and Anthropic's messages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from qtasks.error_codes import ErrorCode
from qtasks.errors import OutputError
from qtasks.tasks.llm.chat_messages import ChatMessage, Json, ModelAnswer, Usage
from qtasks.tasks.llm.output import Output
from qtasks.tasks.llm.providers import Provider

ANTHROPIC_MAX_TOKENS = 4096
"""Default for `max_tokens` with Anthropic, whose API requires a value. All its models accept this one."""

MAX_TOKENS = 10**12
"""A token count above this is not credible and is read as 0."""


class ProviderApi(Protocol):
    """The form of a provider's requests and answers."""

    settings: frozenset[str]
    """The names of the `ModelOptions` that the API supports."""

    def request(
        self, model: str, messages: Sequence[ChatMessage], output: Output[Any], options: Mapping[str, Any]
    ) -> Json:
        """The body of a request to `model`; `options` are `ModelOptions`."""
        ...

    def read(self, document: Json, model: str) -> ModelAnswer:
        """Parse the body of an answer.

        Raises KeyError, TypeError, IndexError or AttributeError if it is not a valid answer.
        """
        ...

    def repair(self, request: Json, answer: ModelAnswer, complaint: str) -> Json:
        """`request` once more, with the answer and the complaint about it added at the end."""
        ...


class OpenAIApi:
    """Chat completions of OpenAI and of compatible servers."""

    settings = frozenset({"temperature", "max_tokens", "top_p", "stop", "seed", "strict", "extra"})

    def __init__(self, *, max_tokens_name: str = "max_tokens") -> None:
        # The newer models of OpenAI accept only `max_completion_tokens`, most compatible servers only `max_tokens`.
        self._max_tokens_name = max_tokens_name

    def request(
        self, model: str, messages: Sequence[ChatMessage], output: Output[Any], options: Mapping[str, Any]
    ) -> Json:
        """See `ProviderApi.request`."""
        body: Json = {"model": model, "messages": list(messages)}
        body |= {name: options[name] for name in ("temperature", "top_p", "stop", "seed") if name in options}
        if "max_tokens" in options:
            body[self._max_tokens_name] = options["max_tokens"]
        if not output.is_text:
            json_schema: Json = {"name": output.name, "schema": output.schema}
            if "strict" in options:
                json_schema["strict"] = options["strict"]
            body["response_format"] = {"type": "json_schema", "json_schema": json_schema}
        return body | dict(options.get("extra", {}))

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
        return {**request, "messages": [*request["messages"], answer.turn, {"role": "user", "content": complaint}]}


class AnthropicApi:
    """Messages of Anthropic. Structured output is requested as the input of a tool that the model must use."""

    settings = frozenset({"temperature", "max_tokens", "top_p", "stop", "extra"})

    def request(
        self, model: str, messages: Sequence[ChatMessage], output: Output[Any], options: Mapping[str, Any]
    ) -> Json:
        """See `ProviderApi.request`. Anthropic takes system messages apart from the conversation."""
        body: Json = {
            "model": model,
            "max_tokens": options.get("max_tokens", ANTHROPIC_MAX_TOKENS),
            "messages": [message for message in messages if message["role"] != "system"],
        }
        if system := [_blocks(message["content"]) for message in messages if message["role"] == "system"]:
            body["system"] = [block for blocks in system for block in blocks]
        body |= {name: options[name] for name in ("temperature", "top_p") if name in options}
        if "stop" in options:
            body["stop_sequences"] = [options["stop"]] if isinstance(options["stop"], str) else list(options["stop"])
        if not output.is_text:
            tool = {"name": output.name, "description": "Takes the answer.", "input_schema": output.schema}
            body |= {"tools": [tool], "tool_choice": {"type": "tool", "name": output.name}}
        return body | dict(options.get("extra", {}))

    def read(self, document: Json, model: str) -> ModelAnswer:
        """See `ProviderApi.read`."""
        blocks: list[Json] = document["content"]
        usage = document.get("usage") or {}
        tool_inputs = [block["input"] for block in blocks if block["type"] == "tool_use"]
        text = "".join(block["text"] for block in blocks if block["type"] == "text")
        return ModelAnswer(
            text=json.dumps(tool_inputs[0], ensure_ascii=False) if tool_inputs else text,
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
        """See `ProviderApi.repair`. Anthropic requires a result after every use of a tool."""
        tool_use_ids = [block["id"] for block in answer.turn["content"] if block["type"] == "tool_use"]
        results: list[Json] = [
            {"type": "tool_result", "tool_use_id": tool_use_id, "is_error": True, "content": complaint}
            for tool_use_id in tool_use_ids
        ]
        next_turn = {"role": "user", "content": results or complaint}
        return {**request, "messages": [*request["messages"], answer.turn, next_turn]}


def api_of(provider: Provider) -> ProviderApi:
    """The API of `provider`."""
    if provider.kind == "anthropic":
        return AnthropicApi()
    return OpenAIApi(max_tokens_name="max_completion_tokens" if provider.kind == "openai" else "max_tokens")


def read_answer(api: ProviderApi, document: object, model: str) -> ModelAnswer:
    """The answer in a provider's response. Raises OutputError for an invalid one and for a refusal of the model."""
    try:
        answer = api.read(document, model)  # type: ignore[arg-type]  # a document of another type raises below
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise OutputError(
            f"the answer is not a chat completion with text: {type(error).__name__}: {error}",
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


def _blocks(content: Any) -> list[Json]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
