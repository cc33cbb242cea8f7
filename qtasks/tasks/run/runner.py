"""Calls the function of a run: on the loop or in a thread, inside the middleware, within the time of the attempt."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from asyncio import Future
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import CoroutineType
from typing import Any

from qtasks.tasks.context import ThreadUse
from qtasks.tasks.control import BY_CALLER, AttemptTimeout, Cancel
from qtasks.tasks.run.run import Invoke, Run
from qtasks.tasks.run.run_middleware import RunMiddleware, chain
from qtasks.tasks.run.soft_limit import SoftLimit
from qtasks.tasks.run.thread_pool import Raised, ThreadPool, returned
from qtasks.tasks.run.time_limit import TimeLimit


class Runner:
    """Runs tasks: ``async def`` on the event loop, ``def`` in one of `threads`."""

    def __init__(self, threads: ThreadPool, middleware: Sequence[RunMiddleware]) -> None:
        self.threads = threads
        self._middleware = middleware

    async def call(self, run: Run, dependencies: Mapping[str, Any]) -> Any:
        """Call the function; a thread gets a copy of the context variables."""
        if run.task.is_async:
            value = _called(run, dependencies)
            if (limit_ms := run.task.delivery_options.soft_limit_ms) is not None:
                return await SoftLimit(value, limit_ms / 1000, run.task.name)
            # Asking for a coroutine first saves the search through the registered classes.
            return await value if type(value) is CoroutineType or isinstance(value, Awaitable) else value
        return await _rest(run, returned(await self._started(run, dependencies)))

    async def in_time(self, run: Run, invoke: Invoke | None, running: asyncio.Task[Any]) -> Any:
        """Run a task, until a moment before the broker's timeout or until it is asked to stop.

        `running` is the asyncio task that runs here.

        An ``async def`` is then cancelled. A thread cannot be cancelled: a ``def`` runs on to its end, with the
        dependencies and the middleware around it, and is not awaited. Raises the exception of the task,
        AttemptTimeout, or TimeoutError if it was asked to stop.
        """
        link, is_async = run.context.link, run.task.is_async
        if not is_async:
            link.thread = ThreadUse()
        limit_s = link.left_s() + (0 if is_async else link.grace_s)
        limit = TimeLimit(run, limit_s, running)
        try:
            value = await self._in_layers(run, invoke)
        except BaseException as error:
            # The function may have made a TimeoutError of the cancellation.
            is_timeout = limit.has_caused(error) or (limit.is_expired and isinstance(error, TimeoutError))
            if not is_timeout:
                raise
            raise (TimeoutError() if link.stop_reason is not None else self._timeout(run, limit_s)) from error
        limit.has_caused(None)
        if limit.is_expired:  # the function has caught the CancelledError
            link.is_stop_seen = True
        return value

    def _timeout(self, run: Run, limit_s: float) -> AttemptTimeout:
        name, thread = run.task.name, run.context.link.thread
        its_time = f"{limit_s:.3g} s, its time for one attempt"
        if thread.overrun is not None:
            return AttemptTimeout(f"{name} did not end within {its_time}; its thread runs on, its result is dropped")
        if thread.is_waiting:
            return AttemptTimeout(f"{name} did not begin within {its_time}: all {self.threads.size} threads were busy")
        return AttemptTimeout(f"{name} was stopped after {its_time}")

    def close(self) -> None:
        """Release the threads, without waiting for runs that still use them. Idempotent."""
        self.threads.close()

    def _in_layers(self, run: Run, invoke: Invoke | None) -> Awaitable[Any]:
        """Call the function inside of the middleware, with its dependencies."""
        has_dependencies = invoke is not None and run.task.parameters.dependencies
        if not self._middleware and not has_dependencies:
            return self.call(run, {}) if run.task.is_async else self._alone_in_thread(run)
        innermost = invoke if invoke is not None and has_dependencies else self._without_dependencies
        whole = chain(self._middleware, innermost)(run)
        return whole if run.task.is_async else _apart(run, asyncio.ensure_future(_caught(whole)))

    async def _alone_in_thread(self, run: Run) -> Any:
        """Call a ``def`` that has nothing around it: no asyncio task is needed that outlives the attempt."""
        return await _rest(run, await _apart(run, self._started(run, {})))

    async def _without_dependencies(self, run: Run) -> Any:
        return await self.call(run, {})

    def _started(self, run: Run, dependencies: Mapping[str, Any]) -> Future[Any]:
        """Begin to call a ``def`` in a thread. The future gets what it returns, or a `Raised`."""
        run.context.link.thread.is_waiting = True
        return self.threads.start(functools.partial(_call_in_thread, run, dependencies))


@dataclass(frozen=True, slots=True)
class _Awaitable:
    """What a plain wrapper of an async function returned in a thread, with the context variables that it has set."""

    awaitable: Awaitable[Any]
    context: contextvars.Context

    async def on_loop(self, run: Run) -> Any:
        """Await it here, as the caller of the wrapper would. From now on the run can be cancelled."""
        run.context.link.thread.is_left = True
        if run.context.link.is_cancelled:
            if isinstance(self.awaitable, Coroutine):
                self.awaitable.close()
            raise Cancel(BY_CALLER)
        return await asyncio.create_task(_awaited(self.awaitable), context=self.context)


async def _rest(run: Run, value: Any) -> Any:
    """What a ``def`` returned, or what it comes to if that is an awaitable."""
    return await value.on_loop(run) if isinstance(value, _Awaitable) else value


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _called(run: Run, dependencies: Mapping[str, Any]) -> Any:
    parameters, envelope = run.task.parameters, run.envelope
    positional = len(envelope.args)
    if not positional and not envelope.kwargs:  # the arguments are not readable in the envelope
        positional = sum(name in run.values for name in parameters.positional)
    return parameters.call(run.task.__wrapped__, run.values, run.context, dependencies, positional=positional)


def _call_in_thread(run: Run, dependencies: Mapping[str, Any]) -> Any:
    """Call a ``def``. Raises Cancel if its call was cancelled while it waited for a thread."""
    link = run.context.link
    if link.is_cancelled:
        raise Cancel(BY_CALLER)
    if not link.thread.begin():
        return None  # the attempt has ended
    try:
        value = _called(run, dependencies)
    finally:
        link.thread.end()
    if not isinstance(value, Awaitable):
        return value
    if link.thread.is_refused and isinstance(value, Coroutine):  # the attempt has ended
        value.close()
        return None
    return _Awaitable(value, contextvars.copy_context())


async def _apart(run: Run, ended: Future[Any]) -> Any:
    """Await the outcome of a ``def``, `ended`. A cancellation leaves it alone while the function is in a thread."""
    thread = run.context.link.thread
    try:
        outcome = await asyncio.shield(ended)
    except asyncio.CancelledError:
        if thread.refuse():
            thread.overrun = ended
        else:
            ended.cancel()
        raise
    return returned(outcome)


async def _caught(call: Awaitable[Any]) -> Any:
    """Return exceptions as values: asyncio would end its loop for some of them."""
    try:
        return await call
    except BaseException as error:
        return Raised(error)
