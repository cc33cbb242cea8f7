"""Chat messages, the answer of a model to them, and the cost of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from typing_extensions import TypedDict

Role = Literal["system", "assistant", "user"]
Content = str | Sequence[Mapping[str, Any]]
"""A text; or a list of parts, such as images, in the form that the provider documents."""

Json = dict[str, Any]
"""A JSON object."""


class ChatMessage(TypedDict):
    """One message of a conversation with a language model."""

    role: Role
    """Who speaks: ``"system"``, ``"user"`` or ``"assistant"`` (the model)."""
    content: Content
    """The text, or its parts."""


def system(content: Content) -> ChatMessage:
    """A message with instructions for the model."""
    return {"role": "system", "content": content}


def user(content: Content) -> ChatMessage:
    """A message from the user to the model."""
    return {"role": "user", "content": content}


def assistant(content: Content) -> ChatMessage:
    """An earlier answer of the model, or an example of one."""
    return {"role": "assistant", "content": content}


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of an answer in tokens, as the provider counts them.

    If the first answer did not fit the output type, the tokens of both requests.
    """

    model: str
    """The model that answered, by the provider's name for it."""
    input_tokens: int
    """Tokens of the messages sent to the model."""
    output_tokens: int
    """Tokens of the model's answers."""
    requests: int = 1
    """The number of requests: 1, or 2 if the first answer did not fit the output type."""

    @property
    def total_tokens(self) -> int:
        """Tokens of input and output together."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """The answer of a model, in the same form for all providers."""

    text: str
    """The text; or the JSON of the tool input, if the provider returns structured output through a tool."""
    usage: Usage
    turn: Json
    """The answer as a message of the conversation, in the provider's form."""
    cut_off: bool = False
    """True if the answer ended at `max_tokens`."""
    refusal: str | None = None
    """The reason why the model refuses to answer; None if it does answer."""
