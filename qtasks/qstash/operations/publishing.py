"""Putting messages in: publish, enqueue, batch (docs/protocol.md 2.2 to 2.4)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from qtasks.errors import InvalidCallError
from qtasks.protocol.messages import Headers, PublishOptions
from qtasks.qstash.conversation.operation import JSON_TYPE, Operation, answer, destination, segment, to_json, url_text
from qtasks.qstash.conversation.transport import Reply
from qtasks.qstash.operations import options as keywords
from qtasks.qstash.operations.options import EnqueueTarget, PublishTarget
from qtasks.qstash.operations.providers import UPSTASH

Body = str | bytes | None
"""A body as it is: text goes out as UTF-8."""


@dataclass
class PublishResponse:
    """A message was accepted, and is stored."""

    message_id: str
    """Id of the message."""
    deduplicated: bool
    """Whether an earlier message of the same deduplication id stands for this one, which was not sent."""


@dataclass
class PublishUrlGroupResponse:
    """A message for one endpoint of a URL group was accepted."""

    message_id: str
    """Id of the message."""
    url: str
    """URL of the endpoint."""
    deduplicated: bool
    """As in `PublishResponse`."""


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
    """A message of a batch was refused. Its neighbours are not affected."""

    error: str
    """Why, in the service's words."""


class BatchRequest(PublishTarget, total=False):
    """One message of a batch: what `publish` takes, and a queue if it is to be enqueued."""

    queue: str | None
    """Name of the queue."""
    body: str | bytes | None
    """The body as it is; bytes must be UTF-8, for a batch travels as JSON."""


class BatchJsonRequest(PublishTarget, total=False):
    """As `BatchRequest`, with a body that is sent as JSON."""

    queue: str | None
    """Name of the queue."""
    body: Any
    """Anything that JSON can express."""


_Accepted = TypeVar("_Accepted", bound=PublishResponse)
_AcceptedEndpoint = TypeVar("_AcceptedEndpoint", bound=PublishUrlGroupResponse)
_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)


class _ReadItem(Protocol[_T_co]):
    """Reads the answer to one message of a batch."""

    def __call__(self, content: Any, *, ours: bool) -> _T_co: ...


@dataclass(frozen=True, slots=True)
class Sealed:
    """A message ready to be sent: its options, and whether the client made its deduplication id (`ours`).

    A client that repeats operations gives every message an id of its own, so that a lost reply never makes a second
    message. The caller does not see that id: with it, `deduplicated` in the reply means that the client's own first
    attempt arrived.
    """

    options: PublishOptions
    ours: bool

    @classmethod
    def of(cls, options: PublishOptions, retry_id: str | None) -> Sealed:
        """Add `retry_id` unless the caller chose a deduplication of their own."""
        if retry_id is None or options.deduplication_id is not None or options.content_based_deduplication:
            return cls(options, ours=False)
        return cls(replace(options, deduplication_id=retry_id), ours=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RawMessage:
    """A message for `QStash.batch_raw`: its options are values of the protocol already."""

    destination: str
    """The URL that gets the message."""
    body: bytes = field(repr=False)
    """UTF-8 text: a batch travels as JSON."""
    options: PublishOptions = field(default_factory=PublishOptions, repr=False)
    queue: str | None = None
    """Name of the queue that the message is appended to; None publishes it."""


def publish_raw(
    target: str, body: bytes, options: PublishOptions, *, retry_id: str | None
) -> Operation[PublishResponse]:
    """Publish to one URL with options that are values of the protocol already."""
    return _post_raw("/v2/publish/", target, body, options, PublishResponse, retry_id)


def enqueue_raw(
    queue: str, target: str, body: bytes, options: PublishOptions, *, retry_id: str | None
) -> Operation[EnqueueResponse]:
    """Append a message for one URL to a queue, with options that are values of the protocol already."""
    return _post_raw(f"/v2/enqueue/{segment(queue, 'queue')}/", target, body, options, EnqueueResponse, retry_id)


def batch_raw(
    messages: Sequence[RawMessage], *, new_retry_id: Callable[[], str | None]
) -> Operation[list[BatchResponse | BatchError]]:
    """Publish or enqueue many messages, each for one URL, with options that are values of the protocol already."""
    sealed = [Sealed.of(message.options, new_retry_id()) for message in messages]
    items = [
        _item(
            message.destination,
            keywords.headers(each.options, {}),
            _text(message.body, f"messages[{index}]"),
            message.queue,
        )
        for index, (message, each) in enumerate(zip(messages, sealed, strict=True))
    ]
    return _batch(items, [each.ours for each in sealed], _batch_answer)


def publish(
    body: Body, arguments: Mapping[str, Any], *, retry_id: str | None
) -> Operation[PublishResponse | list[PublishUrlGroupResponse]]:
    """Publish to a URL, a URL group or a language model."""
    keywords.check_names(arguments, PublishTarget, "publish()")
    return _post("/v2/publish/", body, arguments, PublishResponse, PublishUrlGroupResponse, retry_id)


def enqueue(
    queue: str, body: Body, arguments: Mapping[str, Any], *, retry_id: str | None
) -> Operation[EnqueueResponse | list[EnqueueUrlGroupResponse]]:
    """Append to a queue."""
    keywords.check_names(arguments, EnqueueTarget, "enqueue()")
    prefix = f"/v2/enqueue/{segment(queue, 'queue')}/"
    return _post(prefix, body, arguments, EnqueueResponse, EnqueueUrlGroupResponse, retry_id)


def batch(
    requests: Iterable[BatchRequest], *, new_retry_id: Callable[[], str | None]
) -> Operation[list[BatchResponse | list[BatchUrlGroupResponse] | BatchError]]:
    """Publish or enqueue many at once. A message that is refused does not touch the others."""
    items: list[dict[str, Any]] = []
    ours: list[bool] = []
    for index, request in enumerate(requests):
        sealed, item = _batch_item(request, f"messages[{index}]", new_retry_id())
        items.append(item)
        ours.append(sealed.ours)

    return _batch(items, ours, _batch_answers)


def as_json(body: Any, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A body as JSON text, and the keywords with the content type that says so."""
    return json.dumps(body), {**arguments, "content_type": arguments.get("content_type") or "application/json"}


def batch_as_json(requests: Iterable[BatchJsonRequest]) -> list[BatchRequest]:
    """The items of `batch_json` as items of `batch`."""
    plain: list[BatchRequest] = []
    for request in requests:
        text, arguments = as_json(request.get("body"), request)
        plain.append({**arguments, "body": text})  # type: ignore[typeddict-item]
    return plain


def _post(
    prefix: str,
    body: Body,
    arguments: Mapping[str, Any],
    single: type[_Accepted],
    per_endpoint: type[_AcceptedEndpoint],
    retry_id: str | None,
) -> Operation[_Accepted | list[_AcceptedEndpoint]]:
    target, arguments = _aim(arguments)
    sealed = Sealed.of(keywords.read(arguments), retry_id)

    def read(reply: Reply) -> _Accepted | list[_AcceptedEndpoint]:
        content = answer(reply)
        if isinstance(content, list):
            return [_accepted_endpoint(item, per_endpoint, ours=sealed.ours) for item in content]
        return _accepted(content, single, ours=sealed.ours)

    return Operation(
        "POST",
        prefix + destination(target),
        read,
        headers=keywords.headers(sealed.options, arguments),
        body=as_bytes(body),
    )


def _post_raw(
    prefix: str, target: str, body: bytes, options: PublishOptions, kind: type[_Accepted], retry_id: str | None
) -> Operation[_Accepted]:
    sealed = Sealed.of(options, retry_id)
    return Operation(
        "POST",
        prefix + destination(target),
        lambda reply: _accepted(answer(reply), kind, ours=sealed.ours),
        headers=keywords.headers(sealed.options, {}),
        body=body,
    )


def _batch(items: Sequence[Mapping[str, Any]], ours: Sequence[bool], read_item: _ReadItem[_T]) -> Operation[list[_T]]:
    """The request that carries `items`; `ours` says which deduplication ids the client made."""

    def read(reply: Reply) -> list[_T]:
        answers = answer(reply)
        if len(answers) != len(ours):
            raise ValueError(f"{len(answers)} answers for {len(ours)} messages")
        return [read_item(content, ours=own) for content, own in zip(answers, ours, strict=True)]

    return Operation("POST", "/v2/batch", read, headers=JSON_TYPE, body=to_json(items))


def _accepted(content: Mapping[str, Any], kind: type[_Accepted], *, ours: bool) -> _Accepted:
    return kind(message_id=content["messageId"], deduplicated=bool(content.get("deduplicated")) and not ours)


def _accepted_endpoint(content: Mapping[str, Any], kind: type[_AcceptedEndpoint], *, ours: bool) -> _AcceptedEndpoint:
    return kind(
        message_id=content["messageId"],
        url=content["url"],
        deduplicated=bool(content.get("deduplicated")) and not ours,
    )


def _batch_answers(content: Any, *, ours: bool) -> BatchResponse | list[BatchUrlGroupResponse] | BatchError:
    """The answer to one item of a batch; a URL group answers with a list."""
    if isinstance(content, list):
        return [_accepted_endpoint(item, BatchUrlGroupResponse, ours=ours) for item in content]
    return _batch_answer(content, ours=ours)


def _batch_answer(content: Any, *, ours: bool) -> BatchResponse | BatchError:
    if "messageId" not in content and "error" in content:
        return BatchError(error=str(content["error"]))
    return _accepted(content, BatchResponse, ours=ours)


def _batch_item(arguments: BatchRequest, where: str, retry_id: str | None) -> tuple[Sealed, dict[str, Any]]:
    keywords.check_names(arguments, BatchRequest, where)
    target, rest = _aim(arguments)
    queue, body = rest.pop("queue", None), rest.pop("body", None)
    sealed = Sealed.of(keywords.read(rest), retry_id)
    text = _text(body, where) if isinstance(body, bytes) else body
    return sealed, _item(target, keywords.headers(sealed.options, rest), text, queue)


def _item(target: str, headers: Headers, text: str | None, queue: str | None) -> dict[str, Any]:
    return {"destination": url_text(target), "headers": dict(headers), "body": text, "queue": queue}


def _text(body: bytes, where: str) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise InvalidCallError(
            f"the body of {where} is not UTF-8, and a batch travels as JSON", fix="publish this message by itself"
        ) from None


def _aim(arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The destination, and the keywords without it. A language model adds the headers with its key."""
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
    """The body as it goes out."""
    return body.encode() if isinstance(body, str) else body or b""
