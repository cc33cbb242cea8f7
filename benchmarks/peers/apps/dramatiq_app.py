"""The work on Dramatiq."""

# mypy: disable-error-code="import-not-found,import-untyped"
from __future__ import annotations

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks import work
from benchmarks.peers.apps import settings

broker = RedisBroker(url=settings.redis_url())
OPTIONS = {}
if settings.keeps_results():
    broker.add_middleware(Results(backend=RedisBackend(url=settings.redis_url())))
    OPTIONS = {"store_results": True}
dramatiq.set_broker(broker)
ACTORS = {
    name: dramatiq.actor(run, actor_name=name, **OPTIONS) for name, run in (("noop", work.noop), ("nap", work.nap))
}


def send(name: str, task: int) -> None:
    """Enqueue one task."""
    ACTORS[name].send(task)
