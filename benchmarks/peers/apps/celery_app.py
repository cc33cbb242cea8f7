"""The work on Celery."""

# mypy: disable-error-code="import-not-found,import-untyped"
from __future__ import annotations

from celery import Celery

from benchmarks import work
from benchmarks.peers.apps import settings

app = Celery(settings.QUEUE, broker=settings.redis_url())
app.conf.task_ignore_result = True
TASKS = {"noop": app.task(name="noop")(work.noop), "nap": app.task(name="nap")(work.nap)}


def send(name: str, task: int) -> None:
    """Enqueue one task."""
    TASKS[name].delay(task)
