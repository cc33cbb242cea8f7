"""A thread pool that serves as long as the process: Python's own takes no call once the main thread has ended."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

from qtasks.forks import per_process

P = ParamSpec("P")
T = TypeVar("T")


class DaemonThreadPool(ThreadPoolExecutor):
    """Runs calls in up to `threads` daemon threads, which start as they are needed.

    It differs from its base at the end of the process. The base refuses calls before the functions registered with
    `atexit` run, and the process waits for its calls without a limit. This pool takes calls until the process has
    ended, and nothing waits for them. It has the base because an event loop accepts no other class as its default.
    A forked process has threads of its own, and none of the calls that waited for one.
    """

    def __init__(self, threads: int, name: str) -> None:
        super().__init__(threads)
        self._limit = threads
        self._names = (f"{name}_{number}" for number in itertools.count())
        self._closed = False
        per_process(self._begin)

    def _begin(self) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        """Counts the threads that wait for a call."""
        self._workers: list[threading.Thread] = []
        self._changing = threading.Lock()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call `fn` in a thread. Raises RuntimeError after `shutdown`."""
        future: Future[T] = Future()
        with self._changing:
            if self._closed:
                raise RuntimeError("the thread pool is closed")
            self._calls.put((future, lambda: fn(*args, **kwargs)))
            if len(self._workers) < self._limit and not self._idle.acquire(blocking=False):
                worker = threading.Thread(target=self._work, name=next(self._names), daemon=True)
                self._workers.append(worker)
                worker.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; the threads end after those they have. With `wait`, return when they have ended.

        With `cancel_futures`, calls that have not begun are cancelled.
        """
        with self._changing:
            self._closed = True
            while cancel_futures and (waiting := self._next_or_none()) is not None:
                waiting[0].cancel()
            for _ in self._workers:
                self._calls.put(None)
        if wait:
            for worker in self._workers:
                worker.join()

    def _work(self) -> None:
        while (waiting := self._calls.get()) is not None:
            _run(*waiting)
            del waiting  # it refers to the result
            self._idle.release()

    def _next_or_none(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        try:
            return self._calls.get_nowait()
        except Empty:
            return None


def _run(future: Future[T], call: Callable[[], T]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
