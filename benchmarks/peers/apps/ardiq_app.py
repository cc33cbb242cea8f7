"""The work on ardiq, over Redis streams."""

# mypy: disable-error-code="import-not-found,import-untyped"
from __future__ import annotations

from collections.abc import Sequence

from ardiq import Ardiq

from benchmarks import work
from benchmarks.peers.apps import settings

# Results are always kept, a second at least.
app = Ardiq(
    redis_url=settings.redis_url(),
    queue_name=settings.QUEUE,
    concurrency=settings.AT_ONCE,
    result_ttl_ms=600_000 if settings.keeps_results() else 1_000,
)
TASKS = {"noop": app.task(name="noop")(work.anoop), "nap": app.task(name="nap")(work.anap)}


async def send(name: str, task: int) -> None:
    """Enqueue one task."""
    await TASKS[name].enqueue(task)


async def bulk(name: str, tasks: Sequence[int]) -> None:
    """Enqueue many tasks in one round trip."""
    await app.enqueue_many([TASKS[name].prepare(task) for task in tasks])
