"""What runs with the answer of a model: a function of the user's, as a task like any other."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError
from qtasks.tasks import options as call_options
from qtasks.tasks.encode.parameters import TaskParameters, Values, read_parameters
from qtasks.tasks.llm.chat_messages import Usage
from qtasks.tasks.options import AttemptOptions
from qtasks.tasks.task import Task

if TYPE_CHECKING:
    from qtasks.tasks.llm.llm_task import LlmTask

T = TypeVar("T")
CompletionParams = ParamSpec("CompletionParams")
Returned = TypeVar("Returned")


class CompletionSlot(Generic[T]):
    """What runs with the answers of a task and its copies: one function, or none."""

    def __init__(self, of: LlmTask[..., T]) -> None:
        self._of = of
        self._own: Completion[T] | None = None

    def take(self, function: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Any]:
        """Have `function` run with every answer. Raises DefinitionError."""
        if self._own is not None:
            raise DefinitionError(f"{self._of.name} has a completion already", code=ErrorCode.COMPLETION_INVALID)
        self._own = Completion(self._of, function, options)
        return function

    @property
    def taken(self) -> Completion[T]:
        """The one that there is; without one, nothing runs."""
        return self._own or self._none

    @functools.cached_property
    def _none(self) -> Completion[T]:
        async def nothing(output: Any) -> None: ...

        return Completion(self._of, nothing, {})


class Completion(Task[..., T]):
    """What runs with an answer, as a task: its function returns the output once the user's has returned."""

    def __init__(self, of: LlmTask[..., T], function: Callable[..., Any], options: Mapping[str, Any]) -> None:
        if not inspect.isfunction(function) or not (parameters := inspect.signature(function).parameters):
            raise DefinitionError(
                f"{of.name}: a completion is a function that takes the output, not {function!r}",
                code=ErrorCode.COMPLETION_INVALID,
            )
        call_options.check(of.name, options, allowed=tuple(AttemptOptions.__annotations__))
        self._first = next(iter(parameters))
        then = _then_output(function, self._first)
        super().__init__(lambda: of.runtime, then, name=of.name, options=options)
        self.is_async = inspect.iscoroutinefunction(then)
        self.hooks = of.hooks
        self._of = of

    @functools.cached_property
    def parameters(self) -> TaskParameters:
        """See `BaseTask.parameters`."""
        made = read_parameters(self.name, self.function, returns=self._of.output.annotation, injectable=(Usage,))
        known = self._of.parameters.annotations
        others = [name for name in made.required if name != self._first and made.annotations[name] is not Usage]
        unknown = [name for name in others if name not in known]
        if unknown or made.positional[:1] != (self._first,) or made.spread or made.spread_keywords:
            wrong = f"takes {unknown[0]!r}" if unknown else "does not say what it takes"
            raise DefinitionError(
                f"{self.name}: the completion {wrong}; it can have the output first, then {', '.join(known)}, and what "
                "is annotated Usage, TaskContext or Depends",
                code=ErrorCode.COMPLETION_INVALID,
            )
        return made

    def values(self, output: T, usage: Usage, arguments: Values) -> Values:
        """What the function is called with: the output as it is, the arguments checked. Raises ArgumentsError."""
        annotations = self.parameters.annotations
        named = [name for name in annotations if name != self._first]
        usages = {name: usage for name in named if annotations[name] is Usage}
        others = {name: arguments[name] for name in named if name not in usages and name in arguments}
        return {self._first: output, **usages, **self.parameters.check(others, from_wire=True)}


class CompletionDecorator(Protocol, Generic[T]):
    """What ``@task.on_completion(...)`` returns: takes a function, and leaves it as it is."""

    def __call__(
        self, function: Callable[Concatenate[T, CompletionParams], Returned], /
    ) -> Callable[Concatenate[T, CompletionParams], Returned]:
        """Have `function` run with every answer."""
        ...


def _then_output(function: Callable[..., Any], first: str) -> Callable[..., Any]:
    """A function that calls `function` and returns its first argument, the output."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def complete(*args: Any, **kwargs: Any) -> Any:
            await function(*args, **kwargs)
            return args[0] if args else kwargs[first]

        return complete

    @functools.wraps(function)
    def complete_in_thread(*args: Any, **kwargs: Any) -> Any:
        value = function(*args, **kwargs)
        output = args[0] if args else kwargs[first]
        # A decorator may hide an async function in a plain one.
        return _awaited(value, output) if isinstance(value, Awaitable) else output

    return complete_in_thread


async def _awaited(value: Awaitable[Any], output: Any) -> Any:
    await value
    return output
