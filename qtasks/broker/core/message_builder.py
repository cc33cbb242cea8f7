"""Builds the messages that the broker stores: publishes, schedule runs, retried dead letters, callbacks.

Pure: callers pass the ids and the time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from qtasks.broker.core import wall_times
from qtasks.broker.core.values import DeliveryEndpoint, Publication, UrlGroupState
from qtasks.broker.ports import Failure
from qtasks.protocol import views, wire
from qtasks.protocol.labels import argument_labels
from qtasks.protocol.messages import (
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT_MS,
    Headers,
    Message,
    PublishOptions,
    Redaction,
    Response,
    Schedule,
    State,
    changed,
)
from qtasks.protocol.stringify import stringify

LLM_URL: Final = "http://llm.qtasks.internal/v1/chat/completions"
"""The URL of messages to ``api/llm``; the transport replaces it by the address of the language model."""

END_CALLBACK_RETRIES: Final = 999

_DEFAULTS: Final = PublishOptions()
_END_CALLBACK_OPTIONS: Final = PublishOptions(
    content_type="application/json",
    retry_delay="min(300000, 1000 * pow(2, retried))",  # 1 s, 2 s, 4 s ... at most 5 min: three days in all
    interrupted_for_ms=24 * 60 * 60 * 1000,
)
_NOT_OVERRIDABLE: Final = frozenset(
    {
        "forward",
        "content_type",
        "cron",
        "schedule_id",
        "queue",
        "deduplication_id",
        "content_based_deduplication",
        "call_id",
    }
)
"""Options that the request to retry a dead letter cannot change."""


class ValidPublish(NamedTuple):
    """A valid publish: one body with its options, for every endpoint of a destination."""

    account: int
    endpoints: tuple[DeliveryEndpoint, ...]
    """One for a URL; all members of a URL group, in order."""
    body: bytes
    options: PublishOptions
    caller_ip: str
    url_group: str | None = None
    queue: str | None = None
    schedule_id: str | None = None

    def with_body(self, body: bytes) -> ValidPublish:
        """The same publish of another body."""
        return self._replace(body=body)


# -- publishes


def publications(publish: ValidPublish, *, new_id: Callable[[], str], now_ms: int) -> Iterator[Publication]:
    """One publication for each endpoint; members of a group are deduplicated separately (docs/protocol.md 5.5)."""
    for endpoint in publish.endpoints:
        yield _publication(build_message(publish, endpoint, message_id=new_id(), now_ms=now_ms))


def messages_without_ids(publish: ValidPublish, *, now_ms: int) -> tuple[Message, ...]:
    """One message for each endpoint, for `publication_like`."""
    return tuple(build_message(publish, endpoint, message_id="", now_ms=now_ms) for endpoint in publish.endpoints)


def publication_like(message: Message, message_id: str, options: PublishOptions, body: bytes) -> Publication:
    """The publication of a message that differs from `message` only in its id, its body, and options of its own.

    These are the ids of the call and of its deduplication, its labels, and the URLs of callbacks.
    """
    return _publication(changed(message, id=message_id, options=options, body=body))


def build_message(publish: ValidPublish, endpoint: DeliveryEndpoint, *, message_id: str, now_ms: int) -> Message:
    """The message for one endpoint."""
    return _message(
        publish.options,
        message_id=message_id,
        account=publish.account,
        url=endpoint.url,
        body=publish.body,
        caller_ip=publish.caller_ip,
        default_retries=DEFAULT_RETRIES,
        now_ms=now_ms,
        queue=publish.queue,
        url_group=publish.url_group,
        endpoint=endpoint.name,
        schedule_id=publish.schedule_id,
    )


def publish_of_schedule(schedule: Schedule, group: UrlGroupState | None) -> ValidPublish:
    """The publish for one run of a schedule. `group` is the present state of its URL group, if it has one.

    Raises WireError if the group does not exist any more, or if its default headers are not valid.
    """
    kind = wire.destination_kind(schedule.destination)
    endpoints: tuple[DeliveryEndpoint, ...] = (DeliveryEndpoint(schedule.destination),)
    options = schedule.options
    if kind == "api":
        endpoints = (DeliveryEndpoint(LLM_URL),)
    elif kind == "group":
        if group is None:
            raise wire.WireError(f"there is no URL group named {schedule.destination!r} any more")
        endpoints = group.endpoints
        options = wire.read(wire.write(schedule.options), (), group.headers)
    return ValidPublish(
        account=schedule.account,
        endpoints=endpoints,
        body=schedule.body,
        # Every run is a new message, not a duplicate of the run before.
        options=replace(options, deduplication_id=None, content_based_deduplication=None, not_before_s=None),
        caller_ip=schedule.caller_ip,
        url_group=schedule.destination if kind == "group" else None,
        queue=options.queue,
        schedule_id=schedule.id,
    )


def retry_of_dead_letter(source: Message, overrides: PublishOptions, *, message_id: str, now_ms: int) -> Publication:
    """Publish a dead letter's message again; `overrides` replace its own options.

    The new message has no delay unless the overrides set one, and it is never a duplicate (docs/protocol.md 5.5).
    """
    changes = {
        name: value
        for name in wire.OPTION_NAMES
        if name not in _NOT_OVERRIDABLE and (value := getattr(overrides, name)) not in (None, ())
    }
    options = replace(source.options, **{"not_before_s": None, "delay_ms": None, **changes})
    message = replace(
        source,
        id=message_id,
        method=overrides.method or source.method,
        headers=_merged(source.headers, overrides.forward),
        created_ms=now_ms,
        not_before_ms=_not_before_ms(options, now_ms),
        max_retries=source.max_retries if overrides.retries is None else overrides.retries,
        timeout_ms=overrides.timeout_ms or source.timeout_ms,
        retried=0,
        options=options,
    )
    return Publication(message, wire.host_of(message.url))


# -- callbacks


def callbacks_of_attempt(
    message: Message,
    outcome: Response | Failure,
    *,
    ids: tuple[str, str],
    dead_letter_id: str | None,
    now_ms: int,
    offset_ms: int = 0,
) -> tuple[Message, ...]:
    """The messages that report an attempt (docs/protocol.md 3.6, 4.4).

    Every attempt has a callback (docs/compatibility.md A40). The failure callback follows only the last attempt that
    failed: then `dead_letter_id` is set. A failure callback to the URL of the end callback is left out, because
    `end_callback_of` reports the failure there. `ids` are the ids of the two. Their bodies have wall times, which
    differ from the broker's by `offset_ms`.
    """
    options = message.options
    response, error = _response_and_error(outcome)
    shown = wall_times.of_message(message, offset_ms)
    messages: list[Message] = []
    if options.callback is not None:
        body = stringify(views.callback_json(shown, response, error=error))
        messages.append(_callback(message, ids[0], options.callback, options.callback_options, body, now_ms))
    if options.failure_callback not in (None, options.end_callback) and dead_letter_id is not None:
        body = stringify(views.callback_json(shown, response, error=error, dead_letter_id=dead_letter_id))
        messages.append(
            _callback(message, ids[1], options.failure_callback, options.failure_callback_options, body, now_ms)
        )
    return tuple(messages)


def end_callback_of(
    message: Message,
    state: State,
    outcome: Response | Failure | None,
    *,
    error: str | None = None,
    dead_letter_id: str | None = None,
    now_ms: int,
    offset_ms: int = 0,
) -> Message | None:
    """The end callback of `message`, whose `state` is FAILED or CANCELED (docs/protocol.md 4.4). None if it has none.

    `outcome` is that of the last attempt; without an attempt `error` says why. The callback has 999 retries, so it
    outlasts an outage of its receiver. It has no labels, so that a cancel by label does not cancel it as well. Its id
    derives from the id of `message`, which ends only once. Its body has wall times, which differ from the broker's by
    `offset_ms`.
    """
    url = message.options.end_callback
    if url is None:
        return None
    response, error_of_attempt = _response_and_error(outcome)
    error = error_of_attempt or error
    shown = wall_times.of_message(message, offset_ms)
    body = stringify(views.end_callback_json(shown, state, response, error=error, dead_letter_id=dead_letter_id))
    return _message(
        replace(_END_CALLBACK_OPTIONS, redact=_inherited_redaction(message.options.redact)),
        message_id=f"{message.id}_end",
        account=message.account,
        url=url,
        body=body,
        caller_ip=message.caller_ip,
        default_retries=END_CALLBACK_RETRIES,
        now_ms=now_ms,
    )


def _response_and_error(outcome: Response | Failure | None) -> tuple[Response | None, str | None]:
    """The two forms in which a callback reports an outcome."""
    if isinstance(outcome, Failure):
        return None, outcome.error
    return outcome, None


def callback_requests(options: PublishOptions) -> Sequence[tuple[str, str]]:
    """URL and method of all callbacks in `options`, including callbacks of callbacks."""
    requests = [] if options.end_callback is None else [(options.end_callback, "POST")]
    for url, nested in (
        (options.callback, options.callback_options),
        (options.failure_callback, options.failure_callback_options),
    ):
        if url is not None:
            nested = nested or _DEFAULTS
            requests += [(url, nested.method or "POST"), *callback_requests(nested)]
    return requests


def _callback(
    source: Message, message_id: str, url: str, options: PublishOptions | None, body: bytes, now_ms: int
) -> Message:
    """A callback message. It has its own options; if these set no retries, it has as many as its source.

    A callback has no callback itself, at most a failure callback, so every chain of callbacks ends. The arguments of
    its source are not its own, so their labels are not either.
    """
    options = options or _DEFAULTS
    options = replace(
        options,
        method=options.method or "POST",
        content_type="application/json",
        labels=options.labels or argument_labels.without(source.options.labels),
        redact=options.redact or _inherited_redaction(source.options.redact),
        callback=None,
        callback_options=None,
        deduplication_id=None,
        content_based_deduplication=None,
    )
    return _message(
        options,
        message_id=message_id,
        account=source.account,
        url=url,
        body=body,
        caller_ip=source.caller_ip,
        default_retries=source.max_retries,
        now_ms=now_ms,
    )


def _inherited_redaction(redaction: Redaction | None) -> Redaction | None:
    """The redaction of a callback: its whole body, because that contains the redacted parts of its source."""
    return None if redaction is None else replace(redaction, body=True)


# -- used by all of the above


def _message(
    options: PublishOptions,
    *,
    message_id: str,
    account: int,
    url: str,
    body: bytes,
    caller_ip: str,
    default_retries: int,
    now_ms: int,
    queue: str | None = None,
    url_group: str | None = None,
    endpoint: str | None = None,
    schedule_id: str | None = None,
) -> Message:
    """A new message; an option without a value takes the protocol's default."""
    return Message(
        id=message_id,
        account=account,
        url=url,
        method=options.method or "POST",
        headers=wire.delivery_headers(options),
        body=body,
        created_ms=now_ms,
        not_before_ms=_not_before_ms(options, now_ms),
        max_retries=default_retries if options.retries is None else options.retries,
        timeout_ms=options.timeout_ms or DEFAULT_TIMEOUT_MS,
        caller_ip=caller_ip,
        options=options,
        queue=queue,
        url_group=url_group,
        endpoint=endpoint,
        schedule_id=schedule_id,
    )


def _not_before_ms(options: PublishOptions, now_ms: int) -> int:
    """Earliest time of the delivery, Unix ms: a wall time that the user gave wins over a delay.

    A time in the past means now. `wall_times.due_ms` turns it into the broker's time.
    """
    if options.not_before_s is not None:
        return options.not_before_s * 1000
    return now_ms + (options.delay_ms or 0)


def _publication(message: Message) -> Publication:
    return Publication(message, wire.host_of(message.url), _deduplication_key(message))


def _deduplication_key(message: Message) -> str | None:
    """The deduplication key of a message; an explicit id wins over the content (docs/protocol.md 5.5)."""
    options = message.options
    if options.deduplication_id is not None:
        scope = "" if message.url_group is None else f":{message.url_group}:{message.url}"
        return f"id:{options.deduplication_id}{scope}"
    if not options.content_based_deduplication:
        return None
    lines = sorted(f"{name.lower()}: {value}" for name, value in message.headers)
    head = "\n".join([message.url_group or "", message.url, *lines, ""])
    return "content:" + hashlib.sha256(head.encode() + b"\n" + message.body).hexdigest()


def _merged(headers: Headers, overrides: Headers) -> Headers:
    names = {name for name, _ in overrides}
    return (*(line for line in headers if line[0] not in names), *overrides)
