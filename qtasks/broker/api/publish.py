"""Publish, enqueue, batch: from requests to stored messages (docs/protocol.md 2.2 to 2.4)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from qtasks.broker import ids
from qtasks.broker.api.call import Call, Refusal, Reply, read_json, reply
from qtasks.broker.api.context import Context
from qtasks.broker.api.schedules import create_schedule
from qtasks.broker.api.validation import check_api, check_not_before, check_order_of_arrival, check_policy
from qtasks.broker.core.message_builder import LLM_URL, Order, publications
from qtasks.broker.store.interface import Accepted, Endpoint, Publication
from qtasks.protocol import wire
from qtasks.protocol.messages import MAX_BODY, Headers, PublishOptions

MAX_BATCH: Final = 4 * 1024 * 1024
"""Bytes of a batch request."""
MAX_ITEMS: Final = 1000
MAX_MESSAGES: Final = 10_000
"""Messages that one request may become, through groups."""


@dataclass(frozen=True, slots=True)
class Item:
    """One publish as it came in: by itself, or in a batch."""

    destination: str
    """Raw, with its query."""
    headers: Headers
    body: bytes
    queue: str | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
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


async def publish(context: Context, account: int, call: Call, raw_target: str) -> Reply:
    """`POST /v2/publish/{destination}`: 201, or 202 when every message is a duplicate (docs/compatibility.md A2)."""
    return await _publish(context, account, call, raw_target, None)


async def enqueue(context: Context, account: int, call: Call, queue: str, raw_target: str) -> Reply:
    """`POST /v2/enqueue/{queue}/{destination}`: the queue is made if need be (docs/compatibility.md A30)."""
    return await _publish(context, account, call, raw_target, queue)


async def _publish(context: Context, account: int, call: Call, raw_target: str, queue: str | None) -> Reply:
    if _has_cron(call, raw_target):
        return await create_schedule(context, account, call, raw_target, queue=queue)
    # What the head alone can tell is told before the body is read.
    target, options, endpoints = await _read(context, account, Item(raw_target, call.headers, b"", queue))
    body = await call.read_body(MAX_BODY)
    order = _order(account, target, options, endpoints, body, queue, call.client_ip)
    await _check_endpoints(context, order)
    now_ms = context.clock.now_ms()  # after everything that waits: the log is in the order of its times
    prepared = _prepare(context, order, now_ms)
    accepted = await context.accept(prepared.publications, now_ms=now_ms)
    return reply(prepared.answer(accepted), 202 if all(one.deduplicated for one in accepted) else 201)


def _has_cron(call: Call, raw_target: str) -> bool:
    """Whether a publish asks for a schedule, in a header or among its own parameters, not those of the destination."""
    if call.header("upstash-cron") is not None:
        return True
    try:
        return any(name == "upstash-cron" for name, _ in wire.split_target(raw_target).query)
    except wire.WireError as error:
        raise Refusal(error.status, str(error)) from None


async def batch(context: Context, account: int, call: Call) -> Reply:
    """`POST /v2/batch`: one answer for each item, in order.

    An invalid item gets an error; the other items are sent (docs/compatibility.md A12).
    """
    items = read_json(await call.read_body(MAX_BATCH))
    if not isinstance(items, list):
        raise Refusal(400, "a batch is a JSON array of objects with a destination")
    if len(items) > MAX_ITEMS:
        raise Refusal(413, f"too many items: {len(items)} > {MAX_ITEMS}")
    for place, item in enumerate(items):
        if not isinstance(item, dict) or not isinstance(item.get("destination"), str):
            raise Refusal(400, f"item {place} of the batch has no destination")
    orders = [await _order_of(context, account, item, call.client_ip) for item in items]
    if (total := sum(len(one.endpoints) for one in orders if isinstance(one, Order))) > MAX_MESSAGES:
        raise Refusal(413, f"too many messages: {total} > {MAX_MESSAGES}")
    now_ms = context.clock.now_ms()
    prepared = [_prepare(context, one, now_ms) if isinstance(one, Order) else one for one in orders]
    fanned = [one for each in prepared if isinstance(each, Prepared) for one in each.publications]
    accepted = iter(await context.accept(fanned, now_ms=now_ms) if fanned else [])
    answers = [
        each.answer([next(accepted) for _ in each.publications]) if isinstance(each, Prepared) else {"error": each.text}
        for each in prepared
    ]
    return reply(answers, 201)


async def _order_of(context: Context, account: int, item: dict[str, Any], caller_ip: str) -> Order | Refusal:
    """What an item of a batch asks for, or what is wrong with it: that is its answer."""
    try:
        read = _read_item(item)
        target, options, endpoints = await _read(context, account, read)
        if options.cron is not None:
            raise Refusal(400, "Upstash-Cron: a schedule cannot be made in a batch; use POST /v2/schedules")
        order = _order(account, target, options, endpoints, read.body, read.queue, caller_ip)
        await _check_endpoints(context, order)
    except Refusal as refusal:
        return refusal
    return order


def _read_item(item: dict[str, Any]) -> Item:
    """An item of a batch with the types it should have; Refusal otherwise."""
    headers, body, queue = item.get("headers") or {}, item.get("body"), item.get("queue") or None
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise Refusal(400, "headers: expected an object of names and texts")
    if not isinstance(body, str | None):
        raise Refusal(400, "body: expected a text; write a JSON body as the text of its JSON")
    if not isinstance(queue, str | None):
        raise Refusal(400, "queue: expected a text")
    content = (body or "").encode()
    if len(content) > MAX_BODY:
        raise Refusal(413, f"message too large: {len(content)} > {MAX_BODY}")
    return Item(item["destination"], tuple(headers.items()), content, queue)


async def _read(
    context: Context, account: int, item: Item
) -> tuple[wire.Target, PublishOptions, tuple[Endpoint, ...] | None]:
    """Destination and options of an item, checked, and the endpoints of its group; Refusal says what is wrong."""
    try:
        target = wire.split_target(item.destination)
        kind = wire.destination_kind(target.destination)
        if item.queue is not None:
            wire.check_name(item.queue, "queue name")
        if kind == "url":
            wire.check_url(target.destination)
        group = await context.store.group(account, target.destination) if kind == "group" else None
        if kind == "group" and group is None:
            raise Refusal(400, f"{wire.INVALID_SCHEME} (there is no URL group named {target.destination[:128]!r})")
        options = wire.read(item.headers, target.query, () if group is None else group.headers)
    except wire.WireError as error:
        raise Refusal(error.status, str(error)) from None
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
    group: tuple[Endpoint, ...] | None,
    body: bytes,
    queue: str | None,
    caller_ip: str,
) -> Order:
    single = Endpoint(LLM_URL if target.destination == "api/llm" else target.destination)
    return Order(
        account=account,
        endpoints=(single,) if group is None else group,
        body=body,
        options=options,
        caller_ip=caller_ip,
        url_group=None if group is None else target.destination,
        queue=queue,
    )


async def _check_endpoints(context: Context, order: Order) -> None:
    if len(order.endpoints) > MAX_MESSAGES:
        raise Refusal(413, f"too many messages: {len(order.endpoints)} > {MAX_MESSAGES}")
    for endpoint in order.endpoints:
        if endpoint.url == LLM_URL:
            continue
        check_policy(context, endpoint.url)
        if context.resolve_on_publish:
            await _check_resolves(context, endpoint.url)


def _prepare(context: Context, order: Order, now_ms: int) -> Prepared:
    made = publications(order, fresh_id=lambda: ids.message_id(context.random, now_ms), now_ms=now_ms)
    return Prepared(order.url_group is not None, tuple(made))


async def _check_resolves(context: Context, url: str) -> None:
    """Refuse a host name that does not resolve, or resolves to what the policy refuses (docs/compatibility.md A32)."""
    host, _, port = wire.host_of(url).rpartition(":")
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError:
        raise Refusal(400, f"invalid destination url: unable to resolve host: lookup {host}: no such host") from None
    for *_, address in found:
        if (refusal := context.policy.check_address(str(address[0]), host, int(port))) is not None:
            raise Refusal(400, refusal.replace("destination blocked:", "invalid destination url:", 1))
