"""The work of the measurements: the same functions under every queue. Only the standard library: peers import this."""

from __future__ import annotations

import asyncio
import time

from benchmarks import task_times

NAP_S = 0.05
"""How long the sleeping tasks sleep."""

HOLD_S = 60.0
"""How long the first run of `hold` lasts unless its process is killed."""


def noop(task: int) -> None:
    """Nothing but the note that it ran."""
    times = task_times.current()
    times.start(task)
    times.finish(task)


async def anoop(task: int) -> None:
    """As `noop`, on an event loop."""
    noop(task)


def nap(task: int) -> None:
    """Wait as for a slow service, in a thread or process."""
    times = task_times.current()
    times.start(task)
    time.sleep(NAP_S)  # noqa: TID251 - sleeping is the work
    times.finish(task)


async def anap(task: int) -> None:
    """As `nap`, on an event loop."""
    times = task_times.current()
    times.start(task)
    await asyncio.sleep(NAP_S)
    times.finish(task)


async def ahold(task: int) -> None:
    """The first run hangs until its process is killed; a later one is done at once."""
    times = task_times.current()
    if times.has_started(task):
        times.finish(task)
        return
    times.start(task)
    await asyncio.sleep(HOLD_S)
