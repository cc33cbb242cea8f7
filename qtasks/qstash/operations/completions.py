"""The values of `chat`: request and response of a language model, in OpenAI's format (docs/protocol.md 2.13)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from qtasks.errors import InvalidCallError
from qtasks.qstash.conversation.operation import to_json
from qtasks.qstash.operations.options import check_names

Role = Literal["system", "assistant", "user"]


class ChatCompletionMessage(TypedDict):
    """One message of a conversation."""

    role: Role
    """The author of the message."""
    content: str
    """The text."""


ChatModel = str
"""Name of a model; the provider decides which names exist."""


class ChatResponseFormat(TypedDict, total=False):
    """The format of the answer."""

    type: Literal["text", "json_object"]
    """Text or JSON. For JSON, the messages must ask for it as well."""


class ChatKeywords(TypedDict, total=False):
    """Options of a completion. None: the provider's default."""

    frequency_penalty: float | None
    """-2 to 2: positive values make a token less likely, in proportion to how often it has occurred."""
    logit_bias: dict[str, int] | None
    """-100 to 100 by token id; added to the logit of that token."""
    logprobs: bool | None
    """Return the log probability of each token."""
    top_logprobs: int | None
    """0 to 20: number of alternatives to return for each token; needs `logprobs`."""
    max_tokens: int | None
    """Tokens of the answer at most."""
    n: int | None
    """Number of answers."""
    presence_penalty: float | None
    """-2 to 2: positive values make a token less likely if it has occurred at all."""
    response_format: ChatResponseFormat | None
    """The format of the answer."""
    seed: int | None
    """Requests with the same seed get the same answer, as far as the provider can."""
    stop: str | list[str] | None
    """Up to four texts; the answer ends before any of them."""
    temperature: float | None
    """0 to 2: a higher value makes the answer more random."""
    top_p: float | None
    """0 to 1: only the likeliest tokens whose probabilities add up to this value are considered."""


@dataclass
class ChatTopLogprob:
    """An alternative to a token."""

    token: str
    """The token."""
    bytes: list[int] | None
    """Its UTF-8 bytes, if it has any."""
    logprob: float
    """Logarithm of its probability."""


@dataclass
class ChatCompletionTokenLogprob(ChatTopLogprob):
    """A token of the answer."""

    top_logprobs: list[ChatTopLogprob]
    """The most likely alternatives at its position."""


@dataclass
class ChatChoiceLogprobs:
    """The log probabilities of an answer."""

    content: list[ChatCompletionTokenLogprob] | None
    """One element for each token."""


@dataclass
class ChatChoiceMessage:
    """The message that answers."""

    role: Role
    """Always ``assistant``."""
    content: str
    """The text."""


@dataclass
class ChatChunkChoiceMessage:
    """A part of a message that answers."""

    role: Role | None
    """``assistant`` in the first chunk, else None."""
    content: str
    """The next part of the text; empty in a chunk that has none, as the last one."""


@dataclass
class ChatChoice:
    """One of the requested answers."""

    message: ChatChoiceMessage
    """The answer."""
    index: int
    """Index of the answer, from 0."""
    finish_reason: Literal["stop", "length"]
    """Why the answer ended: ``stop``, ``length``, ..."""
    logprobs: ChatChoiceLogprobs | None
    """Its log probabilities, if requested."""


@dataclass
class ChatCompletionUsage:
    """Tokens that the model has counted."""

    completion_tokens: int
    """Tokens of the answer."""
    prompt_tokens: int
    """Tokens of the request."""
    total_tokens: int
    """Tokens of request and answer together."""


@dataclass
class ChatCompletion:
    """A complete response."""

    id: str
    """Id of the completion."""
    choices: list[ChatChoice]
    """The answers; `n` of the request sets their number."""
    created: int
    """Time of its creation, Unix seconds."""
    model: str
    """The model that answered."""
    object: Literal["chat.completion"]
    """Always ``chat.completion``."""
    system_fingerprint: str | None
    """Version of the provider's configuration; with the same `seed`, another version may answer differently."""
    usage: ChatCompletionUsage
    """Tokens used."""


@dataclass
class ChatChunkChoice:
    """A part of one of the answers."""

    delta: ChatChunkChoiceMessage
    """The part."""
    finish_reason: Literal["stop", "length"]
    """Why the answer ended; None before its end."""
    index: int
    """Index of the answer, from 0."""
    logprobs: ChatChoiceLogprobs | None
    """Its log probabilities, if requested."""


@dataclass
class ChatCompletionChunk:
    """One chunk of a streamed response."""

    id: str
    """Id of the completion."""
    choices: list[ChatChunkChoice]
    """Parts of answers; may be empty in the last chunk."""
    created: int
    """Time at which the response began, Unix seconds."""
    model: str
    """The model that answers."""
    object: Literal["chat.completion.chunk"]
    """Always ``chat.completion.chunk``."""
    system_fingerprint: str | None
    """Version of the provider's configuration."""
    usage: ChatCompletionUsage | None
    """Tokens used; only in the last chunk."""


def question(
    messages: Sequence[ChatCompletionMessage], model: str, stream: bool | None, arguments: Mapping[str, Any]
) -> bytes:
    """The JSON body of a chat request."""
    check_names(arguments, ChatKeywords, "chat")
    if not all({"role", "content"} <= message.keys() for message in messages):
        raise InvalidCallError("`role` and `content` must be provided in messages.")
    settings = {**arguments, "stream": stream}
    chosen = {name: value for name, value in settings.items() if value is not None}
    return to_json({"messages": list(messages), "model": model, **chosen})


def conversation(user: str, system: str | None) -> list[ChatCompletionMessage]:
    """The messages for one user message and an optional system message."""
    opening: list[ChatCompletionMessage] = [] if system is None else [{"role": "system", "content": system}]
    return [*opening, {"role": "user", "content": user}]


def parse_completion(content: Mapping[str, Any]) -> ChatCompletion:
    """A complete response."""
    return ChatCompletion(
        id=content["id"],
        choices=[
            ChatChoice(
                message=ChatChoiceMessage(role=choice["message"]["role"], content=choice["message"]["content"]),
                index=choice["index"],
                finish_reason=choice["finish_reason"],
                logprobs=_logprobs(choice.get("logprobs")),
            )
            for choice in content["choices"]
        ],
        created=content["created"],
        model=content["model"],
        object=content["object"],
        system_fingerprint=content.get("system_fingerprint"),
        usage=_usage(content["usage"]),
    )


def parse_chunk(content: Mapping[str, Any]) -> ChatCompletionChunk:
    """One chunk of a streamed response."""
    usage = content.get("usage")
    return ChatCompletionChunk(
        id=content["id"],
        choices=[
            ChatChunkChoice(
                delta=ChatChunkChoiceMessage(
                    role=choice["delta"].get("role"),
                    content=choice["delta"].get("content") or "",
                ),
                finish_reason=choice.get("finish_reason"),
                index=choice["index"],
                logprobs=_logprobs(choice.get("logprobs")),
            )
            for choice in content["choices"]
        ],
        created=content["created"],
        model=content["model"],
        object=content["object"],
        system_fingerprint=content.get("system_fingerprint"),
        usage=None if usage is None else _usage(usage),
    )


def _usage(content: Mapping[str, Any]) -> ChatCompletionUsage:
    return ChatCompletionUsage(
        completion_tokens=content["completion_tokens"],
        prompt_tokens=content["prompt_tokens"],
        total_tokens=content["total_tokens"],
    )


def _logprobs(content: Mapping[str, Any] | None) -> ChatChoiceLogprobs | None:
    if content is None:
        return None
    tokens = content.get("content")
    return ChatChoiceLogprobs(
        content=None
        if tokens is None
        else [
            ChatCompletionTokenLogprob(
                token=token["token"],
                bytes=token.get("bytes"),
                logprob=token["logprob"],
                top_logprobs=[_top_logprob(other) for other in token.get("top_logprobs", [])],
            )
            for token in tokens
        ]
    )


def _top_logprob(content: Mapping[str, Any]) -> ChatTopLogprob:
    return ChatTopLogprob(token=content["token"], bytes=content.get("bytes"), logprob=content["logprob"])
