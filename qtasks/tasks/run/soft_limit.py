"""The soft time limit of an ``async def``: an exception that its function can catch, before its time is up.

The function is suspended at an ``await`` then. What it awaits is cancelled, and `SoftTimeLimitExceeded` is raised there
in place of `asyncio.CancelledError`, of which it is a subclass: code that cleans up after a cancellation (a task group,
a database driver) does so here, too. If the function does not catch it, the attempt has failed.

A thread has no such moment. An exception that another thread sets is raised between any two instructions, also inside
of a ``finally`` or while a lock is taken, and not at all in a call that blocks. So a ``def`` has no soft limit: it asks
`TaskContext.should_stop` and `TaskContext.time_left_s`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Generator
from typing import Any, Generic, TypeVar

from qtasks.tasks.control import AttemptTimeout, SoftTimeLimitExceeded

R = TypeVar("R")


class SoftLimit(Generic[R]):
    """Awaits `value`, in which SoftTimeLimitExceeded is raised after `limit_s`; `name` is that of the task."""

    def __init__(self, value: Awaitable[R], limit_s: float, name: str) -> None:
        self._coroutine = value if isinstance(value, Coroutine) else _awaited(value)
        self._text = f"{name} has run for {limit_s:.3g} s, its soft time limit"
        self._limit_s = limit_s
        self._running: asyncio.Task[Any] | None = None
        self._is_due = False
        self._cancelling = 0

    def __await__(self) -> Generator[Any, Any, R]:
        """Run the coroutine. Raises what it raises, and AttemptTimeout if it does not catch the exception."""
        self._running = asyncio.current_task()
        assert self._running is not None
        self._cancelling = self._running.cancelling()
        timer = asyncio.get_running_loop().call_later(self._limit_s, self._interrupt)
        try:
            return (yield from self._steps())
        except SoftTimeLimitExceeded as error:
            raise AttemptTimeout(self._text) from error
        finally:
            timer.cancel()

    def _steps(self) -> Generator[Any, Any, R]:
        """The coroutine step by step, as ``yield from`` runs it; a cancellation of ours is another exception there."""
        inner = self._coroutine.__await__()
        raised: BaseException | None = None
        while True:
            try:
                awaited = inner.send(None) if raised is None else inner.throw(raised)
            except StopIteration as end:
                result: R = end.value
                return result
            raised = None
            try:
                yield awaited
            except GeneratorExit:
                inner.close()
                raise
            except BaseException as error:
                raised = self._translated(error)

    def _interrupt(self) -> None:
        assert self._running is not None
        self._is_due = True
        self._running.cancel()

    def _translated(self, error: BaseException) -> BaseException:
        """`error`, or what stands for it in the coroutine if `_interrupt` alone has caused it."""
        if not self._is_due or not isinstance(error, asyncio.CancelledError):
            return error
        assert self._running is not None
        self._is_due = False
        is_ours = self._running.uncancel() <= self._cancelling  # no other code has cancelled the task as well
        return SoftTimeLimitExceeded(self._text) if is_ours else error


async def _awaited(value: Awaitable[R]) -> R:
    return await value
