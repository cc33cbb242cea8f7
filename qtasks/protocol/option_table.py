"""The table of options: each option's header, and how its value is written and read (docs/protocol.md 3).

`wire` turns whole sets of options into headers and back. Reading a value validates it: a value that is accepted here
can be carried out later.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from qtasks.protocol import durations, expressions
from qtasks.protocol.headers import WireError, canonical_name
from qtasks.protocol.messages import MAX_DELAY_MS, MAX_RETRIES, MAX_TIMEOUT_MS, FlowControl, PublishOptions, Redaction
from qtasks.protocol.targets import check_name, check_url

MAX_TEXT = 512
"""Characters of a free text: label, flow-control key, deduplication id, cron expression, content type."""

MAX_LABELS = 64
MAX_NOT_BEFORE_S = 253_402_300_799
"""The last second of the year 9999."""

MAX_LIMIT = 2**31 - 1
"""Largest flow-control rate and parallelism."""

MAX_PERIOD_MS = 7 * 24 * 60 * 60 * 1000

_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
_DIGITS = re.compile(r"[0-9]{1,19}")
_CALL_ID = re.compile(r"[!-~]{1,128}")
_REDACTED_HEADER = re.compile(r"headers?\[\s*([^\[\]\s]+)\s*\]", re.IGNORECASE)
_BOOL = "true or false"
_URL = "an absolute http or https URL"
_DURATION = 'a duration such as "30s", "10m" or "1d2h"'
_FLOW_CONTROL_FORM = (
    "Upstash-Flow-Control-Value should be either rate=X or parallelism=Y, or both as comma-separated values"
)


class OverLimitError(ValueError):
    """A value that is well-formed but more than this service allows: status 412."""


@dataclass(frozen=True, slots=True)
class Field:
    """One row: an attribute of `PublishOptions`, its header, and how its value is written and read.

    `read` raises ValueError (the header's name and `form` are added) or WireError (the text is complete). A `listed`
    header may be given several times. A row that is not `nested` has no meaning for a callback.
    """

    name: str
    header: str
    write: Callable[[Any], str]
    read: Callable[[str], object]
    form: str
    listed: bool = False
    nested: bool = True


def read_limits(key: str, text: str) -> FlowControl:
    """``parallelism=5, rate=10, period=1m`` in any order (docs/protocol.md 3.3)."""
    numbers: dict[str, int] = {}
    for part in text.split(","):
        name, mark, value = (piece.strip(" \t") for piece in part.partition("="))
        if not mark or name not in {"parallelism", "rate", "period"} or name in numbers:
            raise WireError(_FLOW_CONTROL_FORM)
        try:
            numbers[name] = _read_period(value) if name == "period" else _read_number(value, 1, MAX_LIMIT)
        except ValueError as error:
            raise WireError(f"{_FLOW_CONTROL_FORM}: {name}: {error}") from None
    if numbers.keys() == {"period"}:
        raise WireError(_FLOW_CONTROL_FORM)
    return FlowControl(key, numbers.get("parallelism"), numbers.get("rate"), numbers.get("period", 1))


def _read_period(text: str) -> int:
    ms = durations.parse(text)
    if ms % 1000 or not 1000 <= ms <= MAX_PERIOD_MS:
        raise ValueError("a period is a whole number of seconds from 1s to 7d")
    return ms // 1000


def write_limits(flow: FlowControl) -> str:
    """The inverse of `read_limits`, without the key."""
    limits = [("parallelism", flow.parallelism), ("rate", flow.rate)]
    parts = [f"{name}={number}" for name, number in limits if number is not None]
    if flow.period_s != 1:
        parts.append(f"period={durations.format(flow.period_s * 1000)}")
    return ", ".join(parts)


def _read_number(text: str, low: int = 0, high: int = 2**63 - 1) -> int:
    """Only ASCII digits are allowed: `int` would also accept signs, underscores and the digits of any script."""
    if not _DIGITS.fullmatch(text):
        shown = text[:32].encode("unicode_escape").decode("ascii")
        raise ValueError(f'"{shown}" is not a whole number')
    if not low <= int(text) <= high:
        raise ValueError(f"{text} is not from {low} to {high}")
    return int(text)


def _read_method(text: str) -> str:
    if (method := text.upper()) not in _METHODS or not text.isascii():
        raise ValueError(f"unknown method {text[:16]!r}")
    return method


def _read_bool(text: str) -> bool:
    """Accepts what Go's ``ParseBool`` accepts, in upper or lower case, because Python's clients send ``True``."""
    lowered = text.lower()
    if lowered not in {"1", "t", "true", "0", "f", "false"}:
        raise ValueError(f"{text[:16]!r} is not a boolean")
    return lowered in {"1", "t", "true"}


def _write_bool(value: bool) -> str:
    return "true" if value else "false"


def _read_delay(text: str) -> int:
    ms = durations.parse(text)
    if ms > MAX_DELAY_MS:
        raise ValueError(f"{text} is longer than the maximum of {MAX_DELAY_MS // 86_400_000}d")
    return ms


def _read_timeout(text: str) -> int:
    ms = durations.parse(text)
    if ms == 0:
        raise ValueError("a timeout of 0 would let no delivery succeed")
    if ms > MAX_TIMEOUT_MS:
        raise ValueError(f"{text} is longer than the maximum of {durations.format(MAX_TIMEOUT_MS)}")
    return ms


def _read_retries(text: str) -> int:
    number = _read_number(text)
    if number > MAX_RETRIES:
        raise OverLimitError(f"{number} exceeds the maximum of {MAX_RETRIES} retries")
    return number


def _read_not_before(text: str) -> int:
    number = _read_number(text)
    if number > MAX_NOT_BEFORE_S:
        raise ValueError(f"{number} is beyond the year 9999 (are these milliseconds?)")
    return number


def _read_retry_delay(text: str) -> str:
    return expressions.parse(text).text


def _read_deduplication_id(text: str) -> str:
    if ":" in text:
        raise WireError("DeduplicationId cannot contain ':'")
    return _read_ascii(text)


def _read_ascii(text: str) -> str:
    if not text.isascii():
        raise ValueError("a character is not ASCII")
    return _read_text(text)


def _read_text(text: str) -> str:
    if not 1 <= len(text) <= MAX_TEXT:
        raise ValueError(f"{len(text)} characters")
    return text


def _read_content_type(text: str) -> str | None:
    return _read_ascii(text) if text else None


def _read_labels(text: str) -> tuple[str, ...]:
    labels = tuple(label for part in text.split(",") if (label := part.strip()))
    if len(labels) > MAX_LABELS:
        raise ValueError(f"{len(labels)} labels")
    for label in labels:
        _read_text(label)
    return labels


def _read_redaction(text: str) -> Redaction:
    body = all_headers = False
    names: list[str] = []
    for item in (part.strip() for part in text.split(",")):
        if item.lower() == "body":
            body = True
        elif item.lower() in {"header", "headers"}:
            all_headers = True
        elif match := _REDACTED_HEADER.fullmatch(item):
            names.append(canonical_name(match[1]))
        else:
            raise ValueError(f"{item[:64]!r} cannot be redacted")
    return Redaction(body, all_headers, tuple(dict.fromkeys(names)))


def _write_redaction(redaction: Redaction) -> str:
    parts = ["body"] * redaction.body + ["header"] * redaction.all_headers
    return ",".join(parts + [f"header[{name}]" for name in redaction.headers])


def _read_call_id(text: str) -> str:
    if not _CALL_ID.fullmatch(text):
        raise ValueError(f"{text[:32]!r} is not a call id")
    return text


def _read_cron(text: str) -> str:
    if not text:
        raise WireError("Invalid cron expression empty spec string")
    return _read_text(text)


def read_url(text: str) -> str:
    """`text`, if it is a URL to which a message can be sent. Raises ValueError."""
    try:
        check_url(text)
    except WireError as error:
        raise ValueError(error) from None  # the header that holds it is at fault, not the request's own URL
    return text


FIELDS = (
    Field("method", "Upstash-Method", str, _read_method, "GET, POST, PUT, PATCH or DELETE"),
    Field("content_type", "Content-Type", str, _read_content_type, f"at most {MAX_TEXT} characters", nested=False),
    Field("forward_all", "Upstash-Header-Forward", _write_bool, _read_bool, _BOOL, nested=False),
    Field("delay_ms", "Upstash-Delay", durations.format, _read_delay, _DURATION),
    Field("not_before_s", "Upstash-Not-Before", str, _read_not_before, "Unix time in whole seconds"),
    Field("retries", "Upstash-Retries", str, _read_retries, f"an integer from 0 to {MAX_RETRIES}"),
    Field("retry_delay", "Upstash-Retry-Delay", str, _read_retry_delay, 'milliseconds such as "1000 * (1 + retried)"'),
    Field("timeout_ms", "Upstash-Timeout", durations.format, _read_timeout, _DURATION),
    Field(
        "deduplication_id",
        "Upstash-Deduplication-Id",
        str,
        _read_deduplication_id,
        f"1 to {MAX_TEXT} ASCII characters without a colon",
    ),
    Field("content_based_deduplication", "Upstash-Content-Based-Deduplication", _write_bool, _read_bool, _BOOL),
    Field("callback", "Upstash-Callback", str, read_url, _URL),
    Field("failure_callback", "Upstash-Failure-Callback", str, read_url, _URL),
    Field("labels", "Upstash-Label", ",".join, _read_labels, f"up to {MAX_LABELS}, comma-separated", listed=True),
    Field(
        "redact",
        "Upstash-Redact-Fields",
        _write_redaction,
        _read_redaction,
        "body, header or header[Name], comma-separated",
        listed=True,
    ),
    Field("cron", "Upstash-Cron", str, _read_cron, f"at most {MAX_TEXT} characters", nested=False),
    Field("schedule_id", "Upstash-Schedule-Id", str, lambda text: check_name(text, "schedule id"), "", nested=False),
    Field("queue", "Upstash-Queue-Name", str, lambda text: check_name(text, "queue name"), "", nested=False),
    Field("call_id", "Qtasks-Call-Id", str, _read_call_id, "1 to 128 visible ASCII characters", nested=False),
    Field("end_callback", "Qtasks-End-Callback", str, read_url, _URL),
    Field("interrupted_for_ms", "Qtasks-Interrupted-For", durations.format, _read_delay, _DURATION),
)
"""The table. Forwarded headers, flow control (two headers) and nested options have their own readers above."""

OWN_HEADERS = frozenset(field.header for field in FIELDS if field.header.startswith("Qtasks-"))
"""The options that this broker has in addition; the hosted service ignores their headers (docs/compatibility.md)."""

OPTION_NAMES = tuple(field.name for field in fields(PublishOptions))
"""Every attribute of `PublishOptions`."""
