"""`POST /llm/v1/chat/completions` (docs/protocol.md 2.13)."""

from __future__ import annotations

from typing import Final

from qtasks.broker.api.call import Call, Refusal, Reply, read_json, reply
from qtasks.broker.api.context import Context
from qtasks.broker.ports import Failure
from qtasks.protocol.messages import MAX_BODY, Headers

_FORWARDED: Final = ("content-type", "retry-after")


async def complete(context: Context, account: int, call: Call) -> Reply:
    """The model's answer, plain or (``"stream": true``) as server-sent events."""
    body = await call.read_body(MAX_BODY)
    wanted = read_json(body)
    if not isinstance(wanted, dict) or not isinstance(wanted.get("messages"), list):
        raise Refusal(400, "expected a JSON object with model and messages")
    if not context.llm.available:
        raise Refusal(501, context.llm.MISSING)
    if wanted.get("stream") is True:
        opened = await context.llm.stream(body)
        if isinstance(opened, Failure):
            raise Refusal(502, f"the language model could not be reached: {opened.error}")
        return Reply(opened.status, b"", _kept(opened.headers), opened.pieces)
    answer = await context.llm.complete(body)
    if isinstance(answer, Failure):
        raise Refusal(502, f"the language model could not be reached: {answer.error}")
    return Reply(answer.status, answer.body, _kept(answer.headers))


def refuse(refusal: Refusal) -> Reply:
    """The reply of a refused call in OpenAI's form: its clients show their users no other text."""
    error = {"message": refusal.text, "type": "qtasks_error", "code": str(refusal.status)}
    return reply({"error": error}, refusal.status, refusal.headers)


def _kept(headers: Headers) -> Headers:
    """What of the model's own headers is meant for the caller."""
    return tuple(
        (name, value)
        for name, value in headers
        if name.lower() in _FORWARDED or name.lower().startswith("x-ratelimit-")
    )
