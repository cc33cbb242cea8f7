"""The peers: what to install, how their workers are started, which service they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.peers.apps.settings import AT_ONCE, QUEUE

Command = tuple[str, ...]
"""A program of the peer's own environment and its arguments; ``{redis}`` and ``{postgres}`` stand for the services."""

MANY_NAPS: Final = 100_000

_APPS: Final = "benchmarks.peers.apps"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One queue: one worker with its documented settings for throughput, defaults otherwise."""

    name: str
    packages: tuple[str, ...]
    """What pip installs; the first is the one whose version is shown."""
    python: tuple[int, int] = (3, 11)
    """The oldest Python it runs with."""
    service: Literal["redis", "postgres"]
    module: str
    """Its application in `benchmarks.peers.apps`."""
    worker: Command
    napping: Command | None = None
    """The worker for sleeping tasks, if it differs."""
    naps: int = MANY_NAPS
    """Highest number of sleeping tasks: a queue that runs one at a time would take very long."""
    keeps_results: bool = True
    """Whether it can keep the results of tasks."""
    prepare: tuple[Command, ...] = ()
    """Run before every measurement."""
    clean: tuple[Command, ...] = ()
    """Run after every measurement."""
    how: str
    """The settings in words, and when a task is taken off the queue."""


_CELERY: Final = (
    "celery", "-A", f"{_APPS}.celery_app", "worker", "--loglevel", "ERROR",
    "--without-gossip", "--without-mingle", "--without-heartbeat",
)  # fmt: skip
_DRAMATIQ: Final = ("dramatiq", f"{_APPS}.dramatiq_app", "-p", "1")
_HUEY: Final = ("huey_consumer", f"{_APPS}.huey_app.huey", "-q")
_PGQ: Final = ("pgq", "--pg-dsn", "{postgres}")

_ALL: Final = (
    Peer(
        name="celery",
        packages=("celery[redis]", "redis[hiredis]"),
        service="redis",
        module="celery_app",
        worker=(*_CELERY, "-P", "prefork", "-c", "1"),
        napping=(*_CELERY, "-P", "threads", "-c", str(AT_ONCE)),
        how=f"prefork, 1 process, prefetch 128; naps in {AT_ONCE} threads; taken off before it runs (its default)",
    ),
    Peer(
        name="taskiq",
        packages=("taskiq[uv,orjson]", "taskiq-redis", "redis[hiredis]"),
        service="redis",
        module="taskiq_app",
        worker=("taskiq", "worker", f"{_APPS}.taskiq_app:broker", "-w", "1", "--log-level", "ERROR"),
        how="Redis streams, 1 process of 100 tasks, uvloop; taken off after it ran",
    ),
    Peer(
        name="dramatiq",
        packages=("dramatiq[redis]", "redis[hiredis]"),
        service="redis",
        module="dramatiq_app",
        worker=(*_DRAMATIQ, "-t", "8"),
        napping=(*_DRAMATIQ, "-t", str(AT_ONCE)),
        how=f"1 process of 8 threads; naps in {AT_ONCE} threads; taken off after it ran",
    ),
    Peer(
        name="saq",
        packages=("saq[redis,hiredis]", "typing_extensions", "uvloop"),
        service="redis",
        module="saq_app",
        worker=("saq", "--quiet", f"{_APPS}.saq_app.worker"),
        how=f"1 process of {AT_ONCE} jobs; taken off after it ran",
    ),
    Peer(
        name="huey",
        packages=("huey", "redis[hiredis]"),
        service="redis",
        module="huey_app",
        worker=(*_HUEY, "-k", "process", "-w", "1"),
        napping=(*_HUEY, "-k", "thread", "-w", str(AT_ONCE)),
        how=f"1 process; naps in {AT_ONCE} threads; taken off before it runs",
    ),
    Peer(
        name="ardiq",
        packages=("ardiq", "uvloop"),
        python=(3, 12),
        service="redis",
        module="ardiq_app",
        worker=("ardiq", "run", "-q", f"{_APPS}.ardiq_app:app"),
        how=f"Redis streams, 1 process of {AT_ONCE} tasks; taken off after it ran",
    ),
    Peer(
        name="pgqueuer",
        packages=("pgqueuer[asyncpg,cli]", "uvloop"),
        service="postgres",
        module="pgqueuer_app",
        worker=("python", "-m", f"{_APPS}.pgqueuer_app"),
        keeps_results=False,
        prepare=((*_PGQ, "uninstall"), (*_PGQ, "install")),
        clean=((*_PGQ, "uninstall"),),
        how=f"1 process taking {AT_ONCE} at a time; taken off after it ran",
    ),
    Peer(
        name="arq",
        packages=("arq",),
        service="redis",
        module="arq_app",
        worker=("arq", f"{_APPS}.arq_app.WorkerSettings"),
        how=f"1 process of {AT_ONCE} jobs, polling every half second, its default; taken off after it ran",
    ),
    Peer(
        name="rq",
        packages=("rq", "redis[hiredis]"),
        service="redis",
        module="rq_app",
        worker=("rq", "worker", "-q", "-w", "rq.SimpleWorker", "-u", "{redis}", QUEUE),
        naps=100,
        how="1 SimpleWorker, which does not fork for each job; taken off before it runs",
    ),
)

PEERS: Final[Mapping[str, Peer]] = {peer.name: peer for peer in _ALL}

USUAL_PEERS: Final = ("celery", "taskiq", "dramatiq", "saq", "huey", "ardiq", "pgqueuer")
"""Those that are compared if none is named."""
