"""Calls the function of a run: on the loop or in a thread, inside the middleware, within the time of the attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from qtasks.tasks.context import RunLink
from qtasks.tasks.control import AttemptTimeout
from qtasks.tasks.run.run import Invoke, Run
from qtasks.tasks.run.run_middleware import RunMiddleware, chain
from qtasks.tasks.run.thread_pool import ThreadPool


class Runner:
    """Runs tasks: ``async def`` on the event loop, ``def`` in one of `threads`."""

    def __init__(self, threads: ThreadPool, middleware: Sequence[RunMiddleware]) -> None:
        self.threads = threads
        self._middleware = middleware
        self._links: set[RunLink] = set()

    async def call(self, run: Run, dependencies: Mapping[str, Any]) -> Any:
        """Call the function; a thread gets a copy of the context variables."""
        task = run.task
        if task.is_async:
            value = task.parameters.call(task.function, run.values, run.context, dependencies)
        else:
            value = await self.threads.run(
                lambda: task.parameters.call(task.function, run.values, run.context, dependencies)
            )
        # A decorator may hide an async function in a plain one.
        return await value if isinstance(value, Awaitable) else value

    async def in_time(self, run: Run, invoke: Invoke | None) -> Any:
        """Run a task; an ``async def`` is stopped a moment before the broker's timeout.

        Raises the exception of the task, or AttemptTimeout.
        """
        self._links.add(run.context.link)
        try:
            return await self._in_time(run, invoke)
        finally:
            self._links.discard(run.context.link)

    def close(self) -> None:
        """Release the threads, without waiting for runs that still use them. Idempotent."""
        self.threads.close()

    def ask_to_stop(self) -> None:
        """Ask every run to end: `TaskContext.should_stop` becomes true."""
        for link in list(self._links):
            link.request_stop()

    async def _in_time(self, run: Run, invoke: Invoke | None) -> Any:
        innermost = invoke if invoke is not None and run.task.parameters.dependencies else self._without_dependencies
        call = (chain(self._middleware, innermost) if self._middleware else innermost)(run)
        if not run.task.is_async:
            return await call
        limit_s = run.context.time_left_s
        try:
            async with asyncio.timeout(limit_s) as limit:
                return await call
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise AttemptTimeout(
                f"{run.task.name} was stopped after {limit_s:.3g} s, its time for one attempt"
            ) from error

    async def _without_dependencies(self, run: Run) -> Any:
        return await self.call(run, {})
