"""The work on Celery."""

# mypy: disable-error-code="import-not-found,import-untyped"
from __future__ import annotations

from collections.abc import Sequence

from celery import Celery, group

from benchmarks import work
from benchmarks.peers.apps import settings

app = Celery(
    settings.QUEUE,
    broker=settings.redis_url(),
    backend=settings.redis_url() if settings.keeps_results() else None,
)
app.conf.task_ignore_result = not settings.keeps_results()
# Its guide to optimizing: more than the default of 4 for many tasks of short duration.
app.conf.worker_prefetch_multiplier = 128
TASKS = {"noop": app.task(name="noop")(work.noop), "nap": app.task(name="nap")(work.nap)}


def send(name: str, task: int) -> None:
    """Enqueue one task."""
    TASKS[name].delay(task)


def bulk(name: str, tasks: Sequence[int]) -> None:
    """Enqueue many tasks."""
    group(TASKS[name].s(task) for task in tasks).apply_async()
