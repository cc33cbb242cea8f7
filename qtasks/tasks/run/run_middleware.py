"""The application's coroutine functions around each run: ``async def timed(run, call_next): ...``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from qtasks.tasks.run.run import Run

CallNext = Callable[[Run], Awaitable[Any]]
RunMiddleware = Callable[[Run, CallNext], Awaitable[Any]]

M = TypeVar("M", bound=RunMiddleware)


def chain(middleware: Sequence[RunMiddleware], innermost: CallNext) -> CallNext:
    """`innermost` inside of all `middleware`; the first one is the outermost."""
    call = innermost
    for layer in reversed(middleware):
        call = _around(layer, call)
    return call


def _around(layer: RunMiddleware, call_next: CallNext) -> CallNext:
    async def call(run: Run) -> Any:
        return await layer(run, call_next)

    return call
