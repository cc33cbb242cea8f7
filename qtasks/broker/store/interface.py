"""The store's verbs and the values they speak in.

Each verb is one transaction and is told the time. A verb that answers has been committed to storage that
survives a power cut; a verb that raises has changed nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from qtasks.broker.core.rules import Verdict
from qtasks.broker.ports import Failure
from qtasks.broker.store.retention import Retention
from qtasks.protocol.messages import DeadLetter, Headers, LogEntry, Message, Response, Schedule, SigningKeys, State

T = TypeVar("T")


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
class Claims:
    """What `claim` handed out, and what the caller needs to know to come back at the right time."""

    claims: tuple[Claim, ...] = ()
    next_due_ms: int | None = None
    """When the earliest message that was left is due; None when there is none."""
    more: bool = False
    """Work was left that is due now: come back as soon as there is room."""
    parked: frozenset[str] = frozenset()
    """Hosts with messages held back by their cap."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """The end of an attempt: its outcome and what the rules made of it."""

    claim: Claim
    outcome: Response | Failure
    verdict: Verdict
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
class Endpoint:
    """A member of a URL group."""

    url: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class UrlGroup:
    """A URL group; `headers` are defaults of every publish to it."""

    name: str
    endpoints: tuple[Endpoint, ...]
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
class Queue:
    """A queue; `lag` counts its messages that are not finished."""

    name: str
    parallelism: int
    paused: bool
    created_ms: int
    updated_ms: int
    lag: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowKey:
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
class MessageFilter:
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
class LogFilter(MessageFilter):
    """Which log entries to list; the dates are compared with the entry's own time."""

    states: tuple[State, ...] = ()
    oldest_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterFilter(MessageFilter):
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


class Store(Protocol):
    """The verbs. `now_ms` is wall time, Unix milliseconds."""

    promise: str
    """What "accepted" means on this storage, for the start line and `/readyz`."""

    async def accept(self, publications: Sequence[Publication], *, now_ms: int) -> list[Accepted]:
        """Store messages with their deduplication keys and log entries: all of them or, on an error, none."""

    async def claim(self, *, now_ms: int, limit: int, host_limit: int, in_flight: Mapping[str, int]) -> Claims:
        """Hand out what is due, earliest first; no two callers get the same message.

        `in_flight` counts the caller's attempts by host; a host at `host_limit` gets no more, and
        its due messages are parked so that later claims do not scan past them.
        """

    async def settle(self, settlement: Settlement, *, now_ms: int) -> Settled | None:
        """Record an attempt's end: log entries, retry or dead letter, callbacks, freed places in one transaction.

        None, and nothing written, when the claim is stale.
        """

    async def cancel(self, account: int, message_ids: Sequence[str], *, now_ms: int) -> int:
        """Cancel what waits at once and ask for it where an attempt is under way; how many were cancelled."""

    async def cancel_where(
        self, account: int, which: MessageFilter, *, after: int, limit: int, now_ms: int
    ) -> Cancelled:
        """One slice of a bulk cancel, in order of acceptance."""

    async def delete_dead_letters(
        self, account: int, which: DeadLetterFilter, *, cursor: str | None, limit: int
    ) -> Deleted:
        """Delete up to `limit` dead letters, oldest first."""

    async def retry_dead_letters(
        self, account: int, retries: Sequence[tuple[str, Publication]], *, now_ms: int
    ) -> list[Publication]:
        """Replace dead letters by new messages; those stored, which are all whose letter was still there."""

    async def upsert_queue(
        self, account: int, name: str, *, parallelism: int | None, paused: bool | None, now_ms: int
    ) -> None:
        """Make or change a queue; None keeps what is there."""

    async def pause_queue(self, account: int, name: str, *, paused: bool, now_ms: int) -> bool:
        """Pause or resume; False when there is no such queue. Idempotent."""

    async def drop_queue(self, account: int, name: str, *, limit: int, now_ms: int) -> bool:
        """One slice of deleting a queue and cancelling what waits in it; whether there is more to do."""

    async def queue(self, account: int, name: str) -> Queue | None:
        """A queue, or None."""

    async def queues(self, account: int) -> list[Queue]:
        """All queues by name."""

    async def pause_flow_key(self, account: int, key: str, *, paused: bool, now_ms: int) -> None:
        """Pause or resume a flow-control key, made if it is not known. Idempotent."""

    async def pin_flow_key(
        self,
        account: int,
        key: str,
        *,
        parallelism: int | None,
        rate: int | None,
        period_s: int | None,
        now_ms: int,
    ) -> None:
        """Fix limits of a key whatever messages bring."""

    async def unpin_flow_key(self, account: int, key: str, *, parallelism: bool, rate: bool, now_ms: int) -> None:
        """Let messages change the limits again."""

    async def reset_flow_rate(self, account: int, key: str, *, now_ms: int) -> None:
        """Begin a new window now."""

    async def flow_key(self, account: int, key: str, *, now_ms: int) -> FlowKey | None:
        """A key with its counts, or None."""

    async def flow_keys(self, account: int, *, search: str, now_ms: int) -> list[FlowKey]:
        """Keys that contain `search`."""

    async def running_now(self, account: int) -> int:
        """Attempts of the account under way."""

    async def upsert_endpoints(self, account: int, name: str, endpoints: Sequence[Endpoint], *, now_ms: int) -> None:
        """Add or change endpoints of a URL group, made if need be."""

    async def remove_endpoints(self, account: int, name: str, endpoints: Sequence[Endpoint], *, now_ms: int) -> bool:
        """Remove endpoints, with the last one the group; False when there is no such group."""

    async def set_group_headers(self, account: int, name: str, headers: Headers, *, now_ms: int) -> bool:
        """Replace a group's default headers; False when there is no such group."""

    async def delete_group(self, account: int, name: str) -> None:
        """Delete a group. Idempotent."""

    async def group(self, account: int, name: str) -> UrlGroup | None:
        """A group, or None."""

    async def groups(self, account: int) -> list[UrlGroup]:
        """All groups by name."""

    async def put_schedule(self, schedule: Schedule) -> None:
        """Make or replace a schedule."""

    async def delete_schedule(self, account: int, schedule_id: str) -> bool:
        """Delete a schedule; False when there is none."""

    async def pause_schedule(self, account: int, schedule_id: str, *, paused: bool, next_ms: int | None) -> bool:
        """Pause, or go on with the run at `next_ms`; False when there is no such schedule. Idempotent."""

    async def schedule(self, account: int, schedule_id: str) -> Schedule | None:
        """A schedule, or None."""

    async def schedules(self, account: int) -> list[Schedule]:
        """All schedules, oldest first."""

    async def due_schedules(self, *, now_ms: int, limit: int) -> list[Schedule]:
        """Schedules of all accounts whose next run has come."""

    async def next_tick(self) -> int | None:
        """When the next schedule is due."""

    async def fire(self, firing: Firing, *, now_ms: int) -> bool:
        """Store the messages of a tick, once; False when the schedule has changed since it was looked at."""

    async def rotate_keys(self, account: int, fresh: str) -> SigningKeys:
        """The next signing key becomes the current one, `fresh` the next."""

    async def message(self, account: int, message_id: str) -> Message | None:
        """A message, finished or not, as long as it is kept."""

    async def log(self, account: int, which: LogFilter, *, cursor: str | None, count: int) -> Page[LogEntry]:
        """Log entries, latest first unless asked otherwise."""

    async def dead_letters(
        self, account: int, which: DeadLetterFilter, *, cursor: str | None, count: int
    ) -> Page[DeadLetter]:
        """Dead letters, oldest first unless asked otherwise."""

    async def keys(self, account: int) -> SigningKeys:
        """The account's signing keys."""

    async def prune(self, keep: Retention, *, now_ms: int) -> int:
        """Remove one small batch of what `keep` does not keep; how much that was (0: nothing is left to remove)."""

    async def close(self) -> None:
        """Finish what was submitted and release the storage. Idempotent."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """An account as configured: seeds the store where it is new."""

    name: str
    token: str | None = field(default=None, repr=False)
    """None: only tokens in the store are valid for it."""
    keys: SigningKeys | None = None
    """None: made by the store when the account is new."""
