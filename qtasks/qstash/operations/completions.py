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
    """Who speaks."""
    content: str
    """The text."""


ChatModel = str
"""Name of a model; the provider decides which names exist."""


class ChatResponseFormat(TypedDict, total=False):
    """The form of the answer."""

    type: Literal["text", "json_object"]
    """Text, or JSON (which the messages must ask for as well)."""


class ChatKeywords(TypedDict, total=False):
    """Settings of the answer. None leaves a setting to the provider."""

    frequency_penalty: float | None
    """-2 to 2: positive values avoid repeating words by how often they came."""
    logit_bias: dict[str, int] | None
    """-100 to 100 for token ids, added to their likelihood."""
    logprobs: bool | None
    """Return the likelihood of each token."""
    top_logprobs: int | None
    """0 to 20: so many alternatives for each token; needs `logprobs`."""
    max_tokens: int | None
    """Longest answer, in tokens."""
    n: int | None
    """How many answers."""
    presence_penalty: float | None
    """-2 to 2: positive values avoid words that came at all."""
    response_format: ChatResponseFormat | None
    """The form of the answer."""
    seed: int | None
    """Ask for the same answer to the same question, as far as the provider can."""
    stop: str | list[str] | None
    """Up to four texts at which the answer ends."""
    temperature: float | None
    """0 to 2: how much chance there is in the answer."""
    top_p: float | None
    """0 to 1: only the likeliest tokens that make up so much."""


@dataclass
class ChatTopLogprob:
    """An alternative to a token."""

    token: str
    """The token."""
    bytes: list[int] | None
    """Its UTF-8 bytes, where it has any."""
    logprob: float
    """Logarithm of its likelihood."""


@dataclass
class ChatCompletionTokenLogprob(ChatTopLogprob):
    """A token of the answer."""

    top_logprobs: list[ChatTopLogprob]
    """The likeliest tokens in its place."""


@dataclass
class ChatChoiceLogprobs:
    """The likelihoods of an answer."""

    content: list[ChatCompletionTokenLogprob] | None
    """One for each token."""


@dataclass
class ChatChoiceMessage:
    """An answer."""

    role: Role
    """Who speaks: the assistant."""
    content: str
    """The text."""


@dataclass
class ChatChunkChoiceMessage:
    """A piece of an answer."""

    role: Role | None
    """Who speaks; in the first piece."""
    content: str | None
    """The next piece of text."""


@dataclass
class ChatChoice:
    """One of the answers asked for."""

    message: ChatChoiceMessage
    """The answer."""
    index: int
    """Which one."""
    finish_reason: Literal["stop", "length"]
    """Why it ended."""
    logprobs: ChatChoiceLogprobs | None
    """Its likelihoods, if asked for."""


@dataclass
class ChatCompletionUsage:
    """What it cost, in tokens."""

    completion_tokens: int
    """Of the answer."""
    prompt_tokens: int
    """Of the question."""
    total_tokens: int
    """Of both."""


@dataclass
class ChatCompletion:
    """A whole answer."""

    id: str
    """Its id."""
    choices: list[ChatChoice]
    """The answers: as many as asked for with `n`."""
    created: int
    """When, in Unix seconds."""
    model: str
    """The model that answered."""
    object: Literal["chat.completion"]
    """Always ``chat.completion``."""
    system_fingerprint: str | None
    """What the provider ran it on; matters with `seed`."""
    usage: ChatCompletionUsage
    """What it cost."""


@dataclass
class ChatChunkChoice:
    """A piece of one of the answers."""

    delta: ChatChunkChoiceMessage
    """The piece."""
    finish_reason: Literal["stop", "length"]
    """Why the answer ended; None until it does."""
    index: int
    """Which answer."""
    logprobs: ChatChoiceLogprobs | None
    """Its likelihoods, if asked for."""


@dataclass
class ChatCompletionChunk:
    """A piece of a streamed answer."""

    id: str
    """Id of the whole answer."""
    choices: list[ChatChunkChoice]
    """Pieces; there may be none in the last chunk."""
    created: int
    """When the answer began, in Unix seconds."""
    model: str
    """The model that answers."""
    object: Literal["chat.completion.chunk"]
    """Always ``chat.completion.chunk``."""
    system_fingerprint: str | None
    """What the provider runs it on."""
    usage: ChatCompletionUsage | None
    """What it cost; in the last chunk only."""


def question(
    messages: Sequence[ChatCompletionMessage], model: str, stream: bool | None, arguments: Mapping[str, Any]
) -> bytes:
    """The body of a request."""
    check_names(arguments, ChatKeywords, "chat")
    if not all({"role", "content"} <= message.keys() for message in messages):
        raise InvalidCallError("`role` and `content` must be provided in messages.")
    settings = {**arguments, "stream": stream}
    chosen = {name: value for name, value in settings.items() if value is not None}
    return to_json({"messages": list(messages), "model": model, **chosen})


def conversation(user: str, system: str | None) -> list[ChatCompletionMessage]:
    """The messages of a single question."""
    opening: list[ChatCompletionMessage] = [] if system is None else [{"role": "system", "content": system}]
    return [*opening, {"role": "user", "content": user}]


def parse_completion(content: Mapping[str, Any]) -> ChatCompletion:
    """A whole answer."""
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
    """A piece of a streamed answer."""
    usage = content.get("usage")
    return ChatCompletionChunk(
        id=content["id"],
        choices=[
            ChatChunkChoice(
                delta=ChatChunkChoiceMessage(
                    role=choice["delta"].get("role"),
                    content=choice["delta"].get("content"),
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
