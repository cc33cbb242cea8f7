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
    """One queue, set up for two cores: two worker processes, results off, defaults otherwise."""

    name: str
    packages: tuple[str, ...]
    """What pip installs; the first is the one whose version is shown."""
    service: Literal["redis", "postgres"]
    module: str
    """Its application in `benchmarks.peers.apps`."""
    workers: tuple[Command, ...]
    napping: tuple[Command, ...] | None = None
    """Workers for sleeping tasks, if they differ."""
    naps: int = MANY_NAPS
    """Highest number of sleeping tasks: a queue that runs two at a time would take very long."""
    prepare: tuple[Command, ...] = ()
    """Run before every measurement."""
    clean: tuple[Command, ...] = ()
    """Run after every measurement."""
    how: str
    """The settings in words."""


_CELERY: Final = (
    "celery", "-A", f"{_APPS}.celery_app", "worker", "--loglevel", "ERROR",
    "--without-gossip", "--without-mingle", "--without-heartbeat",
)  # fmt: skip
_DRAMATIQ: Final = ("dramatiq", f"{_APPS}.dramatiq_app", "-p", "2")
_HUEY: Final = ("huey_consumer", f"{_APPS}.huey_app.huey", "-q")
_PGQ: Final = ("pgq", "--pg-dsn", "{postgres}")

_ALL: Final = (
    Peer(
        name="celery",
        packages=("celery[redis]", "redis[hiredis]"),
        service="redis",
        module="celery_app",
        workers=((*_CELERY, "-P", "prefork", "-c", "2"),),
        napping=((*_CELERY, "-P", "threads", "-c", str(2 * AT_ONCE)),),
        how=f"prefork, 2 processes; naps in {2 * AT_ONCE} threads",
    ),
    Peer(
        name="dramatiq",
        packages=("dramatiq[redis]", "redis[hiredis]"),
        service="redis",
        module="dramatiq_app",
        workers=((*_DRAMATIQ, "-t", "8"),),
        napping=((*_DRAMATIQ, "-t", str(AT_ONCE)),),
        how=f"2 processes of 8 threads; naps in {AT_ONCE} threads each",
    ),
    Peer(
        name="rq",
        packages=("rq", "redis[hiredis]"),
        service="redis",
        module="rq_app",
        workers=(("rq", "worker-pool", "-q", "-n", "2", "-w", "rq.SimpleWorker", "-u", "{redis}", QUEUE),),
        naps=100,
        how="pool of 2 SimpleWorkers, which do not fork for each job",
    ),
    Peer(
        name="huey",
        packages=("huey", "redis[hiredis]"),
        service="redis",
        module="huey_app",
        workers=((*_HUEY, "-k", "process", "-w", "2"),),
        napping=((*_HUEY, "-k", "thread", "-w", str(2 * AT_ONCE)),),
        how=f"2 processes; naps in {2 * AT_ONCE} threads",
    ),
    Peer(
        name="arq",
        packages=("arq",),
        service="redis",
        module="arq_app",
        workers=(("arq", f"{_APPS}.arq_app.WorkerSettings"),) * 2,
        how=f"2 workers of {AT_ONCE} jobs, polling every half second, its default",
    ),
    Peer(
        name="taskiq",
        packages=("taskiq[uv,orjson]", "taskiq-redis", "redis[hiredis]"),
        service="redis",
        module="taskiq_app",
        workers=(("taskiq", "worker", f"{_APPS}.taskiq_app:broker", "-w", "2", "--log-level", "ERROR"),),
        how="Redis streams, 2 processes of 100 tasks, uvloop",
    ),
    Peer(
        name="pgqueuer",
        packages=("pgqueuer[asyncpg,cli]", "uvloop"),
        service="postgres",
        module="pgqueuer_app",
        workers=(("python", "-m", f"{_APPS}.pgqueuer_app"),) * 2,
        prepare=((*_PGQ, "uninstall"), (*_PGQ, "install")),
        clean=((*_PGQ, "uninstall"),),
        how=f"2 workers taking {AT_ONCE} at a time, durable tables with fsync; its backlog is enqueued by the thousand",
    ),
)

PEERS: Final[Mapping[str, Peer]] = {peer.name: peer for peer in _ALL}
