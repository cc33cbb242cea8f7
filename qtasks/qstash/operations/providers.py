"""Providers of language models, and how a message reaches them (docs/protocol.md 5.11).

These names belong to the official package's module `chat`; here they can be imported without the rest of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, NotRequired, TypedDict

UPSTASH = "Upstash"
"""Name of the provider that stands for the QStash service itself."""

ANTHROPIC = "Anthropic"


@dataclass
class LlmProvider:
    """An OpenAI-compatible service (or Anthropic's), with its key."""

    name: str
    """Name of the provider."""
    base_url: str
    """Base URL of the provider, without `/v1/...`."""
    token: str = field(repr=False)
    """API key of the provider."""

    def chat_url(self) -> str:
        """The URL of the provider's chat endpoint."""
        return f"{self.base_url}/v1/messages" if self.name == ANTHROPIC else f"{self.base_url}/v1/chat/completions"

    def chat_headers(self) -> dict[str, str]:
        """The request headers with the key."""
        if self.name == ANTHROPIC:
            return {"x-api-key": self.token, "anthropic-version": "2023-06-01"}
        return {"Authorization": f"Bearer {self.token}"}


class LlmApi(TypedDict):
    """A destination that is a language model."""

    name: Literal["llm"]
    """Always ``"llm"``."""
    provider: NotRequired[LlmProvider]
    """The provider of the model; default: the QStash service itself."""


def openai(token: str) -> LlmProvider:
    """OpenAI; `token` is an API key."""
    return LlmProvider(name="OpenAI", base_url="https://api.openai.com", token=token)


def anthropic(token: str) -> LlmProvider:
    """Anthropic; `token` is an API key. Requests have the form of its Messages API."""
    return LlmProvider(name=ANTHROPIC, base_url="https://api.anthropic.com", token=token)


def custom(base_url: str, token: str) -> LlmProvider:
    """Any OpenAI-compatible service. An ending `/v1` or `/v1/chat/completions` of `base_url` is removed."""
    return LlmProvider(name="custom", base_url=re.sub(r"(/v1)?(/chat/completions)?/*$", "", base_url), token=token)


def upstash() -> LlmProvider:
    """The QStash service itself. The qtasks broker then uses the server that `QTASKS_LLM_URL` names."""
    return LlmProvider(name=UPSTASH, base_url="", token="")
