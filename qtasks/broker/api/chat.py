"""`POST /llm/v1/chat/completions` (docs/protocol.md 2.13)."""

from __future__ import annotations

from typing import Final

from qtasks.broker.api.api_context import ApiContext
from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, json_response, read_json
from qtasks.broker.ports import Failure
from qtasks.protocol.messages import MAX_BODY, Headers

_FORWARDED: Final = ("content-type", "retry-after")


async def complete(context: ApiContext, account: int, request: ApiRequest) -> ApiResponse:
    """The model's answer, plain or (``"stream": true``) as server-sent events."""
    body = await request.read_body(MAX_BODY)
    wanted = read_json(body)
    if not isinstance(wanted, dict) or not isinstance(wanted.get("messages"), list):
        raise HttpError(400, "expected a JSON object with model and messages")
    if not context.llm.available:
        raise HttpError(501, context.llm.MISSING)
    if wanted.get("stream") is True:
        opened = await context.llm.stream(body)
        if isinstance(opened, Failure):
            raise HttpError(502, f"the language model could not be reached: {opened.error}")
        return ApiResponse(opened.status, b"", _kept(opened.headers), opened.pieces)
    answer = await context.llm.complete(body)
    if isinstance(answer, Failure):
        raise HttpError(502, f"the language model could not be reached: {answer.error}")
    return ApiResponse(answer.status, answer.body, _kept(answer.headers))


def refuse(refusal: HttpError) -> ApiResponse:
    """The json_response of a refused call in OpenAI's form: its clients show their users no other text."""
    error = {"message": refusal.text, "type": "qtasks_error", "code": str(refusal.status)}
    return json_response({"error": error}, refusal.status, refusal.headers)


def _kept(headers: Headers) -> Headers:
    """What of the model's own headers is meant for the caller."""
    return tuple(
        (name, value)
        for name, value in headers
        if name.lower() in _FORWARDED or name.lower().startswith("x-ratelimit-")
    )
