"""What the environments of a process share: event loops for brokers, a thread with one for tasks, and a pool."""

from __future__ import annotations

import asyncio
import atexit
import functools
import os
from typing import Final

import apsw

from qtasks.embedded import LoopThread
from qtasks.tasks.run.thread_pool import ThreadPool
from qtasks.testing.brokers.callers_loop import CallersLoop

_WORKERS: Final = 64
"""Threads of the pool; more than one is busy only if a task waits for another one."""


class SharedWorkers(ThreadPool):
    """The pool of all dispatchers of the process: to start a thread costs as much as a call."""

    def close(self) -> None:
        """Does nothing: the next dispatcher uses the pool."""


class SharedThreads:
    """Threads that start at their first use; `SharedThreads.of_process()` returns those of this process."""

    _of_process: SharedThreads | None = None

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.virtual_time = CallersLoop("qtasks-broker")
        """Of the brokers in virtual time, which do nothing unless a caller waits."""
        self.tasks = LoopThread("qtasks-tasks")
        self.workers = SharedWorkers(_WORKERS)
        self.shelf: list[apsw.Connection] = []
        """The connections of `empty_store` between two tests."""

    @functools.cached_property
    def real_time(self) -> LoopThread:
        """Of the brokers in real time."""
        return LoopThread("qtasks-broker")

    @classmethod
    def of_process(cls) -> SharedThreads:
        """The threads of this process; a forked process gets its own."""
        if cls._of_process is None or cls._of_process.owner != os.getpid():
            cls._of_process = threads = cls()
            atexit.register(threads.stop)
        return cls._of_process

    def stop(self) -> None:
        """End the threads."""
        if self.owner == os.getpid():
            self.virtual_time.stop()
            if "real_time" in vars(self):
                self.real_time.stop()
            self.tasks.stop()
            ThreadPool.close(self.workers)

    def tidy(self) -> None:
        """Cancel the asyncio tasks that a test left on the loop of the tasks, so that the next test is not affected."""
        if not asyncio.all_tasks(self.tasks.loop):
            return

        async def cancel() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.tasks.call(cancel())
