"""The work of the measurements: the same functions for every queue.

Uses only the standard library: peers import this.
"""

from __future__ import annotations

import asyncio
import time

from benchmarks import task_times

NAP_S = 0.05
"""How long the sleeping tasks sleep."""

HANG_S = 60.0
"""How long the first run of `hang` lasts if its process is not killed."""


def noop(task: int) -> None:
    """Record that it ran, and do nothing else."""
    times = task_times.current()
    times.record_started(task)
    times.record_done(task)


async def anoop(task: int) -> None:
    """As `noop`, on an event loop."""
    noop(task)


def nap(task: int) -> None:
    """Sleep, as if waiting for a slow service, in a thread or process."""
    times = task_times.current()
    times.record_started(task)
    time.sleep(NAP_S)  # noqa: TID251 - sleeping is the work
    times.record_done(task)


async def anap(task: int) -> None:
    """As `nap`, on an event loop."""
    times = task_times.current()
    times.record_started(task)
    await asyncio.sleep(NAP_S)
    times.record_done(task)


async def ahang(task: int) -> None:
    """The first run hangs until its process is killed; a later one is done at once."""
    times = task_times.current()
    if times.has_started(task):
        times.record_done(task)
        return
    times.record_started(task)
    await asyncio.sleep(HANG_S)
