"""The values that the store, the loops and the API exchange. Frozen; no I/O, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from qtasks.broker.core.rules import Evaluation
from qtasks.broker.ports import Failure
from qtasks.protocol.messages import Headers, Message, Response, Schedule, SigningKeys, State

T = TypeVar("T")

DAY_MS: Final = 24 * 60 * 60 * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long finished messages are kept, with their bodies, logs and dead letters. What waits is never removed."""

    delivered_ms: int = 7 * DAY_MS
    """Delivered and cancelled ones."""
    failed_ms: int = 30 * DAY_MS
    """Failed ones, which are the dead letters."""
    max_bytes: int | None = 1024**3
    """While the database holds more than this, the oldest finished ones go, whatever their age: dead letters last."""


@dataclass(frozen=True, slots=True)
class Publication:
    """A message to be accepted. `deduplication_key` is taken for the window from the first use of it."""

    message: Message
    host: str
    """``host:port`` of the destination, lower-case: what the caps on attempts in flight are counted by."""
    deduplication_key: str | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """The id a publication was given, or the id of the message that had its deduplication key first."""

    message_id: str
    deduplicated: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to make one attempt. `token` is fresh with every claim; a settle must show it."""

    seq: int
    token: int
    host: str
    message: Message


@dataclass(frozen=True, slots=True)
class ClaimBatch:
    """What `claim` handed out, and what the caller needs to know to come back at the right time."""

    claims: tuple[Claim, ...] = ()
    next_due_ms: int | None = None
    """When the earliest message that was left is due; None when there is none."""
    has_more: bool = False
    """Work was left that is due now: come back as soon as there is room."""
    parked_hosts: frozenset[str] = frozenset()
    """Hosts with messages held back by their cap."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """The end of an attempt: its outcome and what the rules made of it."""

    claim: Claim
    outcome: Response | Failure
    evaluation: Evaluation
    callback_ids: tuple[str, str] | None = None
    """Fresh ids for the messages that a callback and a failure callback become; None where the message has neither."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What a settle wrote."""

    state: State
    """The last entry of the log (CANCELED instead of RETRY where somebody asked for that meanwhile)."""
    created: tuple[Message, ...] = ()
    """Callback messages."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """What one slice of a bulk cancel did."""

    count: int
    last: int | None
    """Where the next slice goes on; None when there is nothing left to look at."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """What a bulk delete did; `cursor` is None when nothing that matches is left."""

    count: int
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class DeliveryEndpoint:
    """A member of a URL group."""

    url: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class UrlGroupState:
    """A URL group; `headers` are defaults of every publish to it."""

    name: str
    endpoints: tuple[DeliveryEndpoint, ...]
    headers: Headers
    created_ms: int
    updated_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Firing:
    """What the coming of a tick does to a schedule, as it was when it was looked at."""

    schedule: Schedule
    tick_ms: int | None
    """The tick that fires; None when all that were missed are too old."""
    missed: tuple[int, ...] = ()
    """Ticks that do not fire any more."""
    next_ms: int | None = None
    publications: tuple[Publication, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue; `lag` counts its messages that are not finished."""

    name: str
    parallelism: int
    paused: bool
    created_ms: int
    updated_ms: int
    lag: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowKeyState:
    """A flow-control key: limits (None: none), pins, and what runs, waits and has started in the current window."""

    key: str
    parallelism: int | None
    rate: int | None
    period_s: int
    pinned_parallelism: bool
    pinned_rate: bool
    paused: bool
    window_start_ms: int
    started: int
    waiting: int
    running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageCriteria:
    """Which messages are meant: fields are ANDed, values of one field ORed; empty means any."""

    message_ids: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    """With or without a port."""
    paths: tuple[str, ...] = ()
    """Of the URL, without its query; ``/`` where it has none."""
    labels: tuple[str, ...] = ()
    url_groups: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    schedule_ids: tuple[str, ...] = ()
    flow_keys: tuple[str, ...] = ()
    caller_ips: tuple[str, ...] = ()
    from_ms: int | None = None
    to_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogCriteria(MessageCriteria):
    """Which log entries to list; the dates are compared with the entry's own time."""

    states: tuple[State, ...] = ()
    oldest_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterCriteria(MessageCriteria):
    """Which dead letters are meant; the dates are compared with the time the message failed."""

    ids: tuple[str, ...] = ()
    statuses: tuple[int, ...] = ()
    newest_first: bool = False


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list; `cursor` is None on the last."""

    items: tuple[T, ...]
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a start found of an earlier run."""

    interrupted: int
    """Messages whose attempt the earlier process did not finish; they are due at once."""
    waiting: int


@dataclass(frozen=True, slots=True)
class AccountCredentials:
    """An account as configured: seeds the store where it is new."""

    name: str
    token: str | None = field(default=None, repr=False)
    """None: only tokens in the store are valid for it."""
    keys: SigningKeys | None = None
    """None: made by the store when the account is new."""


@dataclass(frozen=True, slots=True)
class StoredToken:
    """A token as the store knows it."""

    digest: bytes
    account: int
    name: str
    read_only: bool
    created_ms: int
