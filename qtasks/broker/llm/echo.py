"""The built-in echo model: it says that it is an echo, repeats the last user message, and follows a response schema.

Deterministic: the same chat request gets the same completion every time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import orjson

from qtasks.protocol.messages import Response
from qtasks.protocol.stringify import stringify

MODEL: Final = "qtasks-echo"
MAX_VALUES: Final = 1000
"""Limit for the values of one completion with a schema: a schema can refer to itself."""
_MAX_LEVELS: Final = 16
_JSON: Final = (("Content-Type", "application/json"),)
_EVENTS: Final = (("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache"))
_FORMATS: Final[Mapping[str, str]] = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "PT0S",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "email": "echo@example.com",
    "uri": "https://example.com/",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
}


def answer(request: Any, *, now_s: int) -> Response:
    """The completion of a chat request, whole or as server-sent events. Raises ValueError for an invalid request."""
    if not isinstance(request, dict) or not isinstance(request.get("messages"), list) or not request["messages"]:
        raise ValueError("expected a JSON object with model and messages")
    user_messages = [
        message.get("content")
        for message in request["messages"]
        if isinstance(message, dict) and message.get("role") == "user"
    ]
    last = user_messages[-1] if user_messages and isinstance(user_messages[-1], str) else ""
    text = f"This is the built-in echo model of qtasks, not a language model. You said: {last}"
    if (schema := _schema(request)) is not None:
        text = _fit_schema(schema, text)
    head = {
        "id": "chatcmpl-" + hashlib.sha256(orjson.dumps(request["messages"])).hexdigest()[:24],
        "created": now_s,
        "model": MODEL,
    }
    prompt_tokens, completion_tokens = len(orjson.dumps(request["messages"]).split()), len(text.split())
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    if request.get("stream") is True:
        return Response(status=200, headers=_EVENTS, body=_events(head, text, usage))
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    document = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
    return Response(status=200, headers=_JSON, body=orjson.dumps(document))


def _events(head: dict[str, object], text: str, usage: dict[str, int]) -> bytes:
    """The completion word by word: the role in the first event, the usage in the last, then ``[DONE]``.

    The last event has a text as well, an empty one: clients join what `delta.content` is.
    """
    first, *words = text.split(" ")
    deltas: list[dict[str, str]] = [
        {"role": "assistant", "content": first},
        *({"content": f" {word}"} for word in words),
    ]
    events = [_chunk(head, delta) for delta in deltas]
    events.append({**_chunk(head, {"content": ""}, "stop"), "usage": usage})
    return b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def _chunk(head: dict[str, object], delta: dict[str, str], finish_reason: str | None = None) -> dict[str, object]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {**head, "object": "chat.completion.chunk", "choices": [choice]}


def _schema(request: Mapping[str, Any]) -> dict[str, Any] | None:
    """The JSON schema of a request for structured output, in OpenAI's form; None if it has none."""
    form = request.get("response_format")
    inside = form.get("json_schema") if isinstance(form, dict) else None
    schema = inside.get("schema") if isinstance(inside, dict) else None
    return schema if isinstance(schema, dict) else None


def _fit_schema(schema: dict[str, Any], text: str) -> str:
    try:
        return stringify(_SchemaSample(schema, text).value(schema)).decode()
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"the schema of the response format cannot be read: {error}") from None


class _SchemaSample:
    """Values that fit a schema, for its common keywords: `text` for every string, else the first value allowed."""

    def __init__(self, root: dict[str, Any], text: str) -> None:
        self._definitions = root.get("$defs")
        self._text = text
        self._values_left = MAX_VALUES

    def value(self, schema: Any, level: int = 0) -> Any:
        self._values_left -= 1
        if not isinstance(schema, dict) or self._values_left < 0 or level > _MAX_LEVELS:
            return None
        if isinstance(reference := schema.get("$ref"), str) and isinstance(self._definitions, dict):
            return self.value(self._definitions.get(reference.removeprefix("#/$defs/")), level + 1)
        if "const" in schema:
            return schema["const"]
        for name in ("enum", "anyOf", "oneOf", "allOf"):
            if isinstance(choices := schema.get(name), list) and choices:
                return choices[0] if name == "enum" else self.value(choices[0], level + 1)
        kind = schema.get("type")
        return self._of_kind(kind[0] if isinstance(kind, list) and kind else kind, schema, level)

    def _of_kind(self, kind: object, schema: dict[str, Any], level: int) -> Any:
        match kind:
            case "string":
                text = _FORMATS.get(str(schema.get("format")), self._text)
                longest, shortest = int(schema.get("maxLength", len(text))), int(schema.get("minLength", 0))
                return text[:longest].ljust(min(shortest, MAX_VALUES), ".")
            case "integer" | "number":
                least = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
                return min(least, schema.get("maximum", least))
            case "boolean":
                return False
            case "array":
                count = min(int(schema.get("minItems", 0)), max(self._values_left, 0))
                items = schema.get("prefixItems", [schema.get("items")] * count)
                return [self.value(item, level + 1) for item in items]
            case "object":
                required = schema.get("required", ())
                properties = dict(schema.get("properties", {}))
                # Deep in a schema, only required members: an optional one may lead back to the schema itself.
                return {
                    name: self.value(inner, level + 1)
                    for name, inner in properties.items()
                    if level < _MAX_LEVELS // 4 or name in required
                }
        return None
