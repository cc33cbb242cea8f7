"""An event loop that runs on the thread of the caller who waits for it, so that nothing is handed between threads."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, Final, Protocol, TypeVar

from qtasks.embedded_transport import forked_from
from qtasks.threads import DaemonThreadPool

T = TypeVar("T")

_THREADS: Final = 32
"""Threads in which the loop runs what would block it, and itself if no thread of a caller does."""

_STOP_S: Final = 2.0
"""How long cancelled work may take to end."""


class LoopRunner(Protocol):
    """Runs work on one event loop, for callers on any thread."""

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` and wait for it."""

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start `work`."""


class CallersLoop:
    """Runs work on one event loop: on the thread of a caller of `call` or, for callers of `submit`, on one of a pool.

    The loop runs on one thread at a time. Work that arrives meanwhile joins it there, and goes on in the pool if it has
    not ended when the caller who runs the loop has its own result. While no caller waits, nothing runs.
    In a forked process `call` and `submit` raise BrokerUnreachable.
    """

    def __init__(self, name: str) -> None:
        self._process = os.getpid()
        self._loop = asyncio.SelectorEventLoop()
        self._pool = DaemonThreadPool(_THREADS, name)
        self._loop.set_default_executor(self._pool)
        self._changing = threading.Condition()
        self._is_run = False
        self._submitted: deque[Future[Any]] = deque()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` and return its result."""
        self._check_process(work)
        if _has_loop() or not self._take():
            return self.submit(work).result()
        try:
            return self._loop.run_until_complete(work)
        finally:
            self._leave()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start `work`, for a caller whose own event loop runs meanwhile."""
        self._check_process(work)
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        with self._changing:
            self._submitted.append(future)
        if self._take():
            self._leave()
        return future

    def stop(self) -> None:
        """Cancel what has not ended, and close the loop. One that a thread still runs after `_STOP_S` is left to it."""
        with self._changing:
            for future in self._submitted:
                future.cancel()
            is_free = self._changing.wait_for(lambda: not self._is_run, _STOP_S)
        if is_free and self._take():
            self._loop.run_until_complete(_cancel_others())
            self._loop.close()
            self._pool.shutdown(wait=False)

    def _check_process(self, work: Coroutine[Any, Any, Any]) -> None:
        if os.getpid() != self._process:
            work.close()
            raise forked_from(self._process)

    def _take(self) -> bool:
        """True if no thread runs the loop: this one does from now on, until `_leave`."""
        with self._changing:
            taken, self._is_run = not self._is_run, True
        return taken

    def _leave(self) -> None:
        if self._next() is not None:
            self._pool.submit(self._go_on)

    def _go_on(self) -> None:
        while (future := self._next()) is not None:
            ended = asyncio.wrap_future(future, loop=self._loop)
            self._loop.run_until_complete(asyncio.gather(ended, return_exceptions=True))

    def _next(self) -> Future[Any] | None:
        """Submitted work that has not ended; without any, the loop is free."""
        with self._changing:
            while self._submitted and self._submitted[0].done():
                self._submitted.popleft()
            self._is_run = bool(self._submitted)
            self._changing.notify_all()
            return self._submitted[0] if self._submitted else None


def _has_loop() -> bool:
    """True if this thread runs an event loop; it cannot run a second one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
