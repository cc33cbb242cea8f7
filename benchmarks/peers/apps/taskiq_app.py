"""The work on taskiq, over Redis streams, its Redis broker with acknowledgement."""

# mypy: disable-error-code="import-not-found,import-untyped"
from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks import work
from benchmarks.peers.apps import settings

broker = RedisStreamBroker(url=settings.redis_url())
if settings.keeps_results():
    broker = broker.with_result_backend(RedisAsyncResultBackend(settings.redis_url()))
TASKS = {"noop": broker.task(task_name="noop")(work.anoop), "nap": broker.task(task_name="nap")(work.anap)}


@asynccontextmanager
async def connected() -> AsyncIterator[None]:
    """Connections for `send`."""
    await broker.startup()
    try:
        yield
    finally:
        await broker.shutdown()


async def send(name: str, task: int) -> None:
    """Enqueue one task."""
    await TASKS[name].kiq(task)
