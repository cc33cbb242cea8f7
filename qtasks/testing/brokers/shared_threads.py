"""The threads that the environments of a process share: an event loop for brokers, one for tasks, and a pool."""

from __future__ import annotations

import asyncio
import atexit
import os
from typing import Final

import apsw

from qtasks.embedded import LoopThread
from qtasks.tasks.run.thread_pool import Workers

_WORKERS: Final = 64
"""More than one runs only where one waits for another."""


class SharedWorkers(Workers):
    """The pool of every dispatcher there will be: a thread that is started costs as much as a call."""

    def close(self) -> None:
        """The next dispatcher goes on with it."""


class Threads:
    """Started when they are first needed; `Threads.of_process()` gives those of this process."""

    _of_process: Threads | None = None

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.broker = LoopThread("qtasks-broker")
        self.tasks = LoopThread("qtasks-tasks")
        self.workers = SharedWorkers(_WORKERS)
        self.shelf: list[apsw.Connection] = []
        """Of `EmptyStore`."""

    @classmethod
    def of_process(cls) -> Threads:
        """The threads of this process; a fork leaves its parent's behind."""
        if cls._of_process is None or cls._of_process.owner != os.getpid():
            cls._of_process = threads = cls()
            atexit.register(threads.stop)
        return cls._of_process

    def stop(self) -> None:
        """End them."""
        if self.owner == os.getpid():
            self.broker.stop()
            self.tasks.stop()
            Workers.close(self.workers)

    def tidy(self) -> None:
        """Cancel what tasks have left running on the loop of the tasks: it is nothing to the next test."""

        async def cancel() -> None:
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

        self.tasks.call(cancel())
