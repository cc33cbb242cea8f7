"""`POST console/api/messages/ID/again`: publish a message once more, as it was or with another body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qtasks.broker import ids
from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, json_response, read_json, read_large
from qtasks.broker.api.validation import check_policy
from qtasks.broker.console import manifest_reader
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.console.message_targets import task_of
from qtasks.broker.core.repeats import NotRepeatable, repeat_of
from qtasks.broker.store.verbs import audit
from qtasks.broker.store.verbs.reads import queries
from qtasks.protocol.messages import MAX_BODY, Message

_MAX_REQUEST: Final = 6 * MAX_BODY + 1024
"""Bytes: a text in JSON has up to six for each of its own."""


async def publish_again(context: ConsoleContext, viewer: Viewer, request: ApiRequest, message_id: str) -> ApiResponse:
    """The new message has all its retries, no delay, and is never a duplicate."""
    body = await _body(request)
    source = await context.store.read(queries.message, viewer.account, message_id)
    if source is None:
        raise HttpError(404, f"message {message_id[:128]} not found")
    if source.damaged:
        raise HttpError(409, "what is stored of this message is damaged, so it would not be what was published")
    check_policy(context.api, source.url, options=source.options)
    searchable = None if body is None else await _searchable(context, viewer, source)
    random, now_ms = context.api.random, context.clock.now_ms()
    try:
        publication = repeat_of(
            source,
            body=body,
            message_id=ids.message_id(random, now_ms),
            call_id=f"call_{random.token(16).hex()}",
            now_ms=now_ms,
            searchable=searchable,
        )
    except NotRepeatable as error:
        raise HttpError(409, str(error)) from None
    await context.api.accept([publication], now_ms=now_ms)
    change = context.api.change_by(request, viewer.account, "message.again", message_id)
    await context.store.write(audit.record, change, 1)
    return json_response({"messageId": publication.message.id}, 201)


async def _searchable(context: ConsoleContext, viewer: Viewer, source: Message) -> Mapping[str, int | None] | None:
    """The arguments by which calls of a task are found, each with its position; None if its application is silent."""
    if (name := task_of(source.url, source.options)) is None:
        return None
    prefix = source.url.partition("?")[0].removesuffix(name)
    [answer] = await context.manifests.of(viewer.account, [prefix])
    if (manifest := answer.manifest) is None:
        return None
    content = await read_large(len(manifest), lambda: manifest_reader.read(manifest))
    task = next((task for task in content.tasks if task.name == name), None)
    if task is None:
        return None
    return {name: task.parameters.index(name) for name in task.searchable if name in task.parameters}


async def _body(request: ApiRequest) -> bytes | None:
    """The other body; None to keep the one that the message has."""
    content = await request.read_body(_MAX_REQUEST)
    document = await read_json(content, big_integers=True) if content.strip() else {}
    if not isinstance(document, dict):
        raise HttpError(400, "expected a JSON object")
    text = document.get("body")
    if text is None:
        return None
    if not isinstance(text, str):
        raise HttpError(400, "body: expected a text")
    body = _utf8(text)
    if len(body) > MAX_BODY:
        raise HttpError(413, f"message too large: {len(body)} > {MAX_BODY}")
    return body


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise HttpError(400, "body: half of a surrogate pair is not a character") from None
