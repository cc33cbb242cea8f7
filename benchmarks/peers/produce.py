"""One process that enqueues: ``python -m benchmarks.peers.produce MODULE WORK FIRST COUNT PACE``.

Runs in each queue's own interpreter. PACE is a number a second, 0 for no pauses, or ``fill``
to store a backlog in the fastest way that the queue offers. The time of each send is recorded (`task_times`).
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks import task_times


def main(module: str, name: str, first: str, count: str, pace: str) -> None:
    """Enqueue `count` tasks from number `first` on."""
    app = importlib.import_module(f"benchmarks.peers.apps.{module}")
    tasks = range(int(first), int(first) + int(count))
    per_s = 0.0 if pace == "fill" else float(pace)
    if inspect.iscoroutinefunction(app.send):
        asyncio.run(_produce(app, name, tasks, per_s, fill=pace == "fill"))
        return
    times = task_times.current()
    for task, pause_s in _pauses(tasks, per_s):
        if pause_s > 0:
            time.sleep(pause_s)  # noqa: TID251 - a fixed rate is the purpose
        times.record_sent(task)
        app.send(name, task)


async def _produce(app: Any, name: str, tasks: range, per_s: float, *, fill: bool) -> None:
    times = task_times.current()
    async with app.connected():
        if fill and hasattr(app, "fill"):
            await app.fill(name, tasks)
            return
        for task, pause_s in _pauses(tasks, per_s):
            if pause_s > 0:
                await asyncio.sleep(pause_s)
            times.record_sent(task)
            await app.send(name, task)


def _pauses(tasks: range, per_s: float) -> Iterator[tuple[int, float]]:
    """Each task with the seconds to wait before it: none for the first, which opens the connection."""
    yield tasks[0], 0.0
    began = time.monotonic()
    for place, task in enumerate(tasks[1:]):
        yield task, began + place / per_s - time.monotonic() if per_s else 0.0


if __name__ == "__main__":
    main(*sys.argv[1:])
