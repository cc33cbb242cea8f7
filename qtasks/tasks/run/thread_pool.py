"""The threads that run functions which would block the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from collections import deque
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
        self._endings: LoopEndings | None = None
        """Of the event loop that runs here."""
        per_process(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self.calls = 0

    async def run(self, call: Callable[[], Any]) -> Any:
        """Call `call` in a thread, with a copy of the context variables; returns or raises what it does."""
        return returned(await self.start(call))

    def start(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        """As `run`; the future gets what `call` returns, or a `Raised`."""
        loop = asyncio.get_running_loop()
        ended, context = loop.create_future(), contextvars.copy_context()
        with self._lock:
            if self._endings is None or self._endings.loop is not loop:
                self._endings = LoopEndings(loop)
            endings = self._endings
            self._opened().start(lambda: endings.add(ended, context.run(self._timed, call)))
            self.calls += 1
        return ended

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
            with self._lock:
                self.calls -= 1
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
        if self._pool is None:
            self._pool = DaemonThreadPool(self.size, "qtasks-task")
        return self._pool


class LoopEndings:
    """The ends of calls whose results an event loop gets. Those that end before it runs wake it once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: Final = loop
        self._ended: deque[tuple[asyncio.Future[Any], Any]] = deque()
        self._is_woken = False

    def add(self, future: asyncio.Future[Any], outcome: Any) -> None:
        """Let `future` have `outcome`. May be called from any thread."""
        self._ended.append((future, outcome))
        if not self._is_woken:
            self._is_woken = True
            with contextlib.suppress(RuntimeError):  # the loop has closed
                self.loop.call_soon_threadsafe(self._set_results)

    def _set_results(self) -> None:
        self._is_woken = False  # first, so that what ends from now on is not missed
        while self._ended:
            future, outcome = self._ended.popleft()
            if not future.cancelled():
                future.set_result(outcome)


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
