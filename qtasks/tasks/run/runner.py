"""One run of a task: called where it belongs, inside the middleware, and not for longer than its attempt may take."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qtasks.tasks.context import Stop, TaskContext
from qtasks.tasks.control import AttemptTimeout
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.encode.parameters import Values
from qtasks.tasks.run.run_middleware import RunMiddleware, chain
from qtasks.tasks.run.thread_pool import Workers
from qtasks.tasks.send.outgoing import Outgoing, again
from qtasks.tasks.task import Task


@dataclass(frozen=True, slots=True)
class Run:
    """A verified call with checked arguments, ready to run."""

    task: Task[..., Any]
    values: Values = field(repr=False)
    context: TaskContext
    envelope: Envelope = field(default=Envelope(None), repr=False)

    def again(self, delay_ms: int) -> Outgoing:
        """The message that has the call run once more, later."""
        return again(self.task.name, self.context.call_id, self.envelope, self.task.delivery_options.publish, delay_ms)

    def follow_up(self, value: Any) -> Outgoing | None:
        """The follow-up message if the call continues after its function returned; None if `value` is the result."""
        return self.task.follow_up(self.envelope, self.context.call_id, value)


Invoke = Callable[[Run], Awaitable[Any]]
"""Runs a task that wants dependencies; whoever has a framework supplies it."""


class Runner:
    """Runs tasks: ``async def`` on the loop, ``def`` in a thread of `workers`."""

    def __init__(self, workers: Workers, middleware: Sequence[RunMiddleware]) -> None:
        self._workers = workers
        self._middleware = middleware
        self._stops: set[Stop] = set()

    async def call(self, run: Run, dependencies: Mapping[str, Any]) -> Any:
        """Call the function, context variables carried along."""
        task = run.task
        if task.is_async:
            value = task.parameters.call(task.function, run.values, run.context, dependencies)
        else:
            value = await self._workers.run(
                lambda: task.parameters.call(task.function, run.values, run.context, dependencies)
            )
        # A decorator may hide an async function in a plain one.
        return await value if isinstance(value, Awaitable) else value

    async def in_time(self, run: Run, invoke: Invoke | None) -> Any:
        """Run a task; what can be stopped is stopped a moment before the broker gives the attempt up.

        Raises whatever the task raises, and AttemptTimeout.
        """
        self._stops.add(run.context.stop)
        try:
            return await self._in_time(run, invoke)
        finally:
            self._stops.discard(run.context.stop)

    def ask_to_stop(self) -> None:
        """Have every run know that it should come to an end."""
        for stop in list(self._stops):
            stop.ask()

    async def _in_time(self, run: Run, invoke: Invoke | None) -> Any:
        wants = run.task.parameters.dependencies and invoke is not None
        innermost = invoke if wants and invoke is not None else self._plainly
        call = chain(self._middleware, innermost)(run)
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

    async def _plainly(self, run: Run) -> Any:
        return await self.call(run, {})
