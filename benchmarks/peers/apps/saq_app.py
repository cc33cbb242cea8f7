"""The work on SAQ, over Redis."""

# mypy: disable-error-code="import-not-found,import-untyped"
from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from saq import Queue

from benchmarks import work
from benchmarks.peers.apps import settings

queue = Queue.from_url(settings.redis_url(), name=settings.QUEUE)
_KEEP_S = 600 if settings.keeps_results() else -1


async def noop(context: dict[str, Any], *, task: int) -> None:  # noqa: ARG001 - the queue's first argument
    """As `work.anoop`."""
    await work.anoop(task)


async def nap(context: dict[str, Any], *, task: int) -> None:  # noqa: ARG001 - the queue's first argument
    """As `work.anap`."""
    await work.anap(task)


worker = {"queue": queue, "functions": [noop, nap], "concurrency": settings.AT_ONCE}
"""What the program `saq` reads."""


@asynccontextmanager
async def connected() -> AsyncIterator[None]:
    """Connections for `send`."""
    await queue.connect()
    try:
        yield
    finally:
        await queue.disconnect()


async def send(name: str, task: int) -> None:
    """Enqueue one job."""
    await queue.enqueue(name, task=task, ttl=_KEEP_S)
