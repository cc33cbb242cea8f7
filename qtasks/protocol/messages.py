"""The values of the protocol: messages, options, log entries, schedules.

They are frozen: a change makes a new value (`dataclasses.replace`, or `changed` for those made for every message, which
have no slots for its sake).

Units are in the names: `_ms` is Unix milliseconds or a span in milliseconds, `_s` the same in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

Headers = tuple[tuple[str, str], ...]
"""Header lines in order, names in canonical form (``Content-Type``); a name may repeat."""

DEFAULT_RETRIES = 3
"""Retries after the first attempt when a publish gives no number (docs/protocol.md 5.2)."""

MAX_RETRIES = 999
MAX_BODY = 1024 * 1024
"""Largest message body in bytes; one more is answered 413."""

DEFAULT_TIMEOUT_MS = 15 * 60 * 1000
MAX_TIMEOUT_MS = 2 * 60 * 60 * 1000
MAX_DELAY_MS = 366 * 24 * 60 * 60 * 1000
DEDUPLICATION_WINDOW_MS = 10 * 60 * 1000


class State(StrEnum):
    """States of a message as the log shows them (docs/protocol.md 5.1)."""

    CREATED = "CREATED"
    ACTIVE = "ACTIVE"
    RETRY = "RETRY"
    ERROR = "ERROR"
    DELIVERED = "DELIVERED"
    FAILED = "FAILED"
    CANCEL_REQUESTED = "CANCEL_REQUESTED"
    CANCELED = "CANCELED"


@dataclass(frozen=True, slots=True)
class FlowControl:
    """A flow-control key with its limits; at least one of `parallelism` and `rate` is set."""

    key: str
    parallelism: int | None = None
    rate: int | None = None
    period_s: int = 1


@dataclass(frozen=True, slots=True)
class Redaction:
    """What the API and the logs must hide: the body, all headers, or the named headers."""

    body: bool = False
    all_headers: bool = False
    headers: tuple[str, ...] = ()


T = TypeVar("T")


def changed(value: T, **changes: Any) -> T:
    """What `dataclasses.replace` returns, in a seventh of its time: the fields are not set one by one.

    For a dataclass without slots that checks nothing when it is made.
    """
    copy = object.__new__(type(value))
    copy.__dict__.update(value.__dict__, **changes)
    return copy


@dataclass(frozen=True, kw_only=True)
class PublishOptions:
    """How to deliver a message. None (or empty) means "not given", so that defaults merge field by field.

    For each field, one row of `protocol.wire` says how it is written to its header and read from it.
    """

    method: str | None = None
    """Upper-case; the service's default is POST."""
    content_type: str | None = None
    """The `Content-Type` of the publish itself; a forwarded one wins over it."""
    forward: Headers = ()
    """Headers for the destination, canonical names, order kept."""
    forward_all: bool | None = None
    """Forward every header of the incoming publish request, not only the prefixed ones."""
    delay_ms: int | None = None
    not_before_s: int | None = None
    """Unix seconds; wins over the delay."""
    retries: int | None = None
    retry_delay: str | None = None
    """Expression in milliseconds, verbatim; see `protocol.expressions`."""
    timeout_ms: int | None = None
    deduplication_id: str | None = None
    content_based_deduplication: bool | None = None
    callback: str | None = None
    failure_callback: str | None = None
    callback_options: PublishOptions | None = None
    """Configuration of the callback message; ignored without `callback`."""
    failure_callback_options: PublishOptions | None = None
    flow_control: FlowControl | None = None
    labels: tuple[str, ...] = ()
    redact: Redaction | None = None
    cron: str | None = None
    schedule_id: str | None = None
    queue: str | None = None
    """Schedules only: the queue its messages go through."""
    call_id: str | None = None
    """Of this broker: the id of the call that the message carries; the API finds the message by it, too."""
    end_callback: str | None = None
    """Of this broker: called once when the message has failed for good or was cancelled, until an answer is 2xx."""
    interrupted_for_ms: int | None = None
    """Of this broker: for how long interrupted attempts spend no retry; None counts every attempt, as QStash does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """The response of an endpoint: status, header lines as received, body (`truncated` if it was cut at the limit)."""

    status: int
    headers: Headers = ()
    body: bytes = b""
    truncated: bool = False


@dataclass(frozen=True, kw_only=True)
class Message:
    """A stored message: one request to one URL, to be delivered at least once."""

    id: str
    account: int
    url: str
    method: str
    headers: Headers
    """The headers for the destination, without the broker's own: forwarded ones and `Content-Type`."""
    body: bytes
    created_ms: int
    not_before_ms: int
    max_retries: int
    timeout_ms: int
    caller_ip: str
    retried: int = 0
    """Retries so far: 0 while the first attempt is under way."""
    options: PublishOptions = field(default_factory=PublishOptions)
    """The options of the publish: the source of the fields above; later steps read them too."""
    queue: str | None = None
    url_group: str | None = None
    endpoint: str | None = None
    schedule_id: str | None = None
    damaged: bool = False
    """Read from a store that no longer has what was accepted: it is shown, and never sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One line of a message's history. `cursor` orders all entries of the store."""

    cursor: str
    time_ms: int
    state: State
    message: Message
    error: str | None = None
    next_delivery_ms: int | None = None
    response: Response | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message that failed for good, with the last response (None: there was no HTTP response)."""

    id: str
    message: Message
    failed_ms: int
    error: str
    response: Response | None = None


class RunState(StrEnum):
    """State of a message that belongs to the last run of a schedule, in the words of the official SDKs."""

    IN_PROGRESS = "IN_PROGRESS"
    SUCCESS = "SUCCESS"
    FAIL = "FAIL"


class PauseFacts(NamedTuple):
    """Since when something is paused, by whom, and why."""

    paused_ms: int
    who: str
    note: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A recurring publish: a destination, a body and a cron expression."""

    id: str
    account: int
    destination: str
    """A URL, or the name of a URL group; a run publishes to the endpoints that the group has at that time."""
    cron: str
    options: PublishOptions
    body: bytes
    caller_ip: str
    created_ms: int
    paused: bool = False
    pause: PauseFacts | None = None
    """What is known of its pause."""
    next_ms: int | None = None
    """The next run; None when the expression has none."""
    last_ms: int | None = None
    last_run: tuple[tuple[str, RunState], ...] = ()
    """The messages of the last run by id."""
    error: str | None = None
    """Why the last run failed, or which runs before it were missed."""


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """The pair of an account: `current` signs, receivers accept both."""

    current: str = field(repr=False)
    next: str = field(repr=False)
