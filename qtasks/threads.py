"""A thread pool that serves as long as the process: Python's own takes no call once the main thread has ended."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from qtasks.forks import per_process

P = ParamSpec("P")
T = TypeVar("T")


def on_event_loop() -> bool:
    """True if an event loop runs on this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class DaemonThreadPool(ThreadPoolExecutor):
    """Runs calls in up to `threads` daemon threads, which start as they are needed.

    It differs from its base at the end of the process. The base refuses calls before the functions registered with
    `atexit` run, and the process waits for its calls without a limit. This pool takes calls until the process has
    ended, and nothing waits for them. It has the base because an event loop accepts no other class as its default.
    A forked process has threads of its own, and none of the calls that waited for one.

    Calls begin in order. Threads are called one after the other: while one is on its way no further one is called, and
    one that arrives calls the next if more calls wait. So a long call holds up no other while a thread is free, and
    many short ones are made by few threads, which do not contend for the interpreter.
    """

    def __init__(self, threads: int, name: str) -> None:
        super().__init__(threads)
        self._limit = threads
        self._names = (f"{name}_{number}" for number in itertools.count())
        self._closed = False
        per_process(self._begin)

    def _begin(self) -> None:
        self._calls: deque[tuple[Callable[[], object], Future[Any] | None]] = deque()
        """Those that wait, in order, with the futures of `submit`."""
        self._workers: list[threading.Thread] = []
        self._idle = 0
        """Threads that wait to be called."""
        self._is_one_coming = False
        """True if a thread was called, or started, and has not arrived yet."""
        self._lock = threading.RLock()
        self._called = threading.Condition(self._lock)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call `fn` in a thread. Raises RuntimeError after `shutdown`."""
        future: Future[T] = Future()
        self._add([(lambda: _run(future, lambda: fn(*args, **kwargs)), future)])
        return future

    def start(self, calls: Iterable[Callable[[], object]]) -> None:
        """Make several calls, without the cost of futures. None may raise, and what they return is dropped."""
        self._add((call, None) for call in calls)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; the threads end after those they have. With `wait`, return when they have ended.

        With `cancel_futures`, calls of `submit` that have not begun are cancelled.
        """
        with self._lock:
            self._closed = True
            if cancel_futures:
                for _, future in self._calls:
                    if future is not None:
                        future.cancel()
            self._called.notify_all()
        if wait:
            for worker in self._workers:
                worker.join()

    def _add(self, calls: Iterable[tuple[Callable[[], object], Future[Any] | None]]) -> None:
        with self._lock:
            if self._closed:
                raise RuntimeError("the thread pool is closed")
            self._call_thread()
            self._calls.extend(calls)

    def _call_thread(self) -> None:
        """Call or start one more thread, unless one is on its way or all are at work."""
        if self._is_one_coming:
            return
        if self._idle:
            self._idle -= 1
            self._called.notify()
        elif len(self._workers) < self._limit:
            worker = threading.Thread(target=self._work, name=next(self._names), daemon=True)
            try:
                worker.start()
            except RuntimeError:  # the system has no more threads, or Python ends
                if not self._workers:
                    raise
                return  # those that run come for the call
            self._workers.append(worker)
        else:
            return
        self._is_one_coming = True

    def _work(self) -> None:
        call = self._next(arrives=True)
        while call is not None:
            call()
            del call  # it refers to the result
            call = self._next()

    def _next(self, *, arrives: bool = False) -> Callable[[], object] | None:
        """The call that this thread makes next, once there is one; None after `shutdown` when none is left."""
        with self._lock:
            while True:
                if arrives:
                    self._is_one_coming = False
                if self._calls:
                    call, _ = self._calls.popleft()
                    if self._calls:
                        self._call_thread()
                    return call
                if self._closed:
                    return None
                self._idle += 1
                self._called.wait()
                arrives = True


def _run(future: Future[T], call: Callable[[], T]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
