"""When each task was sent, started and done: a file shared by every process of a measurement.

A task is a number with three moments and a flag in the file. Recording a moment costs a microsecond, and no process
sends anything back, so that the cost is the same for every queue. Only the standard library: peers import this too.

Moments are nanoseconds of the monotonic clock, which all processes of one machine share.
"""

from __future__ import annotations

import functools
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

VARIABLE: Final = "QTASKS_BENCHMARK_TIMES"
"""Environment variable that names the file to the processes of a measurement."""

_MEMORY: Final = Path("/dev/shm")
_SLOT: Final = 3 * 8 + 1
"""Bytes a task takes: three moments and the flag."""


class TaskTimes:
    """The open file. Task numbers go from 0 to `size` - 1."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.size = len(self._map) // _SLOT
        whole = memoryview(self._map)
        moments = [whole[place * 8 * self.size : (place + 1) * 8 * self.size].cast("q") for place in range(3)]
        self._sent, self._started, self._done = moments
        self._flags = 3 * 8 * self.size
        self._taken = 0

    @classmethod
    @contextmanager
    def fresh(cls, size: int) -> Iterator[TaskTimes]:
        """A new file, in memory where possible: writing its pages to a disk would disturb the measurement."""
        with TemporaryDirectory(prefix="qtasks-times-", dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
            path = Path(folder) / "times"
            with path.open("wb") as file:
                file.truncate(size * _SLOT)
            times = cls(path)
            try:
                yield times
            finally:
                times.close()

    def close(self) -> None:
        """Close the file. Idempotent."""
        for moments in (self._sent, self._started, self._done):
            moments.release()
        self._map.close()

    def take(self, count: int) -> range:
        """`count` unused task numbers. Raises ValueError when the file has no room for them."""
        if self._taken + count > self.size:
            raise ValueError(
                f"the file has room for {self.size} tasks: {self._taken} are used, {count} more do not fit"
            )
        self._taken += count
        return range(self._taken - count, self._taken)

    def send(self, task: int) -> None:
        """Record that `task` is being sent now."""
        self._sent[task] = time.monotonic_ns()

    def start(self, task: int) -> None:
        """Record that `task` starts now."""
        self._started[task] = time.monotonic_ns()

    def finish(self, task: int) -> None:
        """Record that `task` is done now."""
        self._done[task] = time.monotonic_ns()
        self._map[self._flags + task] = 1

    def has_started(self, task: int) -> bool:
        """Whether `task` has been started at least once."""
        return self._started[task] != 0

    def count(self, tasks: range) -> int:
        """How many of `tasks` are done."""
        return self._map[self._flags + tasks.start : self._flags + tasks.stop].count(1)

    def first_unfinished(self, tasks: range) -> int | None:
        """The lowest of `tasks` that is not done. Cheap: ask again from the number it gave."""
        offset = self._map.find(b"\0", self._flags + tasks.start, self._flags + tasks.stop)
        return None if offset < 0 else offset - self._flags

    def sent_ns(self, tasks: range) -> list[int]:
        """When each was sent; 0 for those that were not."""
        return list(self._sent[tasks.start : tasks.stop])

    def started_ns(self, tasks: range) -> list[int]:
        """When each was started last; 0 for those that were not."""
        return list(self._started[tasks.start : tasks.stop])

    def done_ns(self, tasks: range) -> list[int]:
        """When each was done; 0 for those that are not."""
        return list(self._done[tasks.start : tasks.stop])


@functools.cache
def current() -> TaskTimes:
    """The file of the measurement that this process takes part in, opened on first use."""
    return TaskTimes(Path(os.environ[VARIABLE]))
