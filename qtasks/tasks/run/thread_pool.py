"""The threads that run functions which would block the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
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
        self._calls_of_loop: LoopCalls | None = None
        """Of the event loop that has called last."""
        per_process(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self.calls = 0

    async def run(self, call: Callable[[], Any]) -> Any:
        """Call `call` in a thread, with a copy of the context variables; returns or raises what it does."""
        return returned(await self.start(call))

    def start(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        """As `run`; the future gets what `call` returns, or a `Raised`.

        Calls of one turn of the loop are handed to the threads together, at its end: threads that begin meanwhile would
        only contend with the loop for the interpreter.
        """
        loop = asyncio.get_running_loop()
        if (calls := self._calls_of_loop) is None or calls.loop is not loop:
            calls = self._calls_of_loop = LoopCalls(loop)
        if not calls.begun:
            loop.call_soon(self._hand_over, calls)
        ended, context = loop.create_future(), contextvars.copy_context()
        calls.begun.append((ended, lambda: context.run(self._timed, call)))
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

    def _hand_over(self, calls: LoopCalls) -> None:
        begun, calls.begun = calls.begun, []
        try:
            with self._lock:
                self._opened().start(functools.partial(calls.make, *each) for each in begun)
                self.calls += len(begun)
        except RuntimeError as error:  # no thread can be started
            for ended, _ in begun:
                if not ended.cancelled():
                    ended.set_result(Raised(error))

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


class LoopCalls:
    """The calls of one event loop. Those that end before it runs again wake it once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: Final = loop
        self.begun: list[tuple[asyncio.Future[Any], Callable[[], Any]]] = []
        """Those of this turn of the loop, with the futures of their outcomes."""
        self._ended: deque[tuple[asyncio.Future[Any], Any]] = deque()
        self._is_woken = False

    def make(self, ended: asyncio.Future[Any], call: Callable[[], Any]) -> None:
        """Make a call in a thread: `ended` gets its outcome."""
        self._ended.append((ended, call()))
        if not self._is_woken:
            self._is_woken = True
            with contextlib.suppress(RuntimeError):  # the loop has closed
                self.loop.call_soon_threadsafe(self._set_results)

    def _set_results(self) -> None:
        self._is_woken = False  # first, so that what ends from now on is not missed
        while self._ended:
            ended, outcome = self._ended.popleft()
            if not ended.cancelled():
                ended.set_result(outcome)


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
