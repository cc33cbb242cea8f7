"""The options of a message: converts keyword arguments into `protocol.messages.PublishOptions` and headers.

publish, enqueue, batch and schedules share the keywords declared here. Names and defaults are those of the official
SDK. Where the SDK takes only one form (a number of seconds, one label), other forms are accepted as well. None is the
same as an absent keyword.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, TypedDict

from qtasks.errors import InvalidCallError, did_you_mean
from qtasks.protocol import durations, messages, wire
from qtasks.protocol.messages import Headers, PublishOptions
from qtasks.qstash.conversation.operation import HttpMethod
from qtasks.qstash.operations.providers import LlmApi

Duration = str | int | float | timedelta
"""``"1h30m"``, a number of seconds, or a timedelta."""


class FlowControl(TypedDict, total=False):
    """Limits shared by all messages of one key. `key` is required, and at least one of `parallelism` and `rate`."""

    key: str
    """Name of the key."""
    parallelism: int
    """Limit of attempts of the key that run at the same time."""
    rate: int
    """Limit of attempts of the key that start within one period."""
    period: Duration
    """Length of the period: default one second, at most one week, whole seconds."""


class Redact(TypedDict, total=False):
    """The parts of a message that logs and API responses hide."""

    body: Literal[True]
    """Hide the body."""
    header: Literal[True] | list[str]
    """True hides every header; a list hides the named ones."""


class DeliveryKeywords(TypedDict, total=False):
    """Options of every kind of message."""

    content_type: str | None
    """MIME type of the body."""
    method: HttpMethod | None
    """HTTP method of the delivery; default POST."""
    headers: Mapping[str, str] | None
    """Headers that the destination gets."""
    callback_headers: Mapping[str, str] | None
    """Options of the callback message, such as ``{"Retries": "1", "Forward-My-Header": "value"}``."""
    failure_callback_headers: Mapping[str, str] | None
    """Options of the failure callback message, in the same form."""
    retries: int | None
    """Retries after the first attempt at most; default 3."""
    retry_delay: str | int | None
    """Delay before a retry: an expression with `retried` that gives milliseconds, ``"pow(2, retried) * 1000"``."""
    callback: str | None
    """URL that gets a message after every attempt."""
    failure_callback: str | None
    """URL that gets a message when the message has failed for good."""
    timeout: Duration | None
    """How long one attempt may take; at most the limit of the service."""
    label: str | Sequence[str] | None
    """Label or labels by which logs and dead letters can be filtered."""
    redact: Redact | None
    """The parts of the message that logs and API responses hide."""
    flow_control: FlowControl | None
    """Limits shared by all messages of one key."""


class EnqueueKeywords(DeliveryKeywords, total=False):
    """Options of a message in a queue. They include no delay, because a queue starts its messages in order."""

    deduplication_id: str | None
    """For ten minutes, further messages with the same id are not stored. It must not contain a colon."""
    content_based_deduplication: bool | None
    """True: the deduplication id is computed from destination, body and headers."""


class PublishKeywords(EnqueueKeywords, total=False):
    """Options of a published message."""

    delay: Duration | None
    """Time to wait before the delivery."""
    not_before: int | datetime | None
    """Earliest time of the delivery, in Unix seconds or as an aware datetime; wins over `delay`."""


class ScheduleKeywords(DeliveryKeywords, total=False):
    """Options of a schedule and of the messages that it creates."""

    delay: Duration | None
    """Time between a tick and the delivery of its message."""
    schedule_id: str | None
    """Id of the schedule; an existing schedule with this id is replaced."""
    queue: str | None
    """Queue of the messages."""


class DestinationKeywords(TypedDict, total=False):
    """The destination of a message: exactly one of the three."""

    url: str | None
    """URL that the message is delivered to."""
    url_group: str | None
    """Name of a URL group; each of its endpoints gets its own message."""
    api: LlmApi | None
    """A language model: ``{"name": "llm", "provider": openai("...")}``."""


class PublishTarget(DestinationKeywords, PublishKeywords, total=False):
    """The keywords of `publish`, except the body."""


class EnqueueTarget(DestinationKeywords, EnqueueKeywords, total=False):
    """The keywords of `enqueue`, except queue and body."""


def check_names(arguments: Iterable[str], keywords: type, where: str) -> None:
    """Refuse an argument that is not in `keywords`, one of the classes above. The error names the nearest keyword."""
    names: Mapping[str, object] = keywords.__annotations__
    for name in arguments:
        if name not in names:
            raise TypeError(f"{where} got an unexpected keyword argument {name!r}{did_you_mean(name, names)}")


def read(arguments: Mapping[str, Any]) -> PublishOptions:
    """Convert keyword arguments to the protocol's value.

    It does not contain the callback headers; see `headers`. Raises InvalidCallError for an invalid value.
    """
    present = {name: value for name, value in arguments.items() if value is not None}
    values = {name: _READERS[name](value) for name, value in present.items() if name in _READERS}
    return PublishOptions(**{_FIELDS.get(name, name): value for name, value in values.items()})


def headers(options: PublishOptions, arguments: Mapping[str, Any]) -> Headers:
    """The header lines of a message: first those of `options`, then the callback headers as the caller wrote them.

    The official SDK accepts any name of a callback header and puts the prefix in front, so they are sent unchanged.
    """
    lines = (
        *wire.write(options),
        *_prefixed("Upstash-Callback-", arguments.get("callback_headers")),
        *_prefixed("Upstash-Failure-Callback-", arguments.get("failure_callback_headers")),
    )
    if _BREAK.search("".join([text for line in lines for text in line])):
        name = next(name for name, value in lines if _BREAK.search(name + value))
        raise InvalidCallError(f"the header {name!r} contains a line break")
    return tuple((name, value.strip(" \t")) for name, value in lines)  # HTTP removes spaces around a value


def _prefixed(prefix: str, headers: Mapping[str, str] | None) -> Headers:
    if not headers:
        return ()
    lowered = prefix.lower()
    return tuple(
        (name if name.lower().startswith(lowered) else prefix + name, str(value)) for name, value in headers.items()
    )


_BREAK = re.compile(r"[\r\n\0]")
_FORWARD = "upstash-forward-"


def _forward(headers: Mapping[str, str]) -> Headers:
    return tuple(
        (name[len(_FORWARD) :] if name.lower().startswith(_FORWARD) else name, str(value))
        for name, value in headers.items()
    )


def _span_ms(name: str, value: Duration) -> int:
    try:
        return durations.to_ms(value)
    except (ValueError, TypeError) as error:
        raise InvalidCallError(f"{name}: {error}") from None


def _moment_s(value: float | datetime) -> int:
    if not isinstance(value, datetime):
        return int(value)
    if value.tzinfo is None:
        raise InvalidCallError("not_before is a datetime without a time zone", fix="write datetime.now(timezone.utc)")
    return int(value.timestamp())


def _labels(labels: str | Sequence[str]) -> tuple[str, ...]:
    names = labels.split(",") if isinstance(labels, str) else labels
    return tuple(name.strip() for name in names if name.strip())


def _deduplication_id(value: str) -> str:
    if not value.strip():
        raise InvalidCallError("deduplication_id is empty", fix="leave it out to publish without one")
    if ":" in value:
        raise InvalidCallError("DeduplicationId cannot contain ':'", details={"got": repr(value)})
    return value


def _flow_control(limits: FlowControl) -> messages.FlowControl | None:
    if not limits:
        return None
    check_names(limits, FlowControl, "flow_control")
    key, parallelism, rate = limits.get("key"), limits.get("parallelism"), limits.get("rate")
    if not key:
        raise InvalidCallError("flow_control needs a key")
    if parallelism is None and rate is None:
        raise InvalidCallError("flow_control needs a parallelism or a rate")
    period_ms = _span_ms("flow_control period", limits.get("period", 1))
    if period_ms % 1000 or period_ms == 0:
        raise InvalidCallError(f"flow_control period must be whole seconds, not {limits['period']!r}")
    return messages.FlowControl(key=key, parallelism=parallelism, rate=rate, period_s=period_ms // 1000)


def _redaction(parts: Redact) -> messages.Redaction | None:
    check_names(parts, Redact, "redact")
    which = parts.get("header")
    named = () if which is None or isinstance(which, bool) else tuple(which)
    redaction = messages.Redaction(body=bool(parts.get("body")), all_headers=which is True, headers=named)
    return redaction if redaction != messages.Redaction() else None


_READERS: Mapping[str, Any] = {
    "content_type": str,
    "method": str.upper,
    "headers": _forward,
    "retries": int,
    "retry_delay": str,
    "callback": str,
    "failure_callback": str,
    "timeout": lambda value: _span_ms("timeout", value),
    "label": _labels,
    "redact": _redaction,
    "deduplication_id": _deduplication_id,
    "content_based_deduplication": bool,
    "delay": lambda value: _span_ms("delay", value),
    "not_before": _moment_s,
    "flow_control": _flow_control,
    "schedule_id": str,
    "queue": str,
}
_FIELDS: Mapping[str, str] = {
    "headers": "forward",
    "timeout": "timeout_ms",
    "delay": "delay_ms",
    "not_before": "not_before_s",
    "label": "labels",
}
