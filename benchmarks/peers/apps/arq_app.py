"""The work on arq."""

# mypy: disable-error-code="import-not-found,import-untyped"
from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings

from benchmarks import work
from benchmarks.peers.apps import settings

_REDIS = RedisSettings.from_dsn(settings.redis_url())
_pools: list[Any] = []


async def noop(context: dict[str, Any], task: int) -> None:  # noqa: ARG001 - arq's first argument
    """As `work.anoop`."""
    await work.anoop(task)


async def nap(context: dict[str, Any], task: int) -> None:  # noqa: ARG001 - arq's first argument
    """As `work.anap`."""
    await work.anap(task)


class WorkerSettings:
    """What arq's worker reads."""

    redis_settings = _REDIS
    functions = (noop, nap)
    max_jobs = settings.AT_ONCE
    keep_result = 3_600 if settings.keeps_results() else 0


@asynccontextmanager
async def connected() -> AsyncIterator[None]:
    """Connections for `send`."""
    pool = await create_pool(_REDIS)
    _pools.append(pool)
    try:
        yield
    finally:
        _pools.remove(pool)
        await pool.aclose()


async def send(name: str, task: int) -> None:
    """Enqueue one job."""
    await _pools[0].enqueue_job(name, task)
