"""`GET console/api/growth`: how large the store was, how fast it grows, and what retention removes next."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from qtasks.broker.api.api_request import ApiRequest, ApiResponse, json_response
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.core.values import DAY_MS
from qtasks.broker.store.connection import MEMORY
from qtasks.broker.store.verbs.upkeep import removals, store_sizes
from qtasks.broker.store.verbs.upkeep.store_sizes import HOUR_MS, StoreSize

POINTS: Final = 120
"""Points of the series of sizes at most."""
RATE_HOURS: Final = 7 * 24
"""Hours of which the growth is the mean."""
FAR_DAYS: Final = 365
"""What is farther ahead is not told."""
LEAST_HOURS: Final = 6
"""Fewer tell nothing about the growth."""


async def show(context: ConsoleContext, viewer: Viewer, request: ApiRequest) -> ApiResponse:
    """The figures of the whole store, of all accounts together."""
    now_ms, offset_ms = context.clock.now_ms(), context.clock.offset_ms()
    store, retention = context.store, context.settings.retention
    used, file = await store.read(store_sizes.current)
    sizes = await store.read(store_sizes.series)
    each = await store.read_long(removals.bytes_each)
    hours = await store.read_long(removals.forecast, retention, now_ms=now_ms)
    sizes = [*(size for size in sizes if size.hour < now_ms // HOUR_MS), StoreSize(now_ms // HOUR_MS, used, file)]
    per_day = bytes_per_day(sizes)
    free = await asyncio.to_thread(_free_bytes, context.settings.path)
    return json_response(
        {
            "timeMs": now_ms + offset_ms,
            "usedBytes": used,
            "fileBytes": file,
            "sizes": _series(sizes, offset_ms),
            "perDayBytes": per_day,
            "full": reached_first(per_day, used, file, retention.max_bytes, free, now_ms + offset_ms),
            "removals": {
                "fromMs": now_ms + offset_ms,
                "stepMs": HOUR_MS,
                "finished": [hour.finished for hour in hours],
                "failed": [hour.failed for hour in hours],
                "bytesEach": each,
            },
        }
    )


def bytes_per_day(sizes: Sequence[StoreSize]) -> int | None:
    """How many bytes in use a day adds, by what was noted in the last week; None if that is too little."""
    latest = sizes[-1]
    first = next(size for size in sizes if size.hour > latest.hour - RATE_HOURS)
    hours = latest.hour - first.hour
    return None if hours < LEAST_HOURS else (latest.used - first.used) * 24 // hours


def reached_first(
    per_day: int | None, used: int, file: int, limit: int | None, free: int | None, wall_ms: int
) -> dict[str, Any] | None:
    """What is reached first at this rate, the limit of the size or the end of the disk; None: nothing within a year."""
    if per_day is None or per_day <= 0:
        return None
    rooms = {"limit": None if limit is None else limit - used, "disk": None if free is None else free + file - used}
    days = {what: max(0, room) / per_day for what, room in rooms.items() if room is not None}
    what = min(days, key=lambda name: days[name], default=None)
    if what is None or days[what] > FAR_DAYS:
        return None
    return {"what": what, "timeMs": wall_ms + round(days[what] * DAY_MS)}


def _series(sizes: Sequence[StoreSize], offset_ms: int) -> dict[str, Any]:
    """The sizes in equal steps of whole hours, the last one of each step; null where none was noted."""
    first, last = sizes[0].hour, sizes[-1].hour
    step = -(-(last - first + 1) // POINTS)
    latest = {(size.hour - first) // step: size for size in sizes}
    points = [latest.get(index) for index in range((last - first) // step + 1)]
    return {
        "fromMs": first * HOUR_MS + offset_ms,
        "stepMs": step * HOUR_MS,
        "used": [None if size is None else size.used for size in points],
        "file": [None if size is None else size.file for size in points],
    }


def _free_bytes(path: str) -> int | None:
    """Bytes that are free on the disk; unknown in memory, and of a disk that does not answer."""
    if path == MEMORY:
        return None
    try:
        return shutil.disk_usage(Path(path).parent).free
    except OSError:
        return None
