"""Publishes a second through our clients, in one process without other work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from benchmarks.bench import FAR_MS, IN_FLIGHT, Bench
from benchmarks.figure import Row
from benchmarks.servers import QTasksServers
from qtasks.errors import ApiError
from qtasks.qstash import AsyncQStash, QStash

_BATCH: Final = 100
_DELAY: Final = FAR_MS / 1000
_NOT_FOUND: Final = 404


def clients(bench: Bench) -> Iterator[Row]:
    """`.delay()` and `.adelay()`, then the synchronous and the asynchronous client alone, then their batches."""
    count = max(_BATCH, bench.sizes.publishes // 5)
    with bench.servers(dispatcher=False) as servers:
        for figure in (_delay, _adelay, _sync, _async, _async_many, _sync_batches, _async_batches):
            bench.say(f"publishing with our clients: {figure.__name__.strip('_').replace('_', ' ')}")
            yield figure(servers, count)


def _delay(servers: QTasksServers, count: int) -> Row:
    with servers.producer() as producer:
        task = producer.tasks["noop"].using(delay=_DELAY)
        return _row("task.delay() one by one", count, _timed(lambda: task.delay(0), count))


def _adelay(servers: QTasksServers, count: int) -> Row:
    with servers.producer() as producer:
        task = producer.tasks["noop"].using(delay=_DELAY)
        spent_s = asyncio.run(_atimed(lambda: task.adelay(0), count, in_flight=IN_FLIGHT))
        return _row(f"task.adelay(), {IN_FLIGHT} in flight", count, spent_s)


def _sync(servers: QTasksServers, count: int) -> Row:
    with QStash(servers.credentials.token, base_url=servers.url) as client:
        spent_s = _timed(lambda: client.message.publish(url=servers.target.base_url, body="{}", delay=_DELAY), count)
        return _row("QStash one by one", count, spent_s)


def _async(servers: QTasksServers, count: int, *, in_flight: int = 1) -> Row:
    async def run() -> float:
        async with AsyncQStash(servers.credentials.token, base_url=servers.url) as client:
            return await _atimed(
                lambda: client.message.publish(url=servers.target.base_url, body="{}", delay=_DELAY),
                count,
                in_flight=in_flight,
            )

    how = "one by one" if in_flight == 1 else f"{in_flight} in flight"
    return _row(f"AsyncQStash {how}", count, asyncio.run(run()))


def _async_many(servers: QTasksServers, count: int) -> Row:
    return _async(servers, count, in_flight=IN_FLIGHT)


def _sync_batches(servers: QTasksServers, count: int) -> Row:
    def run(batch: list[Any], times: int) -> float:
        with QStash(servers.credentials.token, base_url=servers.url) as client:
            return _timed(lambda: client.message.batch(batch), times)

    return _batched("QStash", servers, count, run)


def _async_batches(servers: QTasksServers, count: int) -> Row:
    async def batches(batch: list[Any], times: int) -> float:
        async with AsyncQStash(servers.credentials.token, base_url=servers.url) as client:
            return await _atimed(lambda: client.message.batch(batch), times, in_flight=1)

    return _batched("AsyncQStash", servers, count, lambda batch, times: asyncio.run(batches(batch, times)))


def _batched(client: str, servers: QTasksServers, count: int, run: Callable[[list[Any], int], float]) -> Row:
    name, times = f"{client}, batches of {_BATCH}", count // _BATCH * 5
    batch = [{"url": servers.target.base_url, "body": "{}", "delay": _DELAY} for _ in range(_BATCH)]
    try:
        return _row(name, times * _BATCH, run(batch, times))
    except ApiError as error:
        if error.status != _NOT_FOUND:
            raise
        return _row(name, times * _BATCH, None, note="this broker does not serve /v2/batch")


def _row(name: str, count: int, spent_s: float | None, *, note: str = "") -> Row:
    return Row(
        name=f"publishes, {name}",
        value=None if spent_s is None else count / spent_s,
        unit="/s",
        method=f"{count:,} by one process on kept connections, the first is not counted; none is delivered",
        note=note,
    )


def _timed(call: Callable[[], object], times: int) -> float:
    call()
    began = time.perf_counter()
    for _ in range(times):
        call()
    return time.perf_counter() - began


async def _atimed(call: Callable[[], Awaitable[object]], times: int, *, in_flight: int) -> float:
    remaining = iter(range(times))

    async def caller() -> None:
        for _ in remaining:
            await call()

    await call()
    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return time.perf_counter() - began
