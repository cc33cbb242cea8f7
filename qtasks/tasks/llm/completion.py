"""Completions: the user's function that runs with a model's answer, as a task like any other."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError
from qtasks.lazy import lazy_property
from qtasks.tasks import options as call_options
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.codec import WireForm
from qtasks.tasks.definition import Definition
from qtasks.tasks.encode.parameter_reader import read_parameters
from qtasks.tasks.encode.parameters import TaskParameters, Values
from qtasks.tasks.llm.chat_messages import Usage
from qtasks.tasks.llm.output import Output
from qtasks.tasks.options import AttemptOptions

T = TypeVar("T")
CompletionParams = ParamSpec("CompletionParams")
Returned = TypeVar("Returned")


class Completion(BaseTask[..., T]):
    """The task that runs with a model's answer: it calls the user's function, and its result is the output.

    `task` is the LLM task that makes the request, `output` the type of its answer.
    """

    def __init__(
        self, task: BaseTask[..., T], output: Output[T], function: Callable[..., Any], options: Mapping[str, Any]
    ) -> None:
        if not inspect.isfunction(function) or not (parameters := inspect.signature(function).parameters):
            raise DefinitionError(
                f"{task.name}: a completion is a function that takes the output, not {function!r}",
                code=ErrorCode.COMPLETION_INVALID,
            )
        call_options.check(task.name, options, allowed=tuple(AttemptOptions.__annotations__))
        self._output_name = next(iter(parameters))
        complete = _returning_output(function, self._output_name)
        super().__init__(lambda: task.runtime, complete, name=task.name, options=options)
        self.is_async = inspect.iscoroutinefunction(complete)
        self.hooks = task.hooks
        self._task = task
        self._output = output
        self.declared = Definition(function)
        """Tells whether another function is this completion, defined once more."""

    @lazy_property
    def parameters(self) -> TaskParameters:
        """See `BaseTask.parameters`. Raises DefinitionError if one of them cannot be filled."""
        own = read_parameters(self.name, self.__wrapped__, returns=self._output.annotation, injectable=(Usage,))
        available = self._task.parameters.annotations
        required = [name for name in own.required if name != self._output_name and own.annotations[name] is not Usage]
        unknown = [name for name in required if name not in available]
        if unknown or own.positional[:1] != (self._output_name,) or own.spread or own.spread_keywords:
            problem = f"takes {unknown[0]!r}" if unknown else "does not name its parameters"
            raise DefinitionError(
                f"{self.name}: the completion {problem}; it can take the output first, then {', '.join(available)}, "
                "and parameters annotated with Usage, TaskContext or Depends",
                code=ErrorCode.COMPLETION_INVALID,
            )
        return own

    def wire_form(self) -> WireForm:
        """See `BaseTask.wire_form`: that of the LLM task."""
        return self._task.wire_form()

    def values(self, output: T, usage: Usage, arguments: Values) -> Values:
        """The values of the parameters: the output unchanged, the arguments of the call validated.

        Raises ArgumentsError.
        """
        annotations = self.parameters.annotations
        names = [name for name in annotations if name != self._output_name]
        usages = {name: usage for name in names if annotations[name] is Usage}
        others = {name: arguments[name] for name in names if name not in usages and name in arguments}
        return {self._output_name: output, **usages, **self.parameters.check(others, from_wire=True)}


class CompletionSlot(Generic[T]):
    """The one completion of an LLM task, which all its copies (`using`) share."""

    def __init__(self, task: BaseTask[..., T], output: Output[T]) -> None:
        self._task = task
        self._output = output
        self._declared: Completion[T] | None = None

    def declare(self, function: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Any]:
        """Make `function` the completion. Raises DefinitionError if there is one already."""
        definition = Definition.of(function)
        if self._declared is not None and not definition.replaces(self._declared.declared):
            raise DefinitionError(f"{self._task.name} has a completion already", code=ErrorCode.COMPLETION_INVALID)
        self._declared = Completion(self._task, self._output, function, options)
        return function

    @property
    def completion(self) -> Completion[T]:
        """The declared completion, or one that does nothing: the answer is then the result of the call."""
        return self._declared or self._default

    @lazy_property
    def _default(self) -> Completion[T]:
        async def nothing(output: Any) -> None: ...

        return Completion(self._task, self._output, nothing, {})


class CompletionDecorator(Protocol, Generic[T]):
    """The type of ``@task.on_completion(...)``: declares a function and returns it unchanged."""

    def __call__(
        self, function: Callable[Concatenate[T, CompletionParams], Returned], /
    ) -> Callable[Concatenate[T, CompletionParams], Returned]:
        """Run `function` with every answer."""
        ...


def _returning_output(function: Callable[..., Any], output_name: str) -> Callable[..., Any]:
    """Wrap `function`: the wrapper calls it and returns its first argument, the output."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def complete(*args: Any, **kwargs: Any) -> Any:
            await function(*args, **kwargs)
            return args[0] if args else kwargs[output_name]

        return complete

    @functools.wraps(function)
    def complete_in_thread(*args: Any, **kwargs: Any) -> Any:
        value = function(*args, **kwargs)
        output = args[0] if args else kwargs[output_name]
        # A decorator may wrap an async function in a plain one.
        return _awaited(value, output) if isinstance(value, Awaitable) else output

    return complete_in_thread


async def _awaited(value: Awaitable[Any], output: Any) -> Any:
    await value
    return output
