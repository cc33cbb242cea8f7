"""The verbs of a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from qtasks.broker.core.values import (
    Accepted,
    Cancelled,
    ClaimBatch,
    DeadLetterCriteria,
    Deleted,
    DeliveryEndpoint,
    Firing,
    FlowKeyState,
    LogCriteria,
    MessageCriteria,
    Page,
    Publication,
    QueueState,
    Retention,
    Settled,
    Settlement,
    UrlGroupState,
)
from qtasks.protocol.messages import DeadLetter, Headers, LogEntry, Message, Schedule, SigningKeys


class Store(Protocol):
    """The verbs. `now_ms` is wall time, Unix milliseconds."""

    promise: str
    """What "accepted" means on this storage, for the start line and `/readyz`."""

    async def accept(self, publications: Sequence[Publication], *, now_ms: int) -> list[Accepted]:
        """Store messages with their deduplication keys and log entries: all of them or, on an error, none."""

    async def claim(self, *, now_ms: int, limit: int, host_limit: int, in_flight: Mapping[str, int]) -> ClaimBatch:
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
        self, account: int, which: MessageCriteria, *, after: int, limit: int, now_ms: int
    ) -> Cancelled:
        """One slice of a bulk cancel, in order of acceptance."""

    async def delete_dead_letters(
        self, account: int, which: DeadLetterCriteria, *, cursor: str | None, limit: int
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

    async def queue(self, account: int, name: str) -> QueueState | None:
        """A queue, or None."""

    async def queues(self, account: int) -> list[QueueState]:
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

    async def flow_key(self, account: int, key: str, *, now_ms: int) -> FlowKeyState | None:
        """A key with its counts, or None."""

    async def flow_keys(self, account: int, *, search: str, now_ms: int) -> list[FlowKeyState]:
        """Keys that contain `search`."""

    async def running_now(self, account: int) -> int:
        """Attempts of the account under way."""

    async def upsert_endpoints(
        self, account: int, name: str, endpoints: Sequence[DeliveryEndpoint], *, now_ms: int
    ) -> None:
        """Add or change endpoints of a URL group, made if need be."""

    async def remove_endpoints(
        self, account: int, name: str, endpoints: Sequence[DeliveryEndpoint], *, now_ms: int
    ) -> bool:
        """Remove endpoints, with the last one the group; False when there is no such group."""

    async def set_group_headers(self, account: int, name: str, headers: Headers, *, now_ms: int) -> bool:
        """Replace a group's default headers; False when there is no such group."""

    async def delete_group(self, account: int, name: str) -> None:
        """Delete a group. Idempotent."""

    async def group(self, account: int, name: str) -> UrlGroupState | None:
        """A group, or None."""

    async def groups(self, account: int) -> list[UrlGroupState]:
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

    async def log(self, account: int, which: LogCriteria, *, cursor: str | None, count: int) -> Page[LogEntry]:
        """Log entries, latest first unless asked otherwise."""

    async def dead_letters(
        self, account: int, which: DeadLetterCriteria, *, cursor: str | None, count: int
    ) -> Page[DeadLetter]:
        """Dead letters, oldest first unless asked otherwise."""

    async def keys(self, account: int) -> SigningKeys:
        """The account's signing keys."""

    async def prune(self, keep: Retention, *, now_ms: int) -> int:
        """Remove one small batch of what `keep` does not keep; how much that was (0: nothing is left to remove)."""

    async def close(self) -> None:
        """Finish what was submitted and release the storage. Idempotent."""
