"""A call as somebody sees it who waits for it: its record, read when there may be news."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from qtasks.tasks.results.backend import ResultBackend, ResultRecord, pauses, read_record

POLL_LAST_S = 0.25
"""Between looks at a record that another process may write, for onlookers: there may be many, and none is a program."""

GLANCE_S = 0.5
"""How often to see whether it is over with watching, which nobody can be woken for."""


def wake(loop: asyncio.AbstractEventLoop, changed: asyncio.Event) -> None:
    """Set `changed` from any thread."""
    with contextlib.suppress(RuntimeError):  # the loop of a waiter that is going away may be closed
        loop.call_soon_threadsafe(changed.set)


async def states(backend: ResultBackend, key: str, over: Callable[[], bool]) -> AsyncIterator[ResultRecord | None]:
    """The record of a call as it stands (None: nothing has been heard of it), and whenever it has changed.

    Ends behind a final one, and soon after `over` has become true. A backend in this process is read when it has news;
    any other is looked at as well, at first often. Raises ResultError.
    """
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    looks = pauses(POLL_LAST_S)
    with backend.watchers.watching(key, lambda: wake(loop, changed)):
        known = record = await read_record(backend, key)
        yield record
        while not (record is not None and record.status.is_final) and not over():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), next(looks) if backend.blocking else GLANCE_S)
            if not backend.blocking and not changed.is_set():
                continue
            changed.clear()
            record = await read_record(backend, key)
            if record != known:
                known = record
                yield record
