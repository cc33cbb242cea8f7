"""`POST /llm/v1/chat/completions` (docs/protocol.md 2.13)."""

from __future__ import annotations

from typing import Final

from qtasks.broker.api.api_context import ApiContext
from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, json_response, read_json
from qtasks.broker.ports import Failure
from qtasks.protocol.messages import MAX_BODY, Headers

_FORWARDED: Final = ("content-type", "retry-after")


async def complete(context: ApiContext, account: int, request: ApiRequest) -> ApiResponse:
    """The completion, whole or (``"stream": true``) as server-sent events."""
    body = await request.read_body(MAX_BODY)
    document = await read_json(body)
    if not isinstance(document, dict) or not isinstance(document.get("messages"), list):
        raise HttpError(400, "expected a JSON object with model and messages")
    if not context.llm.available:
        raise HttpError(501, context.llm.MISSING)
    if document.get("stream") is True:
        stream = await context.llm.stream(body)
        if isinstance(stream, Failure):
            raise _unreachable(stream)
        return ApiResponse(stream.status, b"", _forwarded(stream.headers), stream.pieces)
    response = await context.llm.complete(body)
    if isinstance(response, Failure):
        raise _unreachable(response)
    return ApiResponse(response.status, response.body, _forwarded(response.headers))


def _unreachable(failure: Failure) -> HttpError:
    return HttpError(502, f"the language model could not be reached: {failure.error}")


def error_response(error: HttpError) -> ApiResponse:
    """The response to a refused request in OpenAI's form, the only one whose text OpenAI's clients show."""
    document = {"message": error.text, "type": "qtasks_error", "code": str(error.status)}
    return json_response({"error": document}, error.status, error.headers)


def _forwarded(headers: Headers) -> Headers:
    """The headers of the model's response that the caller gets."""
    return tuple(
        (name, value)
        for name, value in headers
        if name.lower() in _FORWARDED or name.lower().startswith("x-ratelimit-")
    )
