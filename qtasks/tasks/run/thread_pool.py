"""The threads that run functions which would block the event loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qtasks.forks import per_process
from qtasks.threads import DaemonThreadPool


class ThreadPool:
    """A bounded pool, started on first use; closed, it can be used again."""

    def __init__(self, threads: int) -> None:
        self.size = threads
        """The largest number of threads."""
        self.calls = 0
        """Calls that run, or wait for a thread."""
        self._pool: DaemonThreadPool | None = None
        per_process(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self.calls = 0

    async def run(self, call: Callable[[], Any]) -> Any:
        """Call `call` in a thread, with a copy of the context variables; returns or raises what it does."""
        context = contextvars.copy_context()
        self.calls += 1
        try:
            loop = asyncio.get_running_loop()
            outcome = await loop.run_in_executor(self._opened(), lambda: context.run(_caught, call))
        finally:
            self.calls -= 1
        return returned(outcome)

    def close(self) -> None:
        """Release the threads, without waiting for calls that still run in them. Idempotent."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)

    def _opened(self) -> DaemonThreadPool:
        with self._lock:
            if self._pool is None:
                self._pool = DaemonThreadPool(self.size, "qtasks-task")
            return self._pool


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception as a value."""

    error: BaseException


def returned(outcome: Any) -> Any:
    """`outcome`, which is a value; raises it if it is a `Raised`."""
    if isinstance(outcome, Raised):
        raise outcome.error
    return outcome


def _caught(call: Callable[[], Any]) -> Any:
    """Return exceptions as values: a future cannot carry StopIteration, and SystemExit must not end a pool thread."""
    try:
        return call()
    except BaseException as error:
        return Raised(error)
