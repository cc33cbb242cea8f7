"""The tasks of an application or router by name, and the decorators that declare them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Unpack, overload

from qtasks.api_names import ApiNames
from qtasks.error_codes import ErrorCode
from qtasks.errors import ArgumentsError, ConfigurationError, DefinitionError
from qtasks.tasks import decorators, definition
from qtasks.tasks.decorators import ScheduleDecorator, TaskDecorator
from qtasks.tasks.definition import Definition
from qtasks.tasks.options import Span, TaskOptions
from qtasks.tasks.task import AsyncTask, SyncTask, Task

if TYPE_CHECKING:
    from qtasks.protocol.cron import Cron
    from qtasks.tasks.llm.llm_options import LlmOptions
    from qtasks.tasks.llm.llm_task import LlmDecorator
    from qtasks.tasks.llm.providers import Provider
    from qtasks.tasks.schedules.declaration import DeclarationOptions
    from qtasks.tasks.send.runtime_port import Runtime

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Registry(ApiNames):
    """Tasks by name. Tasks of a router that is included in another registry belong to both."""

    _internal = frozenset(
        {"add", "conf", "control", "get_runtime", "join", "lifespan_if_missing", "running_on", "runtime"}
    )

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self._tasks: dict[str, Task[..., Any]] = {}
        self._names: dict[str, Task[..., Any]] = {}
        """The tasks by name and by alias."""
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
        """Turn a function into a task: ``@tasks.task`` or ``@tasks.task(retries=5, timeout="30s")``.

        `name` is the name of the task; that of the function by default. `aliases` are earlier names: calls with these
        names run the task too, so that it can be renamed while calls are on their way. Raises DefinitionError for a
        name that is already used, an invalid option, or a function that cannot be a task.
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
        """Turn a function that returns chat messages into a task that a language model carries out.

        ``@tasks.llm(provider=openai(), model="gpt-4o-mini", output=Summary)``. `.delay()` calls the function, and the
        broker sends its messages to the provider, so that no process waits for the answer. The dispatcher receives the
        answer and validates it against `output` (a pydantic model or similar; None: any text). If it does not fit, the
        model is asked once more. The function of `on_completion` gets the validated answer. Without a `provider`, the
        model of the QStash service answers. `name` and `aliases` are as for `task`. Raises DefinitionError.
        """
        from qtasks.tasks.llm import llm_task, providers

        options = {**options, "model": model, "output": output, "provider": provider or providers.upstash()}
        return functools.partial(
            self._declare, name=name, aliases=aliases, options=options, make=llm_task.make_llm_task
        )

    def cron(self, expression: str, /, **options: Unpack[DeclarationOptions]) -> ScheduleDecorator:
        """Run a function on a schedule: ``@tasks.cron("0 9 * * MON-FRI", tz="Europe/Berlin")``.

        Turns the function into a task, with the options of `task`. Above `task` or another `cron` it adds one more
        schedule to that task, which needs a name: ``@tasks.cron("0 12 * * SAT", schedule="weekend")``. The runs have
        no arguments unless they are set here: ``args=[7]``, ``kwargs={"days": 7}``. A sync makes the schedule active;
        see `QTasks.schedules`.

        Raises DefinitionError: QT104 for an invalid expression (with a caret under the field), QT105 for dates that
        never come, QT106 for an unknown time zone, and as `task`.
        """
        from qtasks.tasks.schedules import recurrence

        return self._scheduled(recurrence.at(expression, options.get("tz")), options)

    def every(self, span: Span, /, **options: Unpack[DeclarationOptions]) -> ScheduleDecorator:
        """As `cron`, at an interval that follows the clock: ``@tasks.every("15m")`` runs at :00, :15, :30 and :45.

        Valid are minutes that divide an hour, hours that divide a day, a day, and a week. Raises DefinitionError for
        any other interval, because no cron expression can express it.
        """
        from qtasks.tasks.schedules import recurrence

        return self._scheduled(recurrence.every(span, options.get("tz")), options)

    def include_router(self, router: TaskRouter) -> None:
        """Include the tasks of `router`, also those declared later. Raises DefinitionError for a name used already."""
        router.join(self)

    def get_runtime(self) -> Runtime:
        """The runtime of the application. Raises ConfigurationError if there is no application."""
        raise NotImplementedError

    def _declare(
        self,
        function: Callable[..., Any],
        *,
        name: str | None,
        aliases: Sequence[str],
        options: Mapping[str, Any],
        make: Callable[..., Task[..., Any]] = decorators.make_task,
    ) -> Task[..., Any]:
        full_name = f"{self.prefix}{getattr(function, '__name__', '') if name is None else name}"
        task = make(self.get_runtime, function, name=full_name, options=options)
        decorators.check_function(task.name, function, options)
        task.definition = Definition.of(function)
        task.declared_in = definition.caller_module()
        task.aliases = tuple(decorators.check_name(f"{self.prefix}{alias}") for alias in aliases)
        self.add(task, task.aliases)
        return task

    def _scheduled(self, timing: Cron, options: Mapping[str, Any]) -> ScheduleDecorator:
        # Imported here: many programs have no schedules.
        from qtasks.tasks.schedules.declaration import ScheduleOptions, declaration_error, declare, title

        task_options = dict(options)
        name = task_options.pop("schedule", "")
        schedule_options = {
            option: task_options.pop(option) for option in ScheduleOptions.__annotations__ if option in task_options
        }

        def decorate(function: Any, /) -> Any:
            if isinstance(function, Task):
                task = self._own_task(function, task_options)
            else:
                task = self.task(**task_options)(function)
            try:
                task.declare(declare(task, timing, name, schedule_options))
            except ArgumentsError as error:
                raise declaration_error(error, title(task.name, name)) from None
            return task

        return decorate

    def _own_task(self, task: Task[..., Any], options: Mapping[str, Any]) -> Task[..., Any]:
        """`task`, if it is declared here and `options` are empty: it gets one more schedule."""
        if options:
            raise DefinitionError(
                f"{task.name} is a task already: {', '.join(options)} cannot be set any more",
                fix="set options in the lowest decorator, which makes the task",
                code=ErrorCode.OPTION_INVALID,
            )
        declared = self._tasks.get(task.name)
        if declared is not None and declared.__wrapped__ is task.__wrapped__:
            return task
        if declared is not None and declared.definition.replaces(task.definition):
            return declared
        raise DefinitionError(f"{task.name} is a task of another application; schedule it there")

    def add(self, task: Task[..., Any], aliases: Sequence[str]) -> None:
        """Add a task, here and where this registry is included. Raises DefinitionError for a name used already.

        The earlier definition of the same task is replaced: its module was imported twice or reloaded, or its cell of
        a notebook was run again. Calls that run go on with it. Its hooks that are declared elsewhere are kept.
        """
        earlier = self._tasks.get(task.name)
        if earlier is not None and not _is_again(task, earlier):
            earlier = None
        for name in (task.name, *aliases):
            if (other := self._names.get(name)) is not None and other is not earlier:
                raise DefinitionError(
                    f"there are two tasks named {name!r}: {definition.place(other.__wrapped__)} and "
                    f"{definition.place(task.__wrapped__)}",
                    fix='rename one, or @tasks.task(name="...")',
                )
        if self._parent is not None:
            self._parent.add(task, aliases)
        if earlier is not None:
            for alias in [name for name, named in self._names.items() if named is earlier]:
                del self._names[alias]
            if self._parent is None:
                task.hooks.keep(earlier.hooks, earlier.definition)
        self._tasks[task.name] = task
        self._names.update(dict.fromkeys((task.name, *aliases), task))


class TaskRouter(Registry):
    """Tasks that another module declares, for an application that includes them: ``tasks.include_router(router)``.

    `prefix` is put in front of the name of each task, such as ``"mail."``; empty by default. The tasks can be called
    as soon as the router is included.
    """

    def join(self, parent: Registry) -> None:
        """Include the tasks in `parent`. Raises DefinitionError if they are included already."""
        if self._parent is not None:
            raise DefinitionError(f"the router {self.prefix!r} is included twice: its tasks would run in two places")
        if parent is self:
            raise DefinitionError("a router cannot include itself")
        for task in self._tasks.values():
            parent.add(task, [name for name, named in self._names.items() if named is task and name != task.name])
        self._parent = parent

    def get_runtime(self) -> Runtime:
        """See `Registry.get_runtime`."""
        if self._parent is None:
            raise ConfigurationError(
                f"the tasks of the router {self.prefix!r} are not included in an application",
                fix="tasks.include_router(router)",
            )
        return self._parent.get_runtime()

    def __repr__(self) -> str:
        return f"<TaskRouter {self.prefix!r} of {len(self._tasks)} tasks>"


def _is_again(task: Task[..., Any], earlier: Task[..., Any]) -> bool:
    """True if `task` is the earlier one, defined once more."""
    if task.__wrapped__ is earlier.__wrapped__:
        return task.options == earlier.options and task.belongs_with(earlier)
    return type(task).is_llm == type(earlier).is_llm and task.definition.replaces(earlier.definition)
