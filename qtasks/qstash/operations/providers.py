"""Who runs a language model: providers, and how a message reaches them (docs/protocol.md 5.11).

The names of the official package's module `chat` that do not need the rest of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, NotRequired, TypedDict

UPSTASH = "Upstash"
"""Name of the provider that the QStash service is itself."""

ANTHROPIC = "Anthropic"


@dataclass
class LlmProvider:
    """An OpenAI-compatible service (or Anthropic's), and the key that opens it."""

    name: str
    """Name of the provider."""
    base_url: str
    """Base URL of the provider, without `/v1/...`."""
    token: str = field(repr=False)
    """The provider's key."""

    def chat_url(self) -> str:
        """Where a chat completion is asked for."""
        return f"{self.base_url}/v1/messages" if self.name == ANTHROPIC else f"{self.base_url}/v1/chat/completions"

    def chat_headers(self) -> dict[str, str]:
        """The headers that carry the key."""
        if self.name == ANTHROPIC:
            return {"x-api-key": self.token, "anthropic-version": "2023-06-01"}
        return {"Authorization": f"Bearer {self.token}"}


class LlmApi(TypedDict):
    """A destination that is a language model."""

    name: Literal["llm"]
    """Always ``"llm"``."""
    provider: NotRequired[LlmProvider]
    """Who runs the model; default the QStash service itself."""


def openai(token: str) -> LlmProvider:
    """OpenAI, with one of its keys."""
    return LlmProvider(name="OpenAI", base_url="https://api.openai.com", token=token)


def anthropic(token: str) -> LlmProvider:
    """Anthropic, with one of its keys; requests have the form of its Messages API."""
    return LlmProvider(name=ANTHROPIC, base_url="https://api.anthropic.com", token=token)


def custom(base_url: str, token: str) -> LlmProvider:
    """Any OpenAI-compatible service. `base_url` may end in `/v1` or `/v1/chat/completions`, which is cut off."""
    return LlmProvider(name="custom", base_url=re.sub(r"(/v1)?(/chat/completions)?/*$", "", base_url), token=token)


def upstash() -> LlmProvider:
    """The QStash service itself: with our broker, the server that `QTASKS_LLM_URL` names."""
    return LlmProvider(name=UPSTASH, base_url="", token="")
