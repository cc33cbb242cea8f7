"""The work on Huey."""

# mypy: disable-error-code="import-not-found,import-untyped"
from __future__ import annotations

from huey import RedisHuey

from benchmarks import work
from benchmarks.peers.apps import settings

# Results of None are not stored unless asked for.
huey = RedisHuey(
    settings.QUEUE, url=settings.redis_url(), results=settings.keeps_results(), store_none=settings.keeps_results()
)
TASKS = {"noop": huey.task(name="noop")(work.noop), "nap": huey.task(name="nap")(work.nap)}


def send(name: str, task: int) -> None:
    """Enqueue one task."""
    TASKS[name](task)
