"""From what a caller asks for to the messages that are stored. Pure: ids and the time are given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from qtasks.broker.store.interface import Endpoint, Publication, UrlGroup
from qtasks.protocol import wire
from qtasks.protocol.messages import (
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT_MS,
    Headers,
    Message,
    PublishOptions,
    Schedule,
)

LLM_URL: Final = "http://llm.qtasks.internal/v1/chat/completions"
"""What ``api/llm`` is delivered to; the transport knows where the language model really is."""

_PLAIN: Final = PublishOptions()
_NOT_AGAIN: Final = frozenset(
    {"forward", "content_type", "cron", "schedule_id", "queue", "deduplication_id", "content_based_deduplication"}
)
"""Options that the request to retry a dead letter does not change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A publish, checked: a body with its options, to all endpoints of a destination."""

    account: int
    endpoints: tuple[Endpoint, ...]
    """One for a URL; all of a group, in order."""
    body: bytes
    options: PublishOptions
    caller_ip: str
    url_group: str | None = None
    queue: str | None = None
    schedule_id: str | None = None


def publications(order: Order, *, fresh_id: Callable[[], str], now_ms: int) -> list[Publication]:
    """One message an endpoint; in a group each is deduplicated on its own (docs/protocol.md 5.5)."""
    made: list[Publication] = []
    for endpoint in order.endpoints:
        message = compose(order, endpoint, message_id=fresh_id(), now_ms=now_ms)
        made.append(Publication(message, wire.host_of(message.url), _deduplication_key(message)))
    return made


def compose(order: Order, endpoint: Endpoint, *, message_id: str, now_ms: int) -> Message:
    """The message for one endpoint; the absolute time wins over the delay, the past means now."""
    options = order.options
    if options.not_before_s is not None:
        not_before_ms = max(now_ms, options.not_before_s * 1000)
    else:
        not_before_ms = now_ms + (options.delay_ms or 0)
    return Message(
        id=message_id,
        account=order.account,
        url=endpoint.url,
        method=options.method or "POST",
        headers=wire.delivery_headers(options),
        body=order.body,
        created_ms=now_ms,
        not_before_ms=not_before_ms,
        max_retries=DEFAULT_RETRIES if options.retries is None else options.retries,
        timeout_ms=options.timeout_ms or DEFAULT_TIMEOUT_MS,
        caller_ip=order.caller_ip,
        options=options,
        queue=order.queue,
        url_group=order.url_group,
        endpoint=endpoint.name,
        schedule_id=order.schedule_id,
    )


def _deduplication_key(message: Message) -> str | None:
    """The key that is taken for ten minutes; an explicit id wins over the content (docs/protocol.md 5.5)."""
    options = message.options
    if options.deduplication_id is not None:
        scope = "" if message.url_group is None else f":{message.url_group}:{message.url}"
        return f"id:{options.deduplication_id}{scope}"
    if not options.content_based_deduplication:
        return None
    lines = sorted(f"{name.lower()}: {value}" for name, value in message.headers)
    head = "\n".join([message.url_group or "", message.url, *lines, ""])
    return "content:" + hashlib.sha256(head.encode() + b"\n" + message.body).hexdigest()


def of_schedule(schedule: Schedule, group: UrlGroup | None) -> Order:
    """What a run of a schedule publishes; the members and defaults of its group are those of the moment.

    Raises WireError when the group is gone, or its defaults do not fit.
    """
    kind = wire.destination_kind(schedule.destination)
    endpoints: tuple[Endpoint, ...] = (Endpoint(schedule.destination),)
    options = schedule.options
    if kind == "api":
        endpoints = (Endpoint(LLM_URL),)
    elif kind == "group":
        if group is None:
            raise wire.WireError(f"there is no URL group named {schedule.destination!r} any more")
        endpoints = group.endpoints
        options = wire.read(wire.write(schedule.options), (), group.headers)
    return Order(
        account=schedule.account,
        endpoints=endpoints,
        body=schedule.body,
        # A run is no duplicate of the one before it.
        options=replace(options, deduplication_id=None, content_based_deduplication=None, not_before_s=None),
        caller_ip=schedule.caller_ip,
        url_group=schedule.destination if kind == "group" else None,
        queue=options.queue,
        schedule_id=schedule.id,
    )


def again(source: Message, overrides: PublishOptions, *, message_id: str, now_ms: int) -> Publication:
    """A dead letter's message, published anew; what `overrides` says replaces what it was sent with.

    Its delay is over, unless the overrides have another; it is nobody's duplicate (docs/protocol.md 5.5).
    """
    said = {
        name: value
        for name in wire.OPTION_NAMES
        if name not in _NOT_AGAIN and (value := getattr(overrides, name)) not in (None, ())
    }
    options = replace(source.options, **{"not_before_s": None, "delay_ms": None, **said})
    if options.not_before_s is not None:
        not_before_ms = max(now_ms, options.not_before_s * 1000)
    else:
        not_before_ms = now_ms + (options.delay_ms or 0)
    message = replace(
        source,
        id=message_id,
        method=overrides.method or source.method,
        headers=_overlaid(source.headers, overrides.forward),
        created_ms=now_ms,
        not_before_ms=not_before_ms,
        max_retries=source.max_retries if overrides.retries is None else overrides.retries,
        timeout_ms=overrides.timeout_ms or source.timeout_ms,
        retried=0,
        options=options,
    )
    return Publication(message, wire.host_of(message.url))


def _overlaid(headers: Headers, over: Headers) -> Headers:
    names = {name for name, _ in over}
    return (*(line for line in headers if line[0] not in names), *over)


def urls_of(options: PublishOptions) -> Sequence[str]:
    """Every URL that options make the broker call, callbacks of callbacks included."""
    found: list[str] = []
    for url, nested in (
        (options.callback, options.callback_options),
        (options.failure_callback, options.failure_callback_options),
    ):
        if url is not None:
            found += [url, *urls_of(nested or _PLAIN)]
    return found
