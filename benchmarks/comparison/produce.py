"""One process that calls tasks: ``python -m benchmarks.comparison.produce ORDER REPORT``.

Runs in each candidate's own interpreter, so it imports only the standard library and that candidate's application.
Writes to the file REPORT how long the calls took. The time of each call is recorded (`task_times`).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import json
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import task_times

How = Literal["one by one", "at once", "in bulk", "backlog", "plain backlog"]
"""The way of calling. A backlog is stored in the fastest way that the queue offers, and does not run yet."""

_AT_ONCE = 50
_FIRST_CALLS = 3
"""How often the first call is tried."""


@dataclass(frozen=True)
class Order:
    """What to do: `count` calls of `work` from number `first` on, with `per_s` a second, 0 for no pauses."""

    app: str
    """Its module in `benchmarks.peers.apps`."""
    how: How
    work: str
    first: int
    count: int
    per_s: float = 0


def main(order: str, report: str) -> None:
    """Do what the JSON text `order` says, and write the report."""
    outcome = _run(_produce(Order(**json.loads(order))))
    Path(report).write_text(json.dumps(outcome), encoding="utf-8")


async def _produce(order: Order) -> dict[str, Any]:
    app = importlib.import_module(f"benchmarks.peers.apps.{order.app}")
    ways = {
        "one by one": _one_by_one,
        "at once": _at_once,
        "in bulk": _in_bulk,
        "backlog": _backlog,
        "plain backlog": _plain_backlog,
    }
    connected = getattr(app, "connected", contextlib.AsyncExitStack)
    async with connected():
        try:
            send = getattr(app, "asend", app.send) if order.how == "at once" else app.send
            await _first(send, order)
            began_s, cpu_s = time.perf_counter(), time.process_time()
            due_s = await ways[order.how](app, order)
        except NotImplementedError:
            return {"offered": False}
        span_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    return {"offered": True, "span_s": span_s, "cpu_s": cpu_s, "due_s": due_s}


async def _first(send: Callable[..., Any], order: Order) -> None:
    """The call that imports and connects. On a busy machine that may take longer than a client's own deadline."""
    for _ in range(_FIRST_CALLS - 1):
        try:
            await _done(send, order.work, order.first)
        except Exception as error:
            print(f"the first call failed, once more: {error}", flush=True)
        else:
            return
    await _done(send, order.work, order.first)


async def _one_by_one(app: Any, order: Order) -> None:
    if inspect.iscoroutinefunction(app.send):
        for task, pause_s in _pauses(order):
            if pause_s > 0:
                await asyncio.sleep(pause_s)
            task_times.current().record_sent(task)
            await app.send(order.work, task)
        return
    await _done(_send_all, app, order)


def _send_all(app: Any, order: Order) -> None:
    for task, pause_s in _pauses(order):
        if pause_s > 0:
            time.sleep(pause_s)  # noqa: TID251 - a fixed rate is the purpose
        task_times.current().record_sent(task)
        app.send(order.work, task)


async def _at_once(app: Any, order: Order) -> None:
    send = getattr(app, "asend", app.send)
    if not inspect.iscoroutinefunction(send):
        raise NotImplementedError
    remaining = iter(_numbers(order))

    async def caller() -> None:
        for task in remaining:
            await send(order.work, task)

    await asyncio.gather(*(caller() for _ in range(_AT_ONCE)))


async def _in_bulk(app: Any, order: Order) -> None:
    if not hasattr(app, "bulk"):
        raise NotImplementedError
    await _done(app.bulk, order.work, _numbers(order))


async def _backlog(app: Any, order: Order) -> float | None:
    for name in ("backlog", "bulk"):
        if hasattr(app, name):
            due_s: float | None = await _done(getattr(app, name), order.work, _numbers(order))
            return due_s
    await _one_by_one(app, order)
    return None


async def _plain_backlog(app: Any, order: Order) -> float | None:
    due_s: float | None = await _done(app.plain_backlog, _numbers(order))
    return due_s


async def _done(call: Callable[..., Any], *arguments: Any) -> Any:
    """Await a coroutine function; run a plain one in a thread, where no event loop runs, as in synchronous code."""
    if inspect.iscoroutinefunction(call):
        return await call(*arguments)
    return await asyncio.to_thread(call, *arguments)


def _numbers(order: Order) -> range:
    """The numbers without the first, whose call opens the connection."""
    return range(order.first + 1, order.first + order.count)


def _pauses(order: Order) -> Iterator[tuple[int, float]]:
    """Each task with the seconds to wait before it."""
    began = time.monotonic()
    for place, task in enumerate(_numbers(order)):
        yield task, began + place / order.per_s - time.monotonic() if order.per_s else 0.0


def _run(coroutine: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(coroutine)
    return uvloop.run(coroutine)


if __name__ == "__main__":
    main(*sys.argv[1:])
