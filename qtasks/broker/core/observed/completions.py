"""Requests to language models and their answers, in the forms of OpenAI's and of Anthropic's API, for people. Pure.

All of it was written by users and providers: what is not of the expected form is left out.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from qtasks.broker.core.message_builder import LLM_URL

SERVICE: Final = "api/llm"
"""The provider of messages to ``api/llm``: the language model of the broker."""
MAX_TURNS: Final = 200
"""Messages of a conversation that are shown, the last ones."""
MAX_TEXT: Final = 64 * 1024
"""Characters that are shown of one of them."""
_MAX_TOKENS: Final = 10**12
_MAX_NAME: Final = 200


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One message of a conversation."""

    role: str
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ChatQuestion:
    """A request to a model."""

    model: str | None = None
    turns: tuple[ChatTurn, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """What a model answered."""

    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    text: str | None = field(default=None, repr=False)


def provider_of(url: str) -> str:
    """The provider that a message asks: its host, or `SERVICE`."""
    if url == LLM_URL:
        return SERVICE
    try:
        return urlsplit(url).netloc.rpartition("@")[2]
    except ValueError:
        return ""


def read_question(body: bytes) -> ChatQuestion:
    """The request in the body of a message."""
    document = _document(body)
    turns = [ChatTurn("system", text)] if (text := _text(document.get("system"))) else []
    messages = document.get("messages")
    turns += [
        ChatTurn(_name(message.get("role")) or "?", _text(message.get("content")))
        for message in (messages[-MAX_TURNS:] if isinstance(messages, list) else ())
        if isinstance(message, dict)
    ]
    return ChatQuestion(_name(document.get("model")), tuple(turns))


def read_callback(body: bytes) -> ChatAnswer | None:
    """The answer in the body of a callback (docs/protocol.md 4.4); None if the attempt had no answer of status 2xx."""
    document = _document(body)
    status, content = document.get("status"), document.get("body")
    if not isinstance(status, int) or not 200 <= status < 300 or not isinstance(content, str):
        return None
    try:
        return read_answer(base64.b64decode(content, validate=True))
    except ValueError:
        return None


def read_answer(body: bytes) -> ChatAnswer:
    """The answer in the body of a response."""
    document = _document(body)
    usage = _object(document.get("usage"))
    return ChatAnswer(
        _name(document.get("model")),
        _count(usage.get("prompt_tokens", usage.get("input_tokens"))),
        _count(usage.get("completion_tokens", usage.get("output_tokens"))),
        _answered(document),
    )


def _answered(document: dict[str, Any]) -> str | None:
    choices = document.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        message = _object(choices[0].get("message"))
        return _text(message.get("content") or message.get("refusal") or message.get("tool_calls"))
    return _text(document["content"]) if isinstance(document.get("content"), list) else None


def _text(content: Any) -> str:
    """What a message says: its text, or the texts of its parts; any other part as JSON."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content[:MAX_TEXT]
    if isinstance(content, list):
        return "\n".join(_part(part) for part in content)[:MAX_TEXT]
    return orjson.dumps(content).decode()[:MAX_TEXT]


def _part(part: Any) -> str:
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    return orjson.dumps(part).decode()


def _document(body: bytes) -> dict[str, Any]:
    try:
        return _object(orjson.loads(body))
    except orjson.JSONDecodeError:
        return {}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _name(value: Any) -> str | None:
    return value[:_MAX_NAME] if isinstance(value, str) and value else None


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= _MAX_TOKENS else None
