"""A provider of language models on a socket, with the APIs of OpenAI and Anthropic and scripted answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.running import Endpoint, Received

KEY = "sk-of-the-provider"

Reply = str | dict[str, Any] | tuple[int, dict[str, str], str]
"""A text; the input of a tool; or status, headers and message of an error."""


@dataclass
class Provider:
    """Answers with `reply(body)` of the request; a request without the right key gets 401."""

    reply: Callable[[dict[str, Any]], Reply]
    requests: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.endpoint = Endpoint(self._answer)

    @property
    def url(self) -> str:
        return self.endpoint.url

    def close(self) -> None:
        self.endpoint.close()

    def _answer(self, received: Received) -> tuple[int, dict[str, str], bytes]:
        key = received.headers.get("X-Api-Key") or received.headers.get("Authorization", "").removeprefix("Bearer ")
        if key != KEY:
            return _refusal(401, {}, f"Incorrect API key provided: {key}")
        body = json.loads(received.body)
        self.requests.append(body)
        reply = self.reply(body)
        if isinstance(reply, tuple):
            return _refusal(*reply)
        completion = _anthropic if received.path == "/v1/messages" else _openai
        return 200, {"Content-Type": "application/json"}, json.dumps(completion(body, reply)).encode()


def _refusal(status: int, headers: dict[str, str], words: str) -> tuple[int, dict[str, str], bytes]:
    return status, headers, json.dumps({"error": {"message": words}}).encode()


def _openai(body: dict[str, Any], reply: Any) -> dict[str, Any]:
    text = reply if isinstance(reply, str) else json.dumps(reply)
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": f"{body['model']}-2026",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }


def _anthropic(body: dict[str, Any], reply: Any) -> dict[str, Any]:
    name = body["tools"][0]["name"] if "tools" in body else None
    block = (
        {"type": "text", "text": reply}
        if isinstance(reply, str)
        else {"type": "tool_use", "id": "toolu_1", "name": name, "input": reply}
    )
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": f"{body['model']}-2026",
        "content": [block],
        "stop_reason": "end_turn" if isinstance(reply, str) else "tool_use",
        "usage": {"input_tokens": 7, "output_tokens": 3},
    }
