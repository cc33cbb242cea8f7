"""The work on PgQueuer, in its own schema."""

# mypy: disable-error-code="import-not-found,import-untyped"
from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pgqueuer
import uvloop
from pgqueuer import AsyncpgDriver, PgQueuer, Queries

from benchmarks import work
from benchmarks.peers.apps import settings

WORK = {"noop": work.anoop, "nap": work.anap}
_FILL = 1_000
_queries: list[Any] = []


@asynccontextmanager
async def worker() -> AsyncIterator[Any]:
    """What the workers run."""
    connection = await asyncpg.connect(settings.postgres_url())
    try:
        queuer = PgQueuer.from_asyncpg_connection(connection)
        for name, run in WORK.items():
            queuer.entrypoint(name)(_entrypoint(run))
        yield queuer
    finally:
        await connection.close()


def _entrypoint(run: Callable[[int], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    async def entrypoint(job: Any) -> None:
        await run(int(job.payload))

    return entrypoint


@asynccontextmanager
async def connected() -> AsyncIterator[None]:
    """A connection for `send` and `bulk`."""
    connection = await asyncpg.connect(settings.postgres_url())
    _queries.append(Queries(AsyncpgDriver(connection)))
    try:
        yield
    finally:
        _queries.clear()
        await connection.close()


async def send(name: str, task: int) -> None:
    """Enqueue one job."""
    await _queries[0].enqueue(name, str(task).encode())


async def bulk(name: str, tasks: Sequence[int]) -> None:
    """Enqueue jobs many at a time."""
    for start in range(0, len(tasks), _FILL):
        part = tasks[start : start + _FILL]
        await _queries[0].enqueue([name] * len(part), [str(task).encode() for task in part], [0] * len(part))


if __name__ == "__main__":
    # As `pgq run` does; that command fails with the newest release of its own command-line library.
    uvloop.run(pgqueuer.run(worker, batch_size=settings.AT_ONCE))
