"""Decorators that turn functions into tasks: their types, and the check of function, name and options."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError
from qtasks.tasks import options as call_options
from qtasks.tasks.definition import is_method, qualified_name
from qtasks.tasks.encode.unfit_parameters import check_declared
from qtasks.tasks.options import TaskOptions
from qtasks.tasks.task import AsyncTask, SyncTask, Task

if TYPE_CHECKING:
    from qtasks.tasks.send.runtime_port import Runtime

P = ParamSpec("P")
R = TypeVar("R")
K = TypeVar("K", bound=Task[..., Any])

_MANAGERS = (contextlib.contextmanager(iter).__code__, contextlib.asynccontextmanager(iter).__code__)  # type: ignore[arg-type]
"""The code of every function that contextlib has made of a generator."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


class TaskDecorator(Protocol):
    """The type of ``@tasks.task(...)``: turns a function into a task."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a coroutine function is the special case, so it comes first
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> SyncTask[P, R]: ...


class ScheduleDecorator(Protocol):
    """The type of ``@tasks.cron(...)``: turns a function into a task, or adds a schedule to a task."""

    @overload
    def __call__(self, task: K, /) -> K: ...  # type: ignore[overload-overlap]  # a task is a function, too
    @overload
    def __call__(  # type: ignore[overload-overlap]  # see TaskDecorator
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> SyncTask[P, R]: ...


def check_name(name: str) -> str:
    """`name`, if it is a valid name of a task. Raises DefinitionError if not."""
    if _NAME.fullmatch(name) is None:
        raise DefinitionError(
            f"{name!r} is not a valid name for a task: 1 to 128 letters, digits, _ . -",
            fix='@tasks.task(name="...")',
        )
    if name.startswith("_"):
        raise DefinitionError(
            f"{name!r} begins with _: such names are those of the framework", fix='@tasks.task(name="...")'
        )
    return name


def make_task(
    get_runtime: Callable[[], Runtime], function: Callable[..., Any], *, name: str, options: Mapping[str, Any]
) -> Task[..., Any]:
    """Turn `function` into a task. Raises DefinitionError for an invalid name, option or function."""
    if not inspect.isfunction(function):
        raise DefinitionError(
            f"{function!r} is not a function written with def or async def",
            fix=_fix_for(function),
            code=ErrorCode.NOT_A_FUNCTION,
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function) or function.__code__ in _MANAGERS:
        raise DefinitionError(
            f"{qualified_name(function)} yields; a task returns one result",
            fix="return a list, or send one call for each value",
            code=ErrorCode.NOT_A_FUNCTION,
        )
    call_options.check(check_name(name), options, allowed=tuple(TaskOptions.__annotations__))
    # The outermost function decides: a plain wrapper of an async function may block, or run a loop of its own.
    task_class = AsyncTask if inspect.iscoroutinefunction(function) else SyncTask
    return task_class(get_runtime, function, name=name, options=options)


def check_function(task: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse a function, or an option, that cannot work, as far as its declaration shows it. Raises DefinitionError."""
    if is_method(function):
        raise DefinitionError(
            f"{qualified_name(function)} is a method: a call that is delivered later has no instance",
            fix="define the task at the top level of the module, and pass what it needs as arguments",
            code=ErrorCode.NOT_A_FUNCTION,
        )
    check_declared(task, function, options)


def _fix_for(function: object) -> str:
    if isinstance(function, (staticmethod, classmethod)):
        return "put @staticmethod above @tasks.task, or define the task at the top level of the module"
    if inspect.ismethod(function) or isinstance(function, type):
        return "define a function that makes the object and calls it"
    return "put @tasks.task above all other decorators; they must return plain functions"
