"""What the declaring decorators return, as type checkers see it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from qtasks.tasks.task import AsyncTask, SyncTask, Task

P = ParamSpec("P")
R = TypeVar("R")
K = TypeVar("K", bound=Task[..., Any])


class TaskDecorator(Protocol):
    """What ``@tasks.task(...)`` returns: makes a task of a function."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a coroutine function is the special case, so it comes first
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> SyncTask[P, R]: ...


class ScheduleDecorator(Protocol):
    """What ``@tasks.cron(...)`` returns: makes a task of a function, or gives a task one more schedule."""

    @overload
    def __call__(self, task: K, /) -> K: ...  # type: ignore[overload-overlap]  # a task is a function, too
    @overload
    def __call__(  # type: ignore[overload-overlap]  # as of TaskDecorator
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> SyncTask[P, R]: ...
