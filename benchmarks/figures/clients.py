"""Publishes a second as our clients make them, one process with nothing else to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from benchmarks.bench import FAR_MS, IN_FLIGHT, Bench
from benchmarks.figure import Row
from benchmarks.own import Own
from qtasks.errors import ApiError
from qtasks.qstash import AsyncQStash, QStash

_BATCH: Final = 100
_DELAY: Final = FAR_MS / 1000
_NOT_FOUND: Final = 404


def clients(bench: Bench) -> Iterator[Row]:
    """`.delay()` and `.adelay()`, then the synchronous and the asynchronous client alone, then their batches."""
    count = max(_BATCH, bench.sizes.publishes // 5)
    with bench.own(dispatcher=False) as own:
        for figure in (_delay, _adelay, _sync, _async, _async_many, _sync_batches, _async_batches):
            bench.say(f"publishing with our clients: {figure.__name__.strip('_').replace('_', ' ')}")
            yield figure(own, count)


def _delay(own: Own, count: int) -> Row:
    with own.producer() as producer:
        task = producer.tasks["noop"].using(delay=_DELAY)
        return _row("task.delay() one by one", count, _timed(lambda: task.delay(0), count))


def _adelay(own: Own, count: int) -> Row:
    with own.producer() as producer:
        task = producer.tasks["noop"].using(delay=_DELAY)
        spent_s = asyncio.run(_atimed(lambda: task.adelay(0), count, in_flight=IN_FLIGHT))
        return _row(f"task.adelay(), {IN_FLIGHT} in flight", count, spent_s)


def _sync(own: Own, count: int) -> Row:
    with QStash(own.secrets.token, base_url=own.url) as client:
        spent_s = _timed(lambda: client.message.publish(url=own.target.base_url, body="{}", delay=_DELAY), count)
        return _row("QStash one by one", count, spent_s)


def _async(own: Own, count: int, *, in_flight: int = 1) -> Row:
    async def run() -> float:
        async with AsyncQStash(own.secrets.token, base_url=own.url) as client:
            return await _atimed(
                lambda: client.message.publish(url=own.target.base_url, body="{}", delay=_DELAY),
                count,
                in_flight=in_flight,
            )

    how = "one by one" if in_flight == 1 else f"{in_flight} in flight"
    return _row(f"AsyncQStash {how}", count, asyncio.run(run()))


def _async_many(own: Own, count: int) -> Row:
    return _async(own, count, in_flight=IN_FLIGHT)


def _sync_batches(own: Own, count: int) -> Row:
    def run(batch: list[Any], times: int) -> float:
        with QStash(own.secrets.token, base_url=own.url) as client:
            return _timed(lambda: client.message.batch(batch), times)

    return _batched("QStash", own, count, run)


def _async_batches(own: Own, count: int) -> Row:
    async def batches(batch: list[Any], times: int) -> float:
        async with AsyncQStash(own.secrets.token, base_url=own.url) as client:
            return await _atimed(lambda: client.message.batch(batch), times, in_flight=1)

    return _batched("AsyncQStash", own, count, lambda batch, times: asyncio.run(batches(batch, times)))


def _batched(client: str, own: Own, count: int, run: Callable[[list[Any], int], float]) -> Row:
    name, times = f"{client}, batches of {_BATCH}", count // _BATCH * 5
    batch = [{"url": own.target.base_url, "body": "{}", "delay": _DELAY} for _ in range(_BATCH)]
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
        method=f"{count:,} by one process on kept connections, after a first that is not counted; none is delivered",
        note=note,
    )


def _timed(call: Callable[[], object], times: int) -> float:
    call()
    began = time.perf_counter()
    for _ in range(times):
        call()
    return time.perf_counter() - began


async def _atimed(call: Callable[[], Awaitable[object]], times: int, *, in_flight: int) -> float:
    left = iter(range(times))

    async def caller() -> None:
        for _ in left:
            await call()

    await call()
    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return time.perf_counter() - began
