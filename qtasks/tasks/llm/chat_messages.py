"""What is said to a language model, and what its answer cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from typing_extensions import TypedDict

Role = Literal["system", "assistant", "user"]
Content = str | Sequence[Mapping[str, Any]]
"""A text; or parts, such as images, in the form that the provider documents."""


class ChatMessage(TypedDict):
    """One message of a conversation."""

    role: Role
    """Who speaks."""
    content: Content
    """What is said."""


def system(content: Content) -> ChatMessage:
    """What the model is to be and to do."""
    return {"role": "system", "content": content}


def user(content: Content) -> ChatMessage:
    """What the model is asked."""
    return {"role": "user", "content": content}


def assistant(content: Content) -> ChatMessage:
    """What the model said before, or is to be taken to have said."""
    return {"role": "assistant", "content": content}


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer cost, in tokens; of both requests where the first answer did not fit."""

    model: str
    """The model that answered, as the provider names it."""
    input_tokens: int
    output_tokens: int
    requests: int = 1
    """How many answers were paid for: 2 after a repair."""

    @property
    def total_tokens(self) -> int:
        """Of questions and answers."""
        return self.input_tokens + self.output_tokens
