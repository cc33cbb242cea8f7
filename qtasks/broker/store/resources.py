"""The verbs for everything around messages: queues, keys, groups, schedules, dead letters, bulk actions.

Apart from `broker.store.sqlite`, which says how verbs are committed; here is only which.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import apsw

from qtasks.broker.core.values import (
    Cancelled,
    DeadLetterCriteria,
    Deleted,
    DeliveryEndpoint,
    Firing,
    FlowKeyState,
    MessageCriteria,
    Publication,
    QueueState,
    UrlGroupState,
)
from qtasks.broker.store import verbs
from qtasks.protocol.messages import Headers, Schedule, SigningKeys

T = TypeVar("T")


class Resources(ABC):
    """Part of a store; the rest of it runs the verbs."""

    @abstractmethod
    def _write(self, verb: Callable[[apsw.Connection], T]) -> asyncio.Future[T]:
        """Run a verb in a transaction and commit it."""

    @abstractmethod
    def _read(self, query: Callable[[apsw.Connection], T]) -> Coroutine[Any, Any, T]:
        """Run a query that changes nothing."""

    async def cancel_where(
        self, account: int, which: MessageCriteria, *, after: int, limit: int, now_ms: int
    ) -> Cancelled:
        """See `Store.cancel_where`."""
        return await self._write(
            lambda db: verbs.cancel_where(db, account, which, after=after, limit=limit, now_ms=now_ms)
        )

    async def delete_dead_letters(
        self, account: int, which: DeadLetterCriteria, *, cursor: str | None, limit: int
    ) -> Deleted:
        """See `Store.delete_dead_letters`."""
        return await self._write(lambda db: verbs.delete_dead_letters(db, account, which, cursor=cursor, limit=limit))

    async def retry_dead_letters(
        self, account: int, retries: Sequence[tuple[str, Publication]], *, now_ms: int
    ) -> list[Publication]:
        """See `Store.retry_dead_letters`."""
        return await self._write(lambda db: verbs.retry_dead_letters(db, account, retries, now_ms=now_ms))

    async def upsert_queue(
        self, account: int, name: str, *, parallelism: int | None, paused: bool | None, now_ms: int
    ) -> None:
        """See `Store.upsert_queue`."""
        await self._write(
            lambda db: verbs.upsert_queue(db, account, name, parallelism=parallelism, paused=paused, now_ms=now_ms)
        )

    async def pause_queue(self, account: int, name: str, *, paused: bool, now_ms: int) -> bool:
        """See `Store.pause_queue`."""
        return await self._write(lambda db: verbs.pause_queue(db, account, name, paused=paused, now_ms=now_ms))

    async def drop_queue(self, account: int, name: str, *, limit: int, now_ms: int) -> bool:
        """See `Store.drop_queue`."""
        return await self._write(lambda db: verbs.drop_queue(db, account, name, limit=limit, now_ms=now_ms))

    async def queue(self, account: int, name: str) -> QueueState | None:
        """See `Store.queue`."""
        return await self._read(lambda db: verbs.queue(db, account, name))

    async def queues(self, account: int) -> list[QueueState]:
        """See `Store.queues`."""
        return await self._read(lambda db: verbs.queues(db, account))

    async def pause_flow_key(self, account: int, key: str, *, paused: bool, now_ms: int) -> None:
        """See `Store.pause_flow_key`."""
        await self._write(lambda db: verbs.pause_flow_key(db, account, key, paused=paused, now_ms=now_ms))

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
        """See `Store.pin_flow_key`."""
        await self._write(
            lambda db: verbs.pin_flow_key(
                db, account, key, parallelism=parallelism, rate=rate, period_s=period_s, now_ms=now_ms
            )
        )

    async def unpin_flow_key(self, account: int, key: str, *, parallelism: bool, rate: bool, now_ms: int) -> None:
        """See `Store.unpin_flow_key`."""
        await self._write(
            lambda db: verbs.unpin_flow_key(db, account, key, parallelism=parallelism, rate=rate, now_ms=now_ms)
        )

    async def reset_flow_rate(self, account: int, key: str, *, now_ms: int) -> None:
        """See `Store.reset_flow_rate`."""
        await self._write(lambda db: verbs.reset_flow_rate(db, account, key, now_ms=now_ms))

    async def flow_key(self, account: int, key: str, *, now_ms: int) -> FlowKeyState | None:
        """See `Store.flow_key`."""
        return await self._read(lambda db: verbs.flow_key(db, account, key, now_ms=now_ms))

    async def flow_keys(self, account: int, *, search: str, now_ms: int) -> list[FlowKeyState]:
        """See `Store.flow_keys`."""
        return await self._read(lambda db: verbs.flow_keys(db, account, search=search, now_ms=now_ms))

    async def running_now(self, account: int) -> int:
        """See `Store.running_now`."""
        return await self._read(lambda db: verbs.running_now(db, account))

    async def upsert_endpoints(
        self, account: int, name: str, endpoints: Sequence[DeliveryEndpoint], *, now_ms: int
    ) -> None:
        """See `Store.upsert_endpoints`."""
        await self._write(lambda db: verbs.upsert_endpoints(db, account, name, endpoints, now_ms=now_ms))

    async def remove_endpoints(
        self, account: int, name: str, endpoints: Sequence[DeliveryEndpoint], *, now_ms: int
    ) -> bool:
        """See `Store.remove_endpoints`."""
        return await self._write(lambda db: verbs.remove_endpoints(db, account, name, endpoints, now_ms=now_ms))

    async def set_group_headers(self, account: int, name: str, headers: Headers, *, now_ms: int) -> bool:
        """See `Store.set_group_headers`."""
        return await self._write(lambda db: verbs.set_group_headers(db, account, name, headers, now_ms=now_ms))

    async def delete_group(self, account: int, name: str) -> None:
        """See `Store.delete_group`."""
        await self._write(lambda db: verbs.delete_group(db, account, name))

    async def group(self, account: int, name: str) -> UrlGroupState | None:
        """See `Store.group`."""
        return await self._read(lambda db: verbs.group(db, account, name))

    async def groups(self, account: int) -> list[UrlGroupState]:
        """See `Store.groups`."""
        return await self._read(lambda db: verbs.groups(db, account))

    async def put_schedule(self, schedule: Schedule) -> None:
        """See `Store.put_schedule`."""
        await self._write(lambda db: verbs.put_schedule(db, schedule))

    async def delete_schedule(self, account: int, schedule_id: str) -> bool:
        """See `Store.delete_schedule`."""
        return await self._write(lambda db: verbs.delete_schedule(db, account, schedule_id))

    async def pause_schedule(self, account: int, schedule_id: str, *, paused: bool, next_ms: int | None) -> bool:
        """See `Store.pause_schedule`."""
        return await self._write(
            lambda db: verbs.pause_schedule(db, account, schedule_id, paused=paused, next_ms=next_ms)
        )

    async def schedule(self, account: int, schedule_id: str) -> Schedule | None:
        """See `Store.schedule`."""
        return await self._read(lambda db: verbs.schedule(db, account, schedule_id))

    async def schedules(self, account: int) -> list[Schedule]:
        """See `Store.schedules`."""
        return await self._read(lambda db: verbs.schedules(db, account))

    async def due_schedules(self, *, now_ms: int, limit: int) -> list[Schedule]:
        """See `Store.due_schedules`."""
        return await self._read(lambda db: verbs.due_schedules(db, now_ms=now_ms, limit=limit))

    async def next_tick(self) -> int | None:
        """See `Store.next_tick`."""
        return await self._read(lambda db: verbs.next_tick(db))

    async def fire(self, firing: Firing, *, now_ms: int) -> bool:
        """See `Store.fire`."""
        return await self._write(lambda db: verbs.fire(db, firing, now_ms=now_ms))

    async def rotate_keys(self, account: int, fresh: str) -> SigningKeys:
        """See `Store.rotate_keys`."""
        return await self._write(lambda db: verbs.rotate_keys(db, account, fresh))
