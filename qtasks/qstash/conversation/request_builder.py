"""Builds the HTTP request of an operation: base URL, token, and the headers that every request has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtasks.qstash.conversation.credentials import Credentials
from qtasks.qstash.conversation.operation import HttpMethod, Operation, answer, query
from qtasks.qstash.conversation.transport import Reply, Request
from qtasks.randomness import ordered_id

USER_AGENT = "qstash-tasks"

__all__ = ["USER_AGENT", "HttpMethod", "custom", "new_retry_id", "of"]


def of(operation: Operation[Any], credentials: Credentials) -> Request:
    """The HTTP request of an operation. Raises ConfigurationError for a base URL that cannot be used."""
    token = operation.token or f"Bearer {credentials.token}"
    base_url = operation.base_url
    if not base_url:
        base_url = credentials.base_url if credentials.problem is None else credentials.usable_url
    return Request(
        method=operation.method,
        url=base_url + operation.path,
        headers=(("Authorization", token), ("User-Agent", USER_AGENT), *operation.headers),
        body=operation.body,
    )


def custom(
    *,
    path: str,
    method: HttpMethod,
    headers: Mapping[str, str] | None,
    body: str | bytes | None,
    params: Mapping[str, Any] | None,
    parse_response: bool,
    base_url: str | None,
    token: str | None,
) -> Operation[Any]:
    """The operation that `HttpClient.request` runs."""
    pairs = [
        (name, str(value))
        for name, values in (params or {}).items()
        for value in (values if isinstance(values, (list, tuple)) else (values,))
    ]
    return Operation(
        method,
        path + query(pairs),
        answer if parse_response else _text,
        headers=tuple((name, str(value)) for name, value in (headers or {}).items()),
        body=body.encode() if isinstance(body, str) else body or b"",
        repeatable=method == "GET",
        base_url=base_url,
        token=token,
    )


def new_retry_id() -> str:
    """A new deduplication id, without a colon, which the service refuses."""
    return f"retry_{ordered_id()}"


def _text(reply: Reply) -> str:
    return reply.body.decode("utf-8", "replace")
