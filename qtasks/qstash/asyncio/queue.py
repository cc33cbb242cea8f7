"""The asynchronous counterpart of `qtasks.qstash.queue`."""

from __future__ import annotations

import builtins

from qtasks.qstash import queue as queues
from qtasks.qstash.conversation.async_driver import AsyncHttpClient
from qtasks.qstash.queue import Queue


class AsyncQueueApi:
    """As `QueueApi`."""

    def __init__(self, http: AsyncHttpClient) -> None:
        self._http = http

    async def upsert(self, queue: str, *, parallelism: int = 1, paused: bool = False) -> None:
        """As `QueueApi.upsert`."""
        await self._http.run(queues.upsert(queue, parallelism, paused))

    async def get(self, queue: str) -> Queue:
        """As `QueueApi.get`."""
        return await self._http.run(queues.get(queue))

    async def list(self) -> builtins.list[Queue]:
        """As `QueueApi.list`."""
        return await self._http.run(queues.list_all())

    async def delete(self, queue: str) -> None:
        """As `QueueApi.delete`."""
        await self._http.run(queues.delete(queue))

    async def pause(self, queue: str) -> None:
        """As `QueueApi.pause`."""
        await self._http.run(queues.pause(queue))

    async def resume(self, queue: str) -> None:
        """As `QueueApi.resume`."""
        await self._http.run(queues.resume(queue))
