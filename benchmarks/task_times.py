"""When each task was sent, started and done: a file that every process of a measurement maps into memory.

A task is a number. For each there are three times and a flag. Recording one costs a microsecond, and nothing has to be
sent back, whichever queue carried the task. Uses only the standard library, because the peers' interpreters import it.

Times are nanoseconds of the monotonic clock, which all processes of one machine share.
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

PATH_VARIABLE: Final = "QTASKS_BENCHMARK_TASK_TIMES"
"""Environment variable that names the file to the processes of a measurement."""

_MEMORY: Final = Path("/dev/shm")
_SLOT: Final = 3 * 8 + 1
"""Bytes for one task: three times and the flag."""


class TaskTimes:
    """The open file. Task numbers go from 0 to `size` - 1."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.size = len(self._map) // _SLOT
        whole = memoryview(self._map)
        times = [whole[place * 8 * self.size : (place + 1) * 8 * self.size].cast("q") for place in range(3)]
        self._sent, self._started, self._done = times
        self._flags = 3 * 8 * self.size
        self._reserved = 0

    @classmethod
    @contextmanager
    def fresh(cls, size: int) -> Iterator[TaskTimes]:
        """An empty file, in memory where the system offers that: its pages must not be written to the measured disk."""
        with TemporaryDirectory(prefix="qtasks-task-times-", dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
            path = Path(folder) / "task-times"
            with path.open("wb") as file:
                file.truncate(size * _SLOT)
            task_times = cls(path)
            try:
                yield task_times
            finally:
                task_times.close()

    def close(self) -> None:
        """Close the file. Idempotent."""
        for times in (self._sent, self._started, self._done):
            times.release()
        self._map.close()

    def reserve(self, count: int) -> range:
        """`count` task numbers that are not used yet. Raises ValueError if fewer are free."""
        if self._reserved + count > self.size:
            raise ValueError(f"the file has room for {self.size} tasks; {self._reserved} are used, {count} requested")
        self._reserved += count
        return range(self._reserved - count, self._reserved)

    def record_sent(self, task: int) -> None:
        """Record that `task` is being sent now."""
        self._sent[task] = time.monotonic_ns()

    def record_started(self, task: int) -> None:
        """Record that `task` starts now."""
        self._started[task] = time.monotonic_ns()

    def record_done(self, task: int) -> None:
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
        """The lowest of `tasks` that is not done, or None. The next search can begin at the returned number."""
        position = self._map.find(b"\0", self._flags + tasks.start, self._flags + tasks.stop)
        return None if position < 0 else position - self._flags

    def sent_ns(self, tasks: range) -> list[int]:
        """When each was sent; 0 if it was not."""
        return list(self._sent[tasks.start : tasks.stop])

    def started_ns(self, tasks: range) -> list[int]:
        """When each was last started; 0 if it was not."""
        return list(self._started[tasks.start : tasks.stop])

    def done_ns(self, tasks: range) -> list[int]:
        """When each was done; 0 if it is not."""
        return list(self._done[tasks.start : tasks.stop])


@functools.cache
def current() -> TaskTimes:
    """The file of this process's measurement, opened on first use."""
    return TaskTimes(Path(os.environ[PATH_VARIABLE]))
