"""The values that the store, the loops and the API exchange. Frozen; no I/O, no clock."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, Generic, NamedTuple, TypeVar

from qtasks.broker.core import lots
from qtasks.broker.core.interruptions import UNTROUBLED, Situation
from qtasks.broker.core.message_rows import MessageRow, unpack_message
from qtasks.broker.core.rules import Evaluation
from qtasks.broker.ports import UNTIMED, Failure, Timing
from qtasks.protocol.messages import Headers, Message, PauseFacts, Response, Schedule, SigningKeys, State

T = TypeVar("T")

DAY_MS: Final = 24 * 60 * 60 * 1000
USE_NOTED_MS: Final = 60 * 60 * 1000
"""The use of a queue, a flow-control key or a URL prefix is noted at most this often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long finished messages are kept, with bodies, log and dead letters. Unfinished ones are never removed."""

    delivered_ms: int = 7 * DAY_MS
    """For delivered and cancelled messages."""
    failed_ms: int = 30 * DAY_MS
    """For failed messages, which are the dead letters."""
    max_bytes: int | None = 1_000_000_000
    """If the database is larger, the oldest finished messages are removed early, dead letters last. None: no limit."""


class Publication(NamedTuple):
    """A message to accept. A `deduplication_key` blocks further messages with the same key for ten minutes."""

    message: Message
    host: str
    """``host:port`` of the destination, lower-case; attempts in flight are limited per host."""
    deduplication_key: str | None = None


class Accepted(NamedTuple):
    """The id of the accepted message, or the id of the earlier message with the same deduplication key."""

    message_id: str
    deduplicated: bool = False


@dataclass(slots=True, eq=False)
class Claim:
    """The right to make one attempt. Each claim of a message has a new `token`; only the newest one can settle it.

    It never changes. It holds what is stored of the message: to make a `Message` takes longer than to claim one, and
    an attempt that goes well needs few of its values.
    """

    seq: int
    token: int
    lot: str
    """Where the message waits while it may not start; see `lots`."""
    row: MessageRow
    body: bytes = field(repr=False)
    flow_key: str | None = None
    parent: int | None = None
    """`seq` of the message that waits for this one, a callback."""
    prefix: str | None = None
    """The URL prefix that the message depends on; None for one without an allowance for interruptions."""
    situation: Situation = UNTROUBLED
    quiet: bool = False
    """True if the log has no entry for this attempt: an interruption of the message was logged a moment ago."""
    _message: Message | None = field(default=None, init=False, repr=False)

    @property
    def message(self) -> Message:
        """The message, made of its row on first use. The claim has seen that the row can be read."""
        if self._message is None:
            self._message = unpack_message(self.row, self.body)
        return self._message

    @property
    def host(self) -> str:
        """``host:port`` of the destination."""
        return lots.parse(self.lot).host


class Trust(Enum):
    """What a host has shown of itself; see `HostRooms`."""

    LIVELY = auto()
    """It has answered within the last minute, and does not let anything wait. Only such a host gets the last slots."""
    PROVEN = auto()
    """It has answered within the last minute, but not for a while: long tasks, or a host that has just died."""
    UNPROVEN = auto()
    """It has not answered within the last minute."""
    SILENT = auto()
    """An attempt has timed out, and it has answered no other meanwhile; or its name server does not answer."""


@dataclass(frozen=True, slots=True)
class Rooms:
    """How many more attempts there may be now, at each host and at all together, and what is in flight."""

    default: int
    """For a host that is not in `hosts`."""
    hosts: Mapping[str, int] = field(default_factory=dict)
    """By host, in the order of their last starts; a host with 0 or less gets no attempt."""
    running: Mapping[str, int] = field(default_factory=dict)
    """The attempts in flight, by lot."""
    in_flight: Mapping[str, int] = field(default_factory=dict)
    """The attempts in flight, by host."""
    trust: Mapping[str, Trust] = field(default_factory=dict)
    """By host; UNPROVEN for a host that is not in it."""
    free: int = sys.maxsize
    """At all hosts together."""
    reserve: int = 0
    """Of these, for LIVELY hosts; half of it also for the first attempt at another that is not SILENT."""
    free_for_silent: int = sys.maxsize
    """Of these, at most, for SILENT hosts."""
    waits_for_answer: Callable[[str], bool] = lambda _prefix: False
    """True while the messages of a URL prefix wait for the answer to a bundle, to leave together."""
    answering: Collection[str] = ()
    """The lots that expect that answer at any moment: their due messages stay where they are."""


@dataclass(frozen=True, slots=True)
class ClaimBatch:
    """The claims that one call of `claim` made, and when to call it again."""

    claims: tuple[Claim, ...] = ()
    next_due_ms: int | None = None
    """When the earliest message that is not due yet becomes due; None if there is none."""
    has_more: bool = False
    """More messages are due now: claim again as soon as there is room."""
    waits_for_room: bool = False
    """Messages wait that may start when any attempt ends."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """The end of an attempt: its outcome, and what that means for the message."""

    claim: Claim
    outcome: Response | Failure
    evaluation: Evaluation
    callback_ids: tuple[str, str] | None = None
    """Ids for the callback message and the failure callback message; None if the message has no callbacks."""
    timing: Timing = UNTIMED


@dataclass(frozen=True, slots=True)
class Settled:
    """What `settle` wrote."""

    state: State
    """The last log entry: CANCELED in place of RETRY if the message was cancelled during the attempt."""
    created: tuple[Message, ...] = ()
    """The callback messages, the end callback included."""
    next_ms: int | None = None
    """When the next attempt is due; None if none follows."""
    quiet: bool = False
    """True if nothing was logged: an interruption of the message was logged a moment ago."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The result of a cancel, or of one slice of it."""

    count: int
    created: tuple[Message, ...] = ()
    """The end callbacks of the cancelled messages."""
    last: int | None = None
    """The slice ended with this `seq`; None if no message is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageStatus:
    """A message with what has happened to it so far, and what it waits for."""

    message: Message
    state: State
    """The state of its last log entry."""
    last_error: str | None = None
    """Why its last attempt without success failed."""
    next_delivery_ms: int | None = None
    """When it is due; None if it is due now, or if that depends on other messages."""
    waits_for: str | None = None
    """What keeps it from starting, as words for people; None if nothing does, during an attempt, and at the end."""
    dead_letter_id: str | None = None


@dataclass(frozen=True, slots=True)
class Deleted:
    """The result of a bulk delete; `cursor` is None if no match is left."""

    count: int
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class DeliveryEndpoint:
    """A URL that messages are delivered to; a member of a URL group may have a name."""

    url: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class UrlGroupState:
    """A URL group; `headers` are the default headers of publishes to it."""

    name: str
    endpoints: tuple[DeliveryEndpoint, ...]
    headers: Headers
    created_ms: int
    updated_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Firing:
    """The plan of the schedule loop for a due schedule. `schedule` is as it was when the loop read it."""

    schedule: Schedule
    tick_ms: int | None
    """The tick that fires; None if every due tick is too old."""
    missed: tuple[int, ...] = ()
    """Ticks that passed without a run and do not fire any more."""
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
    pause: PauseFacts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowKeyState:
    """A flow-control key: its limits (None: no limit), whether they are pinned, and its attempts.

    `started` counts the attempts that started in the current window.
    """

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
    pause: PauseFacts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageCriteria:
    """Selects messages. Fields are ANDed, the values of one field ORed; an empty field selects all."""

    message_ids: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    """Host names, with or without a port."""
    paths: tuple[str, ...] = ()
    """Paths of URLs, without the query; ``/`` for a URL without a path."""
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
    """Selects log entries; the dates are compared with the time of the entry."""

    states: tuple[State, ...] = ()
    oldest_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterCriteria(MessageCriteria):
    """Selects dead letters; the dates are compared with the time at which the message failed."""

    ids: tuple[str, ...] = ()
    statuses: tuple[int, ...] = ()
    newest_first: bool = False


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list; `cursor` is None on the last page."""

    items: tuple[T, ...]
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Recovery:
    """The messages that an earlier process left unfinished."""

    interrupted: int
    """Messages whose attempt the earlier process did not finish; they are due now."""
    waiting: int
    """Unfinished messages, interrupted ones included; counted up to 100,001."""


@dataclass(frozen=True, slots=True)
class AccountCredentials:
    """An account as configured. Its keys are stored only when the account is created."""

    name: str
    token: str | None = field(default=None, repr=False)
    """None: only tokens in the store are valid for the account."""
    keys: SigningKeys | None = None
    """None: a new account gets random keys."""


@dataclass(frozen=True, slots=True)
class StoredToken:
    """An API token in the store: its digest, never the token itself."""

    digest: bytes
    account: int
    name: str
    read_only: bool
    created_ms: int
    without_payloads: bool = False
    """It opens the console, which then shows no payload, and ``/metrics``."""
    used_ms: int | None = None
    """When it was last used, to a minute; None: never, as far as is stored."""
