"""Watching a call: its record is read again when it may have changed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from qtasks.tasks.results.backend import ResultBackend, ResultRecord, pauses, read_record

WATCH_POLL_LAST_S = 0.25
"""The longest time between two reads of a record that another process may write. There may be many watchers."""

CHECK_OVER_S = 0.5
"""The time between two checks whether watching is over; no event reports that."""


def wake(loop: asyncio.AbstractEventLoop, changed: asyncio.Event) -> None:
    """Set `changed` from any thread."""
    with contextlib.suppress(RuntimeError):  # the waiter's loop may have closed
        loop.call_soon_threadsafe(changed.set)


async def states(backend: ResultBackend, key: str, over: Callable[[], bool]) -> AsyncIterator[ResultRecord | None]:
    """The current record of a call (None: no attempt has begun), and each new one when it changes.

    Ends after a final record, and soon after `over` returns true. A backend in this process is read when the record
    changes; any other is also read at intervals, often at first. Raises ResultError.
    """
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    intervals = pauses(WATCH_POLL_LAST_S)
    with backend.watchers.watching(key, lambda: wake(loop, changed)):
        last = record = await read_record(backend, key)
        yield record
        while not (record is not None and record.status.is_final) and not over():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), next(intervals) if backend.blocking else CHECK_OVER_S)
            if not backend.blocking and not changed.is_set():
                continue
            changed.clear()
            record = await read_record(backend, key)
            if record != last:
                last = record
                yield record
