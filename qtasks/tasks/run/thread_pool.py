"""The threads that run functions which would block the event loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from qtasks.forks import per_process
from qtasks.threads import DaemonThreadPool

WAIT_S: Final = 0.5
"""Longest wait for a thread that is asked for, seconds."""
MAX_WAITING: Final = 256
"""Calls that are asked for beyond those that find a free thread."""
_WEIGHT: Final = 1 / 8
"""Of the latest call in the mean."""
_SHORTEST_S: Final = 0.0001


class ThreadPool:
    """A bounded pool, started on first use; closed, it can be used again."""

    def __init__(self, threads: int) -> None:
        self.size = threads
        """The largest number of threads."""
        self.calls = 0
        """Calls that run, or wait for a thread."""
        self._mean_s: float | None = None
        """How long the latest calls took on average; None before the first one has ended."""
        self._ended_s = 0.0
        """When the latest call ended."""
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
            outcome = await loop.run_in_executor(self._opened(), lambda: context.run(self._timed, call))
        finally:
            self.calls -= 1
        return returned(outcome)

    def room(self) -> int:
        """How many more calls would begin at once or within `WAIT_S`, if they take as long as the latest ones.

        Nothing is added to the free threads while all of them are held by long calls.
        """
        waiting = 0
        is_held = self.calls >= self.size and time.monotonic() - self._ended_s > WAIT_S
        if self._mean_s is not None and not is_held:
            waiting = min(MAX_WAITING, int(self.size * WAIT_S / max(self._mean_s, _SHORTEST_S)))
        return self.size + waiting - self.calls

    def _timed(self, call: Callable[[], Any]) -> Any:
        began_s = time.monotonic()
        try:
            return _caught(call)
        finally:
            self._ended_s = time.monotonic()
            took_s = self._ended_s - began_s
            self._mean_s = took_s if self._mean_s is None else self._mean_s + (took_s - self._mean_s) * _WEIGHT

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
