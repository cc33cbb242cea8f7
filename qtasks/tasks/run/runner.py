"""Calls the function of a run: on the loop or in a thread, inside the middleware, within the time of the attempt."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from qtasks.tasks.context import StopReason
from qtasks.tasks.control import BY_CALLER, AttemptTimeout, Cancel
from qtasks.tasks.run.run import Invoke, Run
from qtasks.tasks.run.run_middleware import RunMiddleware, chain
from qtasks.tasks.run.thread_pool import ThreadPool

THREAD_GRACE_S = 0.1
"""At the end of the process, a ``def`` may see `TaskContext.should_stop` and end by itself for so long."""


class Runner:
    """Runs tasks: ``async def`` on the event loop, ``def`` in one of `threads`."""

    def __init__(self, threads: ThreadPool, middleware: Sequence[RunMiddleware]) -> None:
        self.threads = threads
        self._middleware = middleware

    async def call(self, run: Run, dependencies: Mapping[str, Any]) -> Any:
        """Call the function; a thread gets a copy of the context variables."""
        task = run.task
        if task.is_async:
            value = task.parameters.call(task.function, run.values, run.context, dependencies)
        else:
            value = await self.threads.run(functools.partial(_call_in_thread, run, dependencies))
        # A decorator may hide an async function in a plain one.
        return await value if isinstance(value, Awaitable) else value

    async def in_time(self, run: Run, invoke: Invoke | None) -> Any:
        """Run a task; an ``async def`` is cancelled a moment before the broker's timeout, or when it is asked to stop.

        A thread cannot be cancelled, so a ``def`` runs to its end, and is waited for unless the process ends. Raises
        the exception of the task, AttemptTimeout, or TimeoutError if it was asked to stop.
        """
        innermost = invoke if invoke is not None and run.task.parameters.dependencies else self._without_dependencies
        call = (chain(self._middleware, innermost) if self._middleware else innermost)(run)
        limit_s = run.context.time_left_s
        try:
            async with asyncio.timeout(limit_s if run.task.is_async else None) as limit:
                with _stoppable(run, limit):
                    value = await call
        except TimeoutError as error:
            if not limit.expired() or run.context.link.stop_reason is not None:
                raise
            raise AttemptTimeout(
                f"{run.task.name} was stopped after {limit_s:.3g} s, its time for one attempt"
            ) from error
        if limit.expired():  # the function has caught the CancelledError
            run.context.link.is_stop_seen = True
        return value

    def close(self) -> None:
        """Release the threads, without waiting for runs that still use them. Idempotent."""
        self.threads.close()

    async def _without_dependencies(self, run: Run) -> Any:
        return await self.call(run, {})


def _call_in_thread(run: Run, dependencies: Mapping[str, Any]) -> Any:
    """Call a ``def``. Raises Cancel if its call was cancelled while it waited for a thread."""
    if run.context.link.is_cancelled:
        raise Cancel(BY_CALLER)
    return run.task.parameters.call(run.task.function, run.values, run.context, dependencies)


@contextmanager
def _stoppable(run: Run, limit: asyncio.Timeout) -> Iterator[None]:
    """Let `limit` expire when the run is asked to stop inside the block."""
    link, loop = run.context.link, asyncio.get_running_loop()
    grace_s = 0 if run.task.is_async else THREAD_GRACE_S

    def expire() -> None:
        with suppress(RuntimeError):  # the block has ended
            limit.reschedule(loop.time() + grace_s)

    def on_stop(reason: StopReason) -> None:
        if run.task.is_async or reason is StopReason.DRAIN:
            with suppress(RuntimeError):  # the loop has closed
                loop.call_soon_threadsafe(expire)

    link.on_stop = on_stop
    if link.stop_reason is not None:
        on_stop(link.stop_reason)
    try:
        yield
    finally:
        link.on_stop = None
