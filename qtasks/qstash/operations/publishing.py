"""Publish, enqueue and batch (docs/protocol.md 2.2 to 2.4)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Protocol, TypeVar

from qtasks.errors import InvalidCallError
from qtasks.protocol.messages import Headers, PublishOptions, changed
from qtasks.qstash.conversation.operation import JSON_TYPE, Operation, answer, destination, segment, to_json, url_text
from qtasks.qstash.conversation.transport import Reply
from qtasks.qstash.operations import options as keywords
from qtasks.qstash.operations.options import EnqueueTarget, PublishTarget
from qtasks.qstash.operations.providers import UPSTASH

Body = str | bytes | None
"""A body that is sent unchanged; a str is encoded as UTF-8."""


@dataclass
class PublishResponse:
    """The answer to a publish: the message is stored."""

    message_id: str
    """Id of the message."""
    deduplicated: bool
    """True if an earlier message has the same deduplication id: no new message was stored."""


@dataclass
class PublishUrlGroupResponse:
    """A message for one endpoint of a URL group was accepted."""

    message_id: str
    """Id of the message."""
    url: str
    """URL of the endpoint."""
    deduplicated: bool
    """See `PublishResponse.deduplicated`."""


@dataclass
class EnqueueResponse(PublishResponse):
    """A message was accepted into a queue."""


@dataclass
class EnqueueUrlGroupResponse(PublishUrlGroupResponse):
    """A message for one endpoint of a URL group was accepted into a queue."""


@dataclass
class BatchResponse(PublishResponse):
    """A message of a batch was accepted."""


@dataclass
class BatchUrlGroupResponse(PublishUrlGroupResponse):
    """A message of a batch for one endpoint of a URL group was accepted."""


@dataclass
class BatchError:
    """A message of a batch was refused. The other messages of the batch are not affected."""

    error: str
    """The error text of the service."""


class BatchRequest(PublishTarget, total=False):
    """One message of a batch: the keywords of `publish`, and `queue` if the message is to be enqueued."""

    queue: str | None
    """Name of the queue."""
    body: str | bytes | None
    """The body; bytes must be UTF-8, because a batch is sent as JSON."""


class BatchJsonRequest(PublishTarget, total=False):
    """As `BatchRequest`, with a body that is encoded as JSON."""

    queue: str | None
    """Name of the queue."""
    body: Any
    """Any value that JSON can represent."""


_Accepted = TypeVar("_Accepted", bound=PublishResponse)
_AcceptedEndpoint = TypeVar("_AcceptedEndpoint", bound=PublishUrlGroupResponse)
_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)


class _ReadItem(Protocol[_T_co]):
    """Reads the answer to one message of a batch."""

    def __call__(self, content: Any, *, has_retry_id: bool) -> _T_co: ...


@dataclass(frozen=True, slots=True)
class RepeatableOptions:
    """Options to send. `has_retry_id`: the deduplication id is the client's own and not the caller's.

    A client that repeats operations gives every message a deduplication id, so that a retry after a lost reply does
    not create a second message. The caller does not see this id. If the reply then says `deduplicated`, an earlier
    attempt of the client was accepted, so the caller gets `deduplicated=False`.
    """

    options: PublishOptions
    has_retry_id: bool

    @classmethod
    def of(cls, options: PublishOptions, retry_id: str | None) -> RepeatableOptions:
        """Set `retry_id` as the deduplication id, unless the caller has chosen a deduplication."""
        if retry_id is None or options.deduplication_id is not None or options.content_based_deduplication:
            return cls(options, has_retry_id=False)
        return cls(changed(options, deduplication_id=retry_id), has_retry_id=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RawMessage:
    """A message for `QStash.batch_raw`. Its `options` are the protocol's own value."""

    destination: str
    """Destination URL."""
    body: bytes = field(repr=False)
    """UTF-8 text, because a batch is sent as JSON."""
    options: PublishOptions = field(default_factory=PublishOptions, repr=False)
    queue: str | None = None
    """Name of the queue; None publishes the message without a queue."""


def publish_raw(
    target: str, body: bytes, options: PublishOptions, *, retry_id: str | None
) -> Operation[PublishResponse]:
    """Publish to one URL; `options` is the protocol's own value."""
    return _post_raw(_path(None), target, body, options, PublishResponse, retry_id)


def enqueue_raw(
    queue: str, target: str, body: bytes, options: PublishOptions, *, retry_id: str | None
) -> Operation[EnqueueResponse]:
    """Append a message for one URL to a queue; `options` is the protocol's own value."""
    return _post_raw(_queue_path(queue), target, body, options, EnqueueResponse, retry_id)


def batch_raw(
    messages: Sequence[RawMessage], *, new_retry_id: Callable[[], str | None]
) -> Operation[list[BatchResponse | BatchError]]:
    """Publish or enqueue many messages, each for one URL."""
    prepared = [RepeatableOptions.of(message.options, new_retry_id()) for message in messages]
    items = [
        _item(
            message.destination,
            keywords.headers(each.options, {}),
            _text(message.body, f"messages[{index}]"),
            message.queue,
        )
        for index, (message, each) in enumerate(zip(messages, prepared, strict=True))
    ]
    return _batch(items, [each.has_retry_id for each in prepared], _batch_answer)


def publish_lines(
    target: str, body: bytes, lines: Headers, *, queue: str | None, has_retry_id: bool
) -> Operation[PublishResponse]:
    """Publish to one URL, or enqueue; `lines` are its header lines, complete. See `RepeatableOptions.has_retry_id`."""
    return Operation(
        "POST",
        _path(queue) + _destination(target),
        lambda reply: _accepted(answer(reply), PublishResponse, has_retry_id=has_retry_id),
        headers=lines,
        body=body,
    )


def batch_items(
    items: Sequence[bytes], retry_ids: Sequence[bool], *, timeout_s: float | None
) -> Operation[list[BatchResponse | BatchError]]:
    """Publish or enqueue many messages, each for one URL; `items` are the JSON texts that a batch consists of.

    `retry_ids` says for each whether its deduplication id is the client's own. `timeout_s` is that of one attempt.
    """
    return replace(_batch((), retry_ids, _batch_answer), body=b"[%b]" % b",".join(items), timeout_s=timeout_s)


def publish(
    body: Body, arguments: Mapping[str, Any], *, retry_id: str | None
) -> Operation[PublishResponse | list[PublishUrlGroupResponse]]:
    """Publish to a URL, a URL group or a language model."""
    keywords.check_names(arguments, PublishTarget, "publish()")
    return _post(_path(None), body, arguments, PublishResponse, PublishUrlGroupResponse, retry_id)


def enqueue(
    queue: str, body: Body, arguments: Mapping[str, Any], *, retry_id: str | None
) -> Operation[EnqueueResponse | list[EnqueueUrlGroupResponse]]:
    """Append to a queue."""
    keywords.check_names(arguments, EnqueueTarget, "enqueue()")
    return _post(_queue_path(queue), body, arguments, EnqueueResponse, EnqueueUrlGroupResponse, retry_id)


def batch(
    requests: Iterable[BatchRequest], *, new_retry_id: Callable[[], str | None]
) -> Operation[list[BatchResponse | list[BatchUrlGroupResponse] | BatchError]]:
    """Publish or enqueue many messages in one request. A refused message does not affect the others."""
    items: list[dict[str, Any]] = []
    retry_ids: list[bool] = []
    for index, request in enumerate(requests):
        prepared, item = _batch_item(request, f"messages[{index}]", new_retry_id())
        items.append(item)
        retry_ids.append(prepared.has_retry_id)

    return _batch(items, retry_ids, _batch_answers)


def as_json(body: Any, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The body as JSON text, and the keywords with the content type of JSON."""
    return json.dumps(body), {**arguments, "content_type": arguments.get("content_type") or "application/json"}


def batch_as_json(requests: Iterable[BatchJsonRequest]) -> list[BatchRequest]:
    """The items of `batch_json` as items of `batch`."""
    plain: list[BatchRequest] = []
    for request in requests:
        text, arguments = as_json(request.get("body"), request)
        plain.append({**arguments, "body": text})  # type: ignore[typeddict-item]
    return plain


def _path(queue: str | None) -> str:
    return "/v2/publish/" if queue is None else _queue_path(queue)


def _queue_path(queue: str) -> str:
    """The beginning of the path of an enqueue; what names no queue is refused, None included."""
    return f"/v2/enqueue/{segment(queue, 'queue')}/"


_destination = lru_cache(256)(destination)
"""As `destination`; a program sends to few."""


def _post(
    prefix: str,
    body: Body,
    arguments: Mapping[str, Any],
    single: type[_Accepted],
    per_endpoint: type[_AcceptedEndpoint],
    retry_id: str | None,
) -> Operation[_Accepted | list[_AcceptedEndpoint]]:
    target, arguments = _split_destination(arguments)
    prepared = RepeatableOptions.of(keywords.read(arguments), retry_id)

    def read(reply: Reply) -> _Accepted | list[_AcceptedEndpoint]:
        content = answer(reply)
        if isinstance(content, list):
            return [_accepted_endpoint(item, per_endpoint, has_retry_id=prepared.has_retry_id) for item in content]
        return _accepted(content, single, has_retry_id=prepared.has_retry_id)

    return Operation(
        "POST",
        prefix + destination(target),
        read,
        headers=keywords.headers(prepared.options, arguments),
        body=as_bytes(body),
    )


def _post_raw(
    prefix: str, target: str, body: bytes, options: PublishOptions, kind: type[_Accepted], retry_id: str | None
) -> Operation[_Accepted]:
    prepared = RepeatableOptions.of(options, retry_id)
    return Operation(
        "POST",
        prefix + destination(target),
        lambda reply: _accepted(answer(reply), kind, has_retry_id=prepared.has_retry_id),
        headers=keywords.headers(prepared.options, {}),
        body=body,
    )


def _batch(
    items: Sequence[Mapping[str, Any]], retry_ids: Sequence[bool], read_item: _ReadItem[_T]
) -> Operation[list[_T]]:
    """The operation that sends `items`; `retry_ids` says for each whether its deduplication id is the client's own."""

    def read(reply: Reply) -> list[_T]:
        answers = answer(reply)
        if len(answers) != len(retry_ids):
            raise ValueError(f"{len(answers)} answers for {len(retry_ids)} messages")
        return [read_item(content, has_retry_id=own) for content, own in zip(answers, retry_ids, strict=True)]

    return Operation("POST", "/v2/batch", read, headers=JSON_TYPE, body=to_json(items))


def _accepted(content: Mapping[str, Any], kind: type[_Accepted], *, has_retry_id: bool) -> _Accepted:
    return kind(message_id=content["messageId"], deduplicated=bool(content.get("deduplicated")) and not has_retry_id)


def _accepted_endpoint(
    content: Mapping[str, Any], kind: type[_AcceptedEndpoint], *, has_retry_id: bool
) -> _AcceptedEndpoint:
    return kind(
        message_id=content["messageId"],
        url=content["url"],
        deduplicated=bool(content.get("deduplicated")) and not has_retry_id,
    )


def _batch_answers(content: Any, *, has_retry_id: bool) -> BatchResponse | list[BatchUrlGroupResponse] | BatchError:
    """The answer to one item of a batch; a URL group answers with a list."""
    if isinstance(content, list):
        return [_accepted_endpoint(item, BatchUrlGroupResponse, has_retry_id=has_retry_id) for item in content]
    return _batch_answer(content, has_retry_id=has_retry_id)


def _batch_answer(content: Any, *, has_retry_id: bool) -> BatchResponse | BatchError:
    if "messageId" not in content and "error" in content:
        return BatchError(error=str(content["error"]))
    return _accepted(content, BatchResponse, has_retry_id=has_retry_id)


def _batch_item(arguments: BatchRequest, where: str, retry_id: str | None) -> tuple[RepeatableOptions, dict[str, Any]]:
    keywords.check_names(arguments, BatchRequest, where)
    target, rest = _split_destination(arguments)
    queue, body = rest.pop("queue", None), rest.pop("body", None)
    prepared = RepeatableOptions.of(keywords.read(rest), retry_id)
    text = _text(body, where) if isinstance(body, bytes) else body
    return prepared, _item(target, keywords.headers(prepared.options, rest), text, queue)


def _item(target: str, headers: Headers, text: str | None, queue: str | None) -> dict[str, Any]:
    return {"destination": url_text(target), "headers": dict(headers), "body": text, "queue": queue}


def _text(body: bytes, where: str) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise InvalidCallError(
            f"the body of {where} is not UTF-8, and a batch is sent as JSON", fix="publish this message by itself"
        ) from None


def _split_destination(arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The destination, and the keywords without it. For a language model, headers with the provider's key are added."""
    rest = {name: value for name, value in arguments.items() if value is not None}
    targets = [rest.pop(name) for name in ("url", "url_group", "api") if name in rest]
    if len(targets) != 1:
        raise InvalidCallError("Only and only one of 'url', 'url_group', or 'api' must be provided.")
    target = targets[0]
    if isinstance(target, str):
        return target, rest
    provider = target.get("provider")
    if provider is None or provider.name == UPSTASH:
        return "api/llm", rest
    return provider.chat_url(), {**rest, "headers": {**rest.get("headers", {}), **provider.chat_headers()}}


def as_bytes(body: Body) -> bytes:
    """The body as bytes: a str as UTF-8, None as an empty body."""
    return body.encode() if isinstance(body, str) else body or b""
