"""The work on RQ."""

# mypy: disable-error-code="import-not-found,import-untyped"
from __future__ import annotations

from redis import Redis
from rq import Queue

from benchmarks import work
from benchmarks.peers.apps import settings

queue = Queue(settings.QUEUE, connection=Redis.from_url(settings.redis_url()))
_KEEP_S = 500 if settings.keeps_results() else 0
WORK = {"noop": work.noop, "nap": work.nap}


def send(name: str, task: int) -> None:
    """Enqueue one job."""
    queue.enqueue(WORK[name], task, result_ttl=_KEEP_S)
