"""Declaring tasks: what the application and its routers have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Unpack, overload

from qtasks.error_codes import ErrorCode
from qtasks.errors import ArgumentsError, ConfigurationError, DefinitionError
from qtasks.protocol.cron import Cron
from qtasks.tasks import decorators
from qtasks.tasks.decorators import ScheduleDecorator, TaskDecorator
from qtasks.tasks.options import Span, TaskOptions
from qtasks.tasks.schedules import recurrence
from qtasks.tasks.schedules.declaration import DeclarationOptions, ScheduleOptions, declaration_error, declare, title
from qtasks.tasks.task import AsyncTask, SyncTask, Task

if TYPE_CHECKING:
    from qtasks.tasks.llm.llm_options import LlmOptions
    from qtasks.tasks.llm.llm_task import LlmDecorator
    from qtasks.tasks.llm.providers import Provider
    from qtasks.tasks.send.runtime_port import Runtime

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Registry:
    """Tasks by name. What is declared in one that is included in another is in both."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self._tasks: dict[str, Task[..., Any]] = {}
        self._names: dict[str, Task[..., Any]] = {}
        """The tasks and, besides their names, their aliases."""
        self._parent: Registry | None = None

    @property
    def tasks(self) -> Mapping[str, Task[..., Any]]:
        """The tasks declared so far, by name."""
        return MappingProxyType(self._tasks)

    @overload
    def task(  # type: ignore[overload-overlap]  # a coroutine function is the special case, so it comes first
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> SyncTask[P, R]: ...
    @overload
    def task(
        self,
        function: None = None,
        /,
        *,
        name: str | None = None,
        aliases: Sequence[str] = (),
        **options: Unpack[TaskOptions],
    ) -> TaskDecorator: ...
    def task(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        aliases: Sequence[str] = (),
        **options: Any,
    ) -> Any:
        """Make a task of a function: ``@tasks.task`` or ``@tasks.task(retries=5, timeout="30s")``.

        Its name is the function's unless `name` says otherwise. Calls that were made under one of `aliases` run it as
        well, so that a task can be renamed while calls are on their way. Raises DefinitionError for a name taken
        already, an option that does not fit, or a function that cannot be a task.
        """
        if function is None:
            return functools.partial(self._declare, name=name, aliases=aliases, options=options)
        return self._declare(function, name=name, aliases=aliases, options=options)

    @overload
    def llm(
        self,
        *,
        model: str,
        output: type[T],
        provider: Provider | None = None,
        name: str | None = None,
        aliases: Sequence[str] = (),
        **options: Unpack[LlmOptions],
    ) -> LlmDecorator[T]: ...
    @overload
    def llm(
        self,
        *,
        model: str,
        output: None = None,
        provider: Provider | None = None,
        name: str | None = None,
        aliases: Sequence[str] = (),
        **options: Unpack[LlmOptions],
    ) -> LlmDecorator[str]: ...
    def llm(
        self,
        *,
        model: str,
        output: type[Any] | None = None,
        provider: Provider | None = None,
        name: str | None = None,
        aliases: Sequence[str] = (),
        **options: Any,
    ) -> Any:
        """Make a task that a language model does, of a function that makes messages of the arguments.

        ``@tasks.llm(provider=openai(), model="gpt-4o-mini", output=Summary)``. `.delay()` sends the request to the
        provider through the broker, so that nothing waits for the answer; that comes back to the dispatcher, is
        checked against `output` (a pydantic model or the like; None: text as it comes), asked for once more where it
        does not fit, and given to the function of `on_completion`. Without a `provider` the QStash service itself is
        asked. Names are as of `task`. Raises DefinitionError.
        """
        from qtasks.tasks.llm import llm_task as llm
        from qtasks.tasks.llm import providers

        said = {**options, "model": model, "output": output, "provider": provider or providers.upstash()}
        return functools.partial(self._declare, name=name, aliases=aliases, options=said, make=llm.make)

    def cron(self, expression: str, /, **options: Unpack[DeclarationOptions]) -> ScheduleDecorator:
        """Have a function run by the clock: ``@tasks.cron("0 9 * * MON-FRI", tz="Europe/Berlin")``.

        Makes a task of the function, with the options of `task`. Above `task` or another `cron` it gives that task one
        more schedule, which has a name: ``@tasks.cron("0 12 * * SAT", schedule="weekend")``. The function needs no
        arguments, or they are given: ``args=[7]``, ``kwargs={"days": 7}``. See `scheduling` for what makes it active.

        Raises DefinitionError: QT104 for an expression (with a caret under the field), QT105 for dates that never
        come, QT106 for an unknown zone, and as `task`.
        """
        return self._scheduled(recurrence.at(expression, options.get("tz")), options)

    def every(self, span: Span, /, **options: Unpack[DeclarationOptions]) -> ScheduleDecorator:
        """As `cron`, at an interval on the clock: ``@tasks.every("15m")`` runs at :00, :15, :30 and :45.

        Minutes that divide an hour, hours that divide a day, a day or a week; DefinitionError for any other, for no
        cron expression says it.
        """
        return self._scheduled(recurrence.every(span, options.get("tz")), options)

    def include_router(self, router: TaskRouter) -> None:
        """Take the tasks of `router`, those declared later too. Raises DefinitionError for a name taken already."""
        router.join(self)

    def bound(self) -> Runtime:
        """What the tasks run on. Raises ConfigurationError as long as there is nothing."""
        raise NotImplementedError

    def _declare(
        self,
        function: Callable[..., Any],
        *,
        name: str | None,
        aliases: Sequence[str],
        options: Mapping[str, Any],
        make: Callable[..., Task[..., Any]] = decorators.make,
    ) -> Task[..., Any]:
        given = f"{self.prefix}{getattr(function, '__name__', '')}" if name is None else f"{self.prefix}{name}"
        task = make(self.bound, function, name=given, options=options)
        task.aliases = tuple(decorators.check_name(f"{self.prefix}{alias}") for alias in aliases)
        self.add(task, task.aliases)
        return task

    def _scheduled(self, when: Cron, options: Mapping[str, Any]) -> ScheduleDecorator:
        said = dict(options)
        name = said.pop("schedule", "")
        schedule = {option: said.pop(option) for option in ScheduleOptions.__annotations__ if option in said}

        def decorate(function: Any, /) -> Any:
            task = self._known(function, said) if isinstance(function, Task) else self.task(**said)(function)
            try:
                task.declare(declare(task, when, name, schedule))
            except ArgumentsError as error:
                raise declaration_error(error, title(task.name, name)) from None
            return task

        return decorate

    def _known(self, task: Task[..., Any], options: Mapping[str, Any]) -> Task[..., Any]:
        """A task that gets one more schedule."""
        if options:
            raise DefinitionError(
                f"{task.name} is a task already: {', '.join(options)} cannot be said any more",
                fix="say it where the task is made, in the lowest decorator",
                code=ErrorCode.OPTION_INVALID,
            )
        mine = self._tasks.get(task.name)
        if mine is None or mine.function is not task.function:
            raise DefinitionError(f"{task.name} is a task of another application, which has to schedule it")
        return task

    def add(self, task: Task[..., Any], aliases: Sequence[str]) -> None:
        """Take a task in, here and wherever this is included. Raises DefinitionError for a name taken already."""
        for name in (task.name, *aliases):
            if (taken := self._names.get(name)) is not None:
                raise DefinitionError(
                    f"there are two tasks named {name!r}: {_place(taken.function)} and {_place(task.function)}",
                    fix='rename one, or @tasks.task(name="...")',
                )
        if self._parent is not None:
            self._parent.add(task, aliases)
        self._tasks[task.name] = task
        self._names.update(dict.fromkeys((task.name, *aliases), task))


class TaskRouter(Registry):
    """Tasks of a module of their own, to be included in an application: ``tasks.include_router(router)``.

    `prefix` begins the name of each, such as ``"mail."``. They can be called once the router is included.
    """

    def join(self, parent: Registry) -> None:
        """Become part of `parent`, once."""
        if self._parent is not None:
            raise DefinitionError(f"the router {self.prefix!r} is included twice: its tasks would run in two places")
        if parent is self:
            raise DefinitionError("a router cannot include itself")
        for task in self._tasks.values():
            parent.add(task, [name for name, one in self._names.items() if one is task and name != task.name])
        self._parent = parent

    def bound(self) -> Runtime:
        """See `Registry.bound`."""
        if self._parent is None:
            raise ConfigurationError(
                f"the tasks of the router {self.prefix!r} belong to no application",
                fix="tasks.include_router(router)",
            )
        return self._parent.bound()

    def __repr__(self) -> str:
        return f"<TaskRouter {self.prefix!r} of {len(self._tasks)} tasks>"


def _place(function: Callable[..., Any]) -> str:
    code = function.__code__
    return f"{function.__module__}.{function.__qualname__} ({code.co_filename}:{code.co_firstlineno})"
