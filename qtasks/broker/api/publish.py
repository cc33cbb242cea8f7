"""Publish, enqueue and batch: from requests to stored messages (docs/protocol.md 2.2 to 2.4)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from qtasks.broker import ids
from qtasks.broker.api import workflows
from qtasks.broker.api.api_context import ApiContext
from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, json_response, read_json
from qtasks.broker.api.schedules import store_schedule
from qtasks.broker.api.turns import Turn
from qtasks.broker.api.validation import (
    check_api,
    check_not_before,
    check_order_of_arrival,
    check_policy,
    refused,
    split_target,
)
from qtasks.broker.core.message_builder import (
    LLM_URL,
    ValidPublish,
    messages_without_ids,
    publication_like,
    publications,
)
from qtasks.broker.core.values import Accepted, DeliveryEndpoint, Publication
from qtasks.broker.store.verbs import url_groups
from qtasks.broker.transport.destination import parse
from qtasks.broker.transport.resolver import check
from qtasks.protocol import wire
from qtasks.protocol.headers import BROKER_HEADER
from qtasks.protocol.messages import MAX_BODY, Headers, Message, PublishOptions
from qtasks.protocol.stringify import stringify

MAX_BATCH: Final = 4 * 1024 * 1024
"""Limit for the body of a batch request, bytes."""
MAX_ITEMS: Final = 1000
MAX_MESSAGES: Final = 10_000
"""Limit for the messages that one request creates through URL groups."""

_TEXTS: Final = frozenset({str})
_OURS: Final[Headers] = ((BROKER_HEADER, "true"),)


class PublishRequest(NamedTuple):
    """One publish as received, by itself or as an item of a batch, without its body."""

    target: wire.Target
    headers: Headers
    caller_ip: str
    queue: str | None = None


class PreparedPublish(NamedTuple):
    """A valid publish with the messages to store for it."""

    is_group: bool
    publications: Sequence[Publication]

    def answer(self, accepted: Sequence[Accepted]) -> dict[str, object] | list[dict[str, object]]:
        """The publish response: an object for a URL, an array for a URL group (docs/compatibility.md A1)."""
        entries: list[dict[str, object]] = [
            {
                "messageId": result.message_id,
                "url": publication.message.url,
                **({"deduplicated": True} if result.deduplicated else {}),
            }
            for publication, result in zip(self.publications, accepted, strict=True)
        ]
        return entries if self.is_group else entries[0]


async def publish(context: ApiContext, account: int, request: ApiRequest, raw_target: str) -> ApiResponse:
    """`POST /v2/publish/{destination}`: 201, or 202 if every message is a duplicate (docs/compatibility.md A2)."""
    return await _publish(context, account, request, raw_target, None)


async def enqueue(context: ApiContext, account: int, request: ApiRequest, queue: str, raw_target: str) -> ApiResponse:
    """`POST /v2/enqueue/{queue}/{destination}`: creates a missing queue (docs/compatibility.md A30)."""
    return await _publish(context, account, request, raw_target, queue)


async def _publish(
    context: ApiContext, account: int, request: ApiRequest, raw_target: str, queue: str | None
) -> ApiResponse:
    target = split_target(raw_target)
    if has_cron(request, target):
        return await store_schedule(context, account, request, target, queue=queue)
    workflows.check_headers([name for name, _ in (*request.headers, *target.query)])
    head = PublishRequest(target, request.headers, request.client_ip, queue)
    # Checked before the body is read, so that a refusal does not wait for it.
    valid = await _validated(context, account, head)
    valid = valid.with_body(await request.read_body(MAX_BODY))
    # Read after the body, so that log entries are in the order of their times.
    now_ms = context.clock.now_ms()
    prepared = await _prepared(context, valid, now_ms, context.turns.begin())
    accepted = await context.accept(prepared.publications, now_ms=now_ms)
    status = 202 if all(result.deduplicated for result in accepted) else 201
    return json_response(prepared.answer(accepted), status, _OURS)


def has_cron(request: ApiRequest, target: wire.Target) -> bool:
    """True if a publish creates a schedule: by a header or by its own parameter, not by one of the destination."""
    return request.header("upstash-cron") is not None or any(name == "upstash-cron" for name, _ in target.query)


async def batch(context: ApiContext, account: int, request: ApiRequest) -> ApiResponse:
    """`POST /v2/batch`: one answer per item, in order.

    An invalid item gets an error; the other items are published all the same (docs/compatibility.md A12).
    """
    workflows.check_headers([name for name, _ in request.headers])
    # `JSON.stringify` writes 1e20 with all its digits; what the numbers of a body mean is not the broker's concern.
    items = await read_json(await request.read_body(MAX_BATCH), then=_with_texts, big_integers=True)
    if not isinstance(items, list):
        raise HttpError(400, "a batch is a JSON array of objects with a destination")
    if len(items) > MAX_ITEMS:
        raise HttpError(413, f"too many items: {len(items)} > {MAX_ITEMS}")
    for index, item in enumerate(items):
        if not isinstance(item, dict) or not isinstance(item.get("destination"), str):
            raise HttpError(400, f"item {index} of the batch has no destination")
    workflows.check_items(items)
    turn = context.turns.begin()
    reader = _ItemReader(context, account, request.client_ip)
    read: list[_Item | HttpError] = []
    for item in items:
        read.append(await reader.read(item))
        if turn.is_long:
            await turn.end_if_long()
    total = sum([len(item.kind.publish.endpoints) for item in read if isinstance(item, _Item)])
    if total > MAX_MESSAGES:
        raise HttpError(413, f"too many messages: {total} > {MAX_MESSAGES}")
    now_ms = context.clock.now_ms()
    new_ids = iter(ids.message_ids(context.random, now_ms, total))
    prepared: list[PreparedPublish | HttpError] = []
    for item in read:
        prepared.append(_prepared_item(context, item, new_ids, now_ms) if isinstance(item, _Item) else item)
        if turn.is_long:
            await turn.end_if_long()
    to_store = [
        publication for result in prepared if isinstance(result, PreparedPublish) for publication in result.publications
    ]
    accepted = iter(await context.accept(to_store, now_ms=now_ms) if to_store else [])
    answers = [
        result.answer([next(accepted) for _ in result.publications])
        if isinstance(result, PreparedPublish)
        else {"error": result.text}
        for result in prepared
    ]
    return json_response(answers, 201, _OURS)


class _ItemKind:
    """Items of one batch that differ only in their bodies, in their ids and in the queries of their callbacks."""

    def __init__(self, publish: ValidPublish) -> None:
        self.publish = publish
        """One of them, without its body and without what is its own."""
        self.messages: tuple[Message, ...] = ()
        """Their messages, one for each endpoint, without what is their own; made when the time is known."""


class _Item(NamedTuple):
    """A valid item of a batch."""

    kind: _ItemKind
    options: PublishOptions
    body: bytes


class _ItemReader:
    """Reads the items of one batch. What is the same for several of them is read and judged once."""

    def __init__(self, context: ApiContext, account: int, caller_ip: str) -> None:
        self._context = context
        self._account = account
        self._caller_ip = caller_ip
        self._kinds: dict[tuple[str, str | None, Headers], _ItemKind] = {}

    async def read(self, item: dict[str, Any]) -> _Item | HttpError:
        """The item, or the error that is its answer."""
        try:
            headers, queue, body = _read_item(item)
            target = split_target(item["destination"])
            lines = None if target.query else wire.split(tuple(headers), tuple(headers.values()))
            if lines is not None:
                key = target.destination, queue, lines.shared
                if (kind := self._kinds.get(key)) is None and wire.destination_kind(target.destination) != "group":
                    kind = self._kinds[key] = await self._new_kind(target, queue, lines.shared)
                if kind is not None:
                    return _Item(kind, wire.with_own(kind.publish.options, lines.own), body)
            kind = await self._new_kind(target, queue, tuple(headers.items()))
            return _Item(kind, kind.publish.options, body)
        except wire.WireError as error:
            return HttpError(error.status, str(error))
        except HttpError as error:
            return error

    async def _new_kind(self, target: wire.Target, queue: str | None, lines: Headers) -> _ItemKind:
        request = PublishRequest(target, lines, self._caller_ip, queue)
        publish = await _validated(self._context, self._account, request)
        if publish.options.cron is not None:
            raise HttpError(400, "Upstash-Cron: a schedule cannot be made in a batch; use POST /v2/schedules")
        return _ItemKind(publish)


def _prepared_item(
    context: ApiContext, item: _Item, new_ids: Iterator[str], now_ms: int
) -> PreparedPublish | HttpError:
    kind = item.kind
    if not kind.messages:
        try:
            _check_time(context, kind.publish, now_ms)
        except HttpError as error:
            return error
        kind.messages = messages_without_ids(kind.publish, now_ms=now_ms)
    return PreparedPublish(
        kind.publish.url_group is not None,
        [publication_like(message, next(new_ids), item.options, item.body) for message in kind.messages],
    )


def _with_texts(items: Any) -> Any:
    """The items of a batch, the body of each of which is a text: any other JSON value is written as its JSON text.

    ``null`` stays, and means no body: the official Python SDK sends it where its caller gave none.
    """
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and type(body := item.get("body")) is not str and body is not None:
            item["body"] = stringify(body).decode()
    return items


def _read_item(item: dict[str, Any]) -> tuple[dict[str, str], str | None, bytes]:
    """Headers, queue and body of a batch item. HttpError for a wrong type or a body that is too large."""
    headers, body, queue = item.get("headers") or {}, item.get("body"), item.get("queue") or None
    if not isinstance(headers, dict) or not _TEXTS.issuperset(map(type, headers.values())):
        raise HttpError(400, "headers: expected an object of names and texts")
    if queue is not None and not isinstance(queue, str):
        raise HttpError(400, "queue: expected a text")
    content = (body or "").encode()
    if len(content) > MAX_BODY:
        raise HttpError(413, f"message too large: {len(content)} > {MAX_BODY}")
    return headers, queue, content


async def _validated(context: ApiContext, account: int, request: PublishRequest) -> ValidPublish:
    """The publish with its options and endpoints, without its body, checked except for its time.

    HttpError says what is wrong.
    """
    destination = request.target.destination
    try:
        kind = wire.destination_kind(destination)
        if request.queue is not None:
            wire.check_name(request.queue, "queue name")
        if kind == "url":
            wire.check_url(destination)
        group = await context.store.read(url_groups.group, account, destination) if kind == "group" else None
        if kind == "group" and group is None:
            raise HttpError(400, f"{wire.INVALID_SCHEME} (there is no URL group named {destination[:128]!r})")
        options = wire.read(request.headers, request.target.query, () if group is None else group.headers)
    except wire.WireError as error:
        raise HttpError(error.status, str(error)) from None
    if kind == "api":
        check_api(context, destination, options)
    if request.queue is not None:
        check_order_of_arrival(options)
    valid = ValidPublish(
        account=account,
        endpoints=(DeliveryEndpoint(LLM_URL if kind == "api" else destination),) if group is None else group.endpoints,
        body=b"",
        options=options,
        caller_ip=request.caller_ip,
        url_group=None if group is None else destination,
        queue=request.queue,
    )
    await _check_destinations(context, valid, [] if kind == "api" else [endpoint.url for endpoint in valid.endpoints])
    return valid


async def _check_destinations(context: ApiContext, publish: ValidPublish, urls: Sequence[str]) -> None:
    """Refuse too many endpoints, and URLs that the policy refuses, those of callbacks included."""
    if len(publish.endpoints) > MAX_MESSAGES:
        raise HttpError(413, f"too many messages: {len(publish.endpoints)} > {MAX_MESSAGES}")
    check_policy(context, options=publish.options)
    turn = context.turns.begin() if len(urls) > 1 else None
    for url in urls:
        check_policy(context, url, method=publish.options.method)
        if turn is not None and turn.is_long:
            await turn.end_if_long()
    if context.resolve_on_publish:
        for url in urls:
            await _check_resolves(context, url, publish.options.method or "POST")


async def _check_resolves(context: ApiContext, url: str, method: str) -> None:
    """Refuse a host name that does not resolve, or resolves to a refused address (docs/compatibility.md A32)."""
    place = parse(url)
    loop = asyncio.get_running_loop()
    try:
        entries = await loop.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except OSError:
        text = f"invalid destination url: unable to resolve host: lookup {place.host}: no such host"
        raise HttpError(400, text) from None
    limited = context.policy.limited_rules(place, method)
    for *_, address in entries:
        if (refusal := check(context.policy, str(address[0]), place.host, place.port, limited)) is not None:
            raise refused(context, url, refusal.replace("destination blocked:", "invalid destination url:", 1))


async def _prepared(context: ApiContext, publish: ValidPublish, now_ms: int, turn: Turn) -> PreparedPublish:
    """The messages of a publish at `now_ms`. HttpError 412 for a time too far ahead."""
    _check_time(context, publish, now_ms)
    messages: list[Publication] = []
    for message in publications(publish, new_id=lambda: ids.message_id(context.random, now_ms), now_ms=now_ms):
        messages.append(message)
        if turn.is_long:
            await turn.end_if_long()
    return PreparedPublish(publish.url_group is not None, messages)


def _check_time(context: ApiContext, publish: ValidPublish, now_ms: int) -> None:
    if publish.options.not_before_s is not None:
        check_not_before(publish.options, now_ms + context.clock.offset_ms())
