"""Making tasks of functions: what a decorator takes, and what it gives back."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError
from qtasks.tasks import options as call_options
from qtasks.tasks.options import TaskOptions
from qtasks.tasks.task import AsyncTask, SyncTask, Task

if TYPE_CHECKING:
    from qtasks.tasks.send.runtime_port import Runtime

P = ParamSpec("P")
R = TypeVar("R")
K = TypeVar("K", bound=Task[..., Any])

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


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


def check_name(name: str) -> str:
    """`name`, if a task may have it. Raises DefinitionError."""
    if _NAME.fullmatch(name) is None:
        raise DefinitionError(
            f"{name!r} is no name for a task: 1 to 128 letters, digits, _ . -",
            fix='@tasks.task(name="...")',
        )
    return name


def make(
    bound: Callable[[], Runtime], function: Callable[..., Any], *, name: str, options: Mapping[str, Any]
) -> Task[..., Any]:
    """A task of `function`. Raises DefinitionError for a name, an option or a function that cannot work."""
    if not inspect.isfunction(function):
        raise DefinitionError(
            f"{function!r} is not a function written with def or async def",
            fix="put @tasks.task first, above nothing but other decorators of plain functions",
            code=ErrorCode.NOT_A_FUNCTION,
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise DefinitionError(
            f"{function.__qualname__} yields; a task returns one result", code=ErrorCode.NOT_A_FUNCTION
        )
    call_options.check(check_name(name), options, allowed=tuple(TaskOptions.__annotations__))
    is_async = inspect.iscoroutinefunction(inspect.unwrap(function)) or inspect.iscoroutinefunction(function)
    kind = AsyncTask if is_async else SyncTask
    return kind(bound, function, name=name, options=options)
