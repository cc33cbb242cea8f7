"""Publish, enqueue, batch: from requests to stored messages (docs/protocol.md 2.2 to 2.4)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from qtasks.broker import ids
from qtasks.broker.api.api_context import ApiContext
from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, json_response, read_json
from qtasks.broker.api.schedules import create_schedule
from qtasks.broker.api.validation import check_api, check_not_before, check_order_of_arrival, check_policy
from qtasks.broker.core.message_builder import LLM_URL, ValidPublish, publications
from qtasks.broker.core.values import Accepted, DeliveryEndpoint, Publication
from qtasks.broker.store import url_groups
from qtasks.protocol import wire
from qtasks.protocol.messages import MAX_BODY, Headers, PublishOptions

MAX_BATCH: Final = 4 * 1024 * 1024
"""Bytes of a batch request."""
MAX_ITEMS: Final = 1000
MAX_MESSAGES: Final = 10_000
"""Messages that one request may become, through groups."""


@dataclass(frozen=True, slots=True)
class PublishRequest:
    """One publish as it came in: by itself, or in a batch."""

    destination: str
    """Raw, with its query."""
    headers: Headers
    body: bytes
    queue: str | None = None


@dataclass(frozen=True, slots=True)
class PreparedPublish:
    """An item, checked, with the messages it becomes."""

    is_group: bool
    publications: tuple[Publication, ...]

    def answer(self, accepted: Sequence[Accepted]) -> dict[str, object] | list[dict[str, object]]:
        """The publish response: an object for a URL, an array for a group (docs/compatibility.md A1)."""
        entries: list[dict[str, object]] = [
            {
                "messageId": one.message_id,
                "url": publication.message.url,
                **({"deduplicated": True} if one.deduplicated else {}),
            }
            for publication, one in zip(self.publications, accepted, strict=True)
        ]
        return entries if self.is_group else entries[0]


async def publish(context: ApiContext, account: int, request: ApiRequest, raw_target: str) -> ApiResponse:
    """`POST /v2/publish/{destination}`: 201, or 202 when every message is a duplicate (docs/compatibility.md A2)."""
    return await _publish(context, account, request, raw_target, None)


async def enqueue(context: ApiContext, account: int, request: ApiRequest, queue: str, raw_target: str) -> ApiResponse:
    """`POST /v2/enqueue/{queue}/{destination}`: the queue is made if need be (docs/compatibility.md A30)."""
    return await _publish(context, account, request, raw_target, queue)


async def _publish(
    context: ApiContext, account: int, request: ApiRequest, raw_target: str, queue: str | None
) -> ApiResponse:
    if _has_cron(request, raw_target):
        return await create_schedule(context, account, request, raw_target, queue=queue)
    # What the head alone can tell is told before the body is read.
    target, options, endpoints = await _read(context, account, PublishRequest(raw_target, request.headers, b"", queue))
    body = await request.read_body(MAX_BODY)
    order = _order(account, target, options, endpoints, body, queue, request.client_ip)
    await _check_endpoints(context, order)
    now_ms = context.clock.now_ms()  # after everything that waits: the log is in the order of its times
    prepared = _prepare(context, order, now_ms)
    accepted = await context.accept(prepared.publications, now_ms=now_ms)
    return json_response(prepared.answer(accepted), 202 if all(one.deduplicated for one in accepted) else 201)


def _has_cron(request: ApiRequest, raw_target: str) -> bool:
    """Whether a publish asks for a schedule, in a header or among its own parameters, not those of the destination."""
    if request.header("upstash-cron") is not None:
        return True
    try:
        return any(name == "upstash-cron" for name, _ in wire.split_target(raw_target).query)
    except wire.WireError as error:
        raise HttpError(error.status, str(error)) from None


async def batch(context: ApiContext, account: int, request: ApiRequest) -> ApiResponse:
    """`POST /v2/batch`: one answer per item, in order.

    An invalid item gets an error; the other items are published all the same (docs/compatibility.md A12).
    """
    items = read_json(await request.read_body(MAX_BATCH))
    if not isinstance(items, list):
        raise HttpError(400, "a batch is a JSON array of objects with a destination")
    if len(items) > MAX_ITEMS:
        raise HttpError(413, f"too many items: {len(items)} > {MAX_ITEMS}")
    for place, item in enumerate(items):
        if not isinstance(item, dict) or not isinstance(item.get("destination"), str):
            raise HttpError(400, f"item {place} of the batch has no destination")
    orders = [await _order_of(context, account, item, request.client_ip) for item in items]
    if (total := sum(len(one.endpoints) for one in orders if isinstance(one, ValidPublish))) > MAX_MESSAGES:
        raise HttpError(413, f"too many messages: {total} > {MAX_MESSAGES}")
    now_ms = context.clock.now_ms()
    prepared = [_prepare(context, one, now_ms) if isinstance(one, ValidPublish) else one for one in orders]
    fanned = [one for each in prepared if isinstance(each, PreparedPublish) for one in each.publications]
    accepted = iter(await context.accept(fanned, now_ms=now_ms) if fanned else [])
    answers = [
        each.answer([next(accepted) for _ in each.publications])
        if isinstance(each, PreparedPublish)
        else {"error": each.text}
        for each in prepared
    ]
    return json_response(answers, 201)


async def _order_of(
    context: ApiContext, account: int, item: dict[str, Any], caller_ip: str
) -> ValidPublish | HttpError:
    """What an item of a batch asks for, or what is wrong with it: that is its answer."""
    try:
        read = _read_item(item)
        target, options, endpoints = await _read(context, account, read)
        if options.cron is not None:
            raise HttpError(400, "Upstash-Cron: a schedule cannot be made in a batch; use POST /v2/schedules")
        order = _order(account, target, options, endpoints, read.body, read.queue, caller_ip)
        await _check_endpoints(context, order)
    except HttpError as refusal:
        return refusal
    return order


def _read_item(item: dict[str, Any]) -> PublishRequest:
    """An item of a batch with the types it should have; HttpError otherwise."""
    headers, body, queue = item.get("headers") or {}, item.get("body"), item.get("queue") or None
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise HttpError(400, "headers: expected an object of names and texts")
    if not isinstance(body, str | None):
        raise HttpError(400, "body: expected a text; write a JSON body as the text of its JSON")
    if not isinstance(queue, str | None):
        raise HttpError(400, "queue: expected a text")
    content = (body or "").encode()
    if len(content) > MAX_BODY:
        raise HttpError(413, f"message too large: {len(content)} > {MAX_BODY}")
    return PublishRequest(item["destination"], tuple(headers.items()), content, queue)


async def _read(
    context: ApiContext, account: int, item: PublishRequest
) -> tuple[wire.Target, PublishOptions, tuple[DeliveryEndpoint, ...] | None]:
    """Destination and options of an item, checked, and the endpoints of its group; HttpError says what is wrong."""
    try:
        target = wire.split_target(item.destination)
        kind = wire.destination_kind(target.destination)
        if item.queue is not None:
            wire.check_name(item.queue, "queue name")
        if kind == "url":
            wire.check_url(target.destination)
        group = await context.store.read(url_groups.group, account, target.destination) if kind == "group" else None
        if kind == "group" and group is None:
            raise HttpError(400, f"{wire.INVALID_SCHEME} (there is no URL group named {target.destination[:128]!r})")
        options = wire.read(item.headers, target.query, () if group is None else group.headers)
    except wire.WireError as error:
        raise HttpError(error.status, str(error)) from None
    if kind == "api":
        check_api(context, target.destination, options)
    if item.queue is not None:
        check_order_of_arrival(options)
    check_not_before(options, context.clock.now_ms())
    check_policy(context, options=options)
    return target, options, None if group is None else group.endpoints


def _order(
    account: int,
    target: wire.Target,
    options: PublishOptions,
    group: tuple[DeliveryEndpoint, ...] | None,
    body: bytes,
    queue: str | None,
    caller_ip: str,
) -> ValidPublish:
    single = DeliveryEndpoint(LLM_URL if target.destination == "api/llm" else target.destination)
    return ValidPublish(
        account=account,
        endpoints=(single,) if group is None else group,
        body=body,
        options=options,
        caller_ip=caller_ip,
        url_group=None if group is None else target.destination,
        queue=queue,
    )


async def _check_endpoints(context: ApiContext, order: ValidPublish) -> None:
    if len(order.endpoints) > MAX_MESSAGES:
        raise HttpError(413, f"too many messages: {len(order.endpoints)} > {MAX_MESSAGES}")
    for endpoint in order.endpoints:
        if endpoint.url == LLM_URL:
            continue
        check_policy(context, endpoint.url)
        if context.resolve_on_publish:
            await _check_resolves(context, endpoint.url)


def _prepare(context: ApiContext, order: ValidPublish, now_ms: int) -> PreparedPublish:
    made = publications(order, new_id=lambda: ids.message_id(context.random, now_ms), now_ms=now_ms)
    return PreparedPublish(order.url_group is not None, tuple(made))


async def _check_resolves(context: ApiContext, url: str) -> None:
    """Refuse a host name that does not resolve, or resolves to what the policy refuses (docs/compatibility.md A32)."""
    host, _, port = wire.host_of(url).rpartition(":")
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError:
        raise HttpError(400, f"invalid destination url: unable to resolve host: lookup {host}: no such host") from None
    for *_, address in found:
        if (refusal := context.policy.check_address(str(address[0]), host, int(port))) is not None:
            raise HttpError(400, refusal.replace("destination blocked:", "invalid destination url:", 1))
