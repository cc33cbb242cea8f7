"""Counts the deliveries that run in this process, says how many more may begin, and when the last one has ended."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from enum import Enum, auto
from typing import Any, Final

from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.run.thread_pool import ThreadPool

MAX_RUNNING: Final = 256
"""Deliveries beyond which none is asked for. One that is made all the same runs, if it does not come in a bundle."""


class RunPlace(Enum):
    """Where the function of a delivery runs."""

    LOOP = auto()
    THREAD = auto()


class RunSlots:
    """The deliveries that run. Those of a ``def`` need one of `threads`, now or in a moment.

    It may be used from any thread. The embedded broker may change loops when an application starts, so two of them may
    count at once.
    """

    def __init__(self, tasks: Mapping[str, BaseTask[..., Any]], threads: ThreadPool) -> None:
        self._tasks = tasks
        self._threads = threads
        self._lock = threading.Lock()
        self.running = 0
        """How many deliveries run."""
        self._in_threads = 0
        """How many of them need a thread."""
        self.all_ended: Future[None] | None = None
        """Done when the last delivery has ended; None while more are taken."""
        self._seen = (0, False)
        """How many tasks there were, and whether one of them needs a thread."""

    def take(self, place: RunPlace) -> None:
        """A delivery begins."""
        with self._lock:
            self._count(place, 1)

    def take_free(self, place: RunPlace) -> bool:
        """A delivery begins if there is room for it; False if there is none."""
        with self._lock:
            if self.running >= MAX_RUNNING or (place is RunPlace.THREAD and self._room_in_threads() <= 0):
                return False
            self._count(place, 1)
            return True

    def give_back(self, place: RunPlace) -> None:
        """A delivery has ended."""
        with self._lock:
            self._count(place, -1)
            self._end_if_last()

    def free(self) -> int:
        """How many deliveries may begin now, whichever tasks they are for; 0 after `close`."""
        if self.all_ended is not None:
            return 0
        free = MAX_RUNNING - self.running
        if self._any_needs_thread():
            free = min(free, self._room_in_threads())
        return max(0, free)

    def close(self) -> Future[None]:
        """Offer no more slots. The future is done when the last delivery has ended."""
        with self._lock:
            if self.all_ended is None:
                self.all_ended = Future()
            self._end_if_last()
            return self.all_ended

    def _count(self, place: RunPlace, step: int) -> None:
        self.running += step
        if place is RunPlace.THREAD:
            self._in_threads += step

    def _end_if_last(self) -> None:
        if self.running == 0 and self.all_ended is not None and not self.all_ended.done():
            self.all_ended.set_result(None)

    def _room_in_threads(self) -> int:
        """A delivery may not have its thread yet, and a thread may run on after the time of its delivery."""
        return self._threads.room() - max(0, self._in_threads - self._threads.calls)

    def _any_needs_thread(self) -> bool:
        count = len(self._tasks)  # it changes when a task is declared
        if self._seen[0] != count:
            self._seen = count, any(not task.is_async for task in self._tasks.values())
        return self._seen[1]
