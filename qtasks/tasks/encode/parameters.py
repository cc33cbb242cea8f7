"""The parameters of a task: arguments are bound and checked at the call, and again where the task runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from qtasks.error_codes import ErrorCode
from qtasks.errors import ArgumentsError, DefinitionError, did_you_mean
from qtasks.masking import MASK, is_secret_name, mask_pairs, mask_values, secrets_in
from qtasks.tasks.context import Injected, TaskContext, injected
from qtasks.tasks.encode.annotations import (
    UNTYPED_RESULT,
    WIRE,
    adapter,
    hints,
    loose_adapter,
    record_adapter,
    type_name,
)

_SHOWN = 80
"""Characters of a value in an error."""
_READ = 1000
"""Characters of a value that are searched for secrets, of which the first `_SHOWN` are shown."""

_STARS: Mapping[object, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_KEYWORD = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

Values = dict[str, Any]
"""Values by parameter name; those of `*args` and `**kwargs` are under the names of these parameters."""


@dataclass(frozen=True, slots=True)
class TaskParameters:
    """The parameters of one function: those that the caller passes, and those that the dispatcher fills."""

    task: str
    signature: str
    """The signature as text, without the parameters that the dispatcher fills."""
    positional: tuple[str, ...]
    keywords: frozenset[str]
    required: tuple[str, ...]
    spread: str | None
    """The name of ``*args``."""
    spread_keywords: str | None
    """The name of ``**kwargs``."""
    annotations: Mapping[str, Any]
    defaults: Mapping[str, Any]
    """The defaults of the caller's parameters."""
    contexts: tuple[str, ...]
    """The parameters that receive the `TaskContext`."""
    dependencies: tuple[inspect.Parameter, ...]
    """The parameters that receive FastAPI dependencies, with resolved annotations."""
    arguments: TypeAdapter[Values]
    result: TypeAdapter[Any] | None
    """Reads and writes the result as JSON; None if JSON cannot carry it."""
    result_name: str
    loose_result: TypeAdapter[Values] | None
    """Checks a value named `result` that may be pickled; None if it may not."""
    leading: tuple[inspect.Parameter, ...]
    """The parameters that must be passed by position."""

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Values:
        """The arguments by parameter name. Raises ArgumentsError for one that is missing, unexpected or given twice."""
        values: Values = dict(zip(self.positional, args, strict=False))
        if len(args) > len(self.positional):
            if self.spread is None:
                raise self._error(
                    f"takes {len(self.positional)} positional arguments, but {len(args)} were given",
                    ErrorCode.ARGUMENT_UNEXPECTED,
                )
            values[self.spread] = list(args[len(self.positional) :])
        extra: Values = {}
        for name, value in kwargs.items():
            if name not in self.keywords:
                extra[name] = value
            elif name in values:
                raise self._error(f"got two values for argument {name!r}", ErrorCode.ARGUMENT_UNEXPECTED)
            else:
                values[name] = value
        if extra:
            if self.spread_keywords is None:
                raise self._unexpected(next(iter(extra)))
            values[self.spread_keywords] = extra
        for name in self.required:
            if name not in values:
                raise self._error(f"argument {name!r} is missing", ErrorCode.ARGUMENT_MISSING)
        return values

    def check(self, values: Values, *, from_wire: bool = False) -> Values:
        """Convert values to their annotated types. Raises ArgumentsError that names argument, type and value."""
        try:
            if from_wire:
                return self.arguments.validate_python(values, context=WIRE, by_name=True, by_alias=True)
            return self.arguments.validate_python(values)
        except ValidationError as error:
            raise self._misfit(values, error) from None

    def to_json(self, values: Values) -> Values:
        """Checked values as plain JSON values, written by their declared types. Raises ArgumentsError (QT154)."""
        try:
            # Names, never aliases: of the two an alias may be different for reading and for writing.
            plain: Values = self.arguments.dump_python(values, mode="json", round_trip=True, by_alias=False)
        except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
            raise self.not_json(self._culprit(values), str(error)) from error
        return plain

    def some_to_json(self, values: Values, names: Sequence[str]) -> Values:
        """The checked values called `names` as plain JSON values, even if the arguments travel as a pickle.

        Raises ArgumentsError (QT154), and DefinitionError for a type that JSON cannot carry.
        """
        plain: Values = {}
        for name in names:
            if name in values:
                spread = name in (self.spread, self.spread_keywords)
                writer = adapter(Any if spread else self.annotations[name], where=f"{self.task}: parameter {name!r}")
                try:
                    plain[name] = writer.dump_python(writer.validate_python(values[name]), mode="json", round_trip=True)
                except (ValidationError, PydanticSerializationError, ValueError) as error:
                    raise self.not_json(name, str(error).splitlines()[0]) from None
        return plain

    def arrange(self, values: Values, positional: int) -> tuple[list[Any], dict[str, Any]]:
        """The reverse of `bind`, with the first `positional` arguments by position."""
        args = [values[name] for name in self.positional[:positional]]
        kwargs = {name: value for name, value in values.items() if name not in self.positional[:positional]}
        if self.spread is not None:
            args.extend(kwargs.pop(self.spread, ()))
        if self.spread_keywords is not None:
            kwargs.update(kwargs.pop(self.spread_keywords, {}))
        return args, kwargs

    def call(
        self,
        function: Callable[..., Any],
        values: Values,
        context: TaskContext | None = None,
        dependencies: Mapping[str, Any] = MappingProxyType({}),
    ) -> Any:
        """Call `function` with checked values, the context if it has a parameter for it, and resolved dependencies."""
        filled = {**values, **dict.fromkeys(self.contexts, context), **dependencies}
        if not self.leading and self.spread is None and self.spread_keywords is None:
            return function(**filled)
        args = [filled.pop(parameter.name, parameter.default) for parameter in self.leading]
        args.extend(filled.pop(self.spread, ()) if self.spread is not None else ())
        keywords = filled.pop(self.spread_keywords, {}) if self.spread_keywords is not None else {}
        return function(*args, **filled, **keywords)

    def not_json(self, path: str, reason: str) -> ArgumentsError:
        """The error for a value that JSON cannot carry."""
        return self._error(f"argument {path!r} cannot be written as JSON: {reason}", ErrorCode.ARGUMENT_NOT_JSON)

    def not_picklable(self, name: str, reason: str) -> ArgumentsError:
        """The error for an argument that cannot be pickled."""
        return self._error(f"argument {name!r} cannot be pickled: {reason}", ErrorCode.ARGUMENT_NOT_JSON)

    def _unexpected(self, name: str) -> ArgumentsError:
        if name in self.contexts or name in {parameter.name for parameter in self.dependencies}:
            return self._error(
                f"argument {name!r} is filled where the task runs and cannot be passed", ErrorCode.ARGUMENT_UNEXPECTED
            )
        guess = did_you_mean(name, sorted(self.keywords))
        return self._error(f"unexpected argument {name!r}{guess}", ErrorCode.ARGUMENT_UNEXPECTED)

    def _misfit(self, values: Values, error: ValidationError) -> ArgumentsError:
        first, *others = error.errors(include_url=False)
        name = str(first["loc"][0])
        path = _path(first["loc"], values)
        expected = type_name(self.annotations.get(name, inspect.Parameter.empty))
        rest = f" (and {len(others)} more)" if others else ""
        message = first["msg"]
        if is_secret_name(path):
            got, message = "a value that is not shown", mask_values(message, secrets_in(first["input"], is_secret=True))
        else:
            got = _shown(first["input"])
        # Without a declared type the value itself is the reason, and not its type.
        if first["type"] == "invalid-json-value":
            return self.not_json(path, f"{got} would not arrive as it is{rest}")
        return self._error(
            f"argument {path!r} expects {expected}, got {got}: {message}{rest}", ErrorCode.ARGUMENT_TYPE_WRONG
        )

    def _culprit(self, values: Values) -> str:
        """The argument that cannot be written: each one is written alone."""
        for name, value in values.items():
            try:
                self.arguments.dump_python({name: value}, mode="json", round_trip=True)
            except (PydanticSerializationError, ValueError, TypeError, RecursionError):
                return name
        return next(iter(values), "")

    def _error(self, text: str, code: str) -> ArgumentsError:
        return ArgumentsError(f"{self.task}: {text}", details={"signature": self.signature}, code=code)


def read_parameters(
    task: str,
    function: Callable[..., object],
    *,
    returns: Any = None,
    injectable: tuple[type, ...] = (),
    pickled: bool = False,
) -> TaskParameters:
    """Read the signature of `function`. Raises DefinitionError for one that cannot be a task's.

    `returns` is the type of the result if the function returns something else. Parameters of an `injectable` type may
    be ``= injected`` as well; the code that makes the values supplies them. `pickled`: the arguments are pickled, and
    so is a result that JSON cannot carry.
    """
    resolved = hints(function)
    if returns is not None:
        resolved["return"] = returns
    caller_parameters: list[inspect.Parameter] = []
    contexts: list[str] = []
    dependencies: list[inspect.Parameter] = []
    signature = inspect.signature(function)
    for parameter in signature.parameters.values():
        named = parameter.replace(annotation=resolved.get(parameter.name, inspect.Parameter.empty))
        if named.annotation in injectable and isinstance(named.default, Injected):
            caller_parameters.append(named)
        elif is_context(named):
            contexts.append(named.name)
        elif is_dependency(named):
            dependencies.append(named)
        else:
            caller_parameters.append(named)
    fields = {parameter.name: _field(parameter) for parameter in caller_parameters}
    return TaskParameters(
        task=task,
        signature=_written(task, caller_parameters, resolved.get("return", inspect.Parameter.empty)),
        positional=tuple(parameter.name for parameter in caller_parameters if parameter.kind in _POSITIONAL),
        keywords=frozenset(parameter.name for parameter in caller_parameters if parameter.kind in _KEYWORD),
        required=tuple(
            parameter.name
            for parameter in caller_parameters
            if parameter.default is inspect.Parameter.empty and parameter.kind in (*_POSITIONAL, *_KEYWORD)
        ),
        spread=_of_kind(caller_parameters, inspect.Parameter.VAR_POSITIONAL),
        spread_keywords=_of_kind(caller_parameters, inspect.Parameter.VAR_KEYWORD),
        annotations=MappingProxyType({parameter.name: parameter.annotation for parameter in caller_parameters}),
        defaults=MappingProxyType(
            {item.name: item.default for item in caller_parameters if item.default is not inspect.Parameter.empty}
        ),
        contexts=tuple(contexts),
        dependencies=tuple(dependencies),
        arguments=loose_adapter(task, fields) if pickled else record_adapter(task, fields, where=task),
        result=_result(task, resolved.get("return", inspect.Parameter.empty), pickled=pickled),
        result_name=type_name(resolved.get("return", inspect.Parameter.empty)),
        loose_result=loose_adapter(task, {"result": resolved.get("return", Any)}) if pickled else None,
        leading=_leading(signature),
    )


def _result(task: str, annotation: Any, *, pickled: bool) -> TypeAdapter[Any] | None:
    if annotation is inspect.Parameter.empty and not pickled:
        annotation = UNTYPED_RESULT
    try:
        return adapter(annotation, where=f"{task}: the result")
    except DefinitionError:
        if pickled:
            return None
        raise


def is_context(parameter: inspect.Parameter) -> bool:
    """True if the dispatcher fills `parameter` with the context. Raises DefinitionError if it is incomplete."""
    if parameter.default is injected or isinstance(parameter.default, Injected):
        if parameter.annotation not in (inspect.Parameter.empty, TaskContext):
            raise DefinitionError(
                f"parameter {parameter.name!r} is `= injected`, but only a TaskContext can be injected",
                fix=f"{parameter.name}: TaskContext = injected",
                code=ErrorCode.INJECTION_INVALID,
            )
        return True
    if parameter.annotation is TaskContext:
        raise DefinitionError(
            f"parameter {parameter.name!r} is a TaskContext without a default, so callers would have to pass it",
            fix=f"{parameter.name}: TaskContext = injected",
            code=ErrorCode.INJECTION_INVALID,
        )
    return False


def is_dependency(parameter: inspect.Parameter) -> bool:
    """True if FastAPI fills `parameter` (``= Depends(...)`` or ``Annotated[..., Depends()]``)."""
    # Looked up by module name: a task without dependencies does not need FastAPI to be imported.
    marks = (parameter.default, *getattr(parameter.annotation, "__metadata__", ()))
    return any(
        base.__module__ == "fastapi.params" and base.__name__ == "Depends"
        for mark in marks
        for base in type(mark).__mro__
    )


def _field(parameter: inspect.Parameter) -> Any:
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return list if parameter.annotation is inspect.Parameter.empty else list[parameter.annotation]  # type: ignore[name-defined]
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        return dict if parameter.annotation is inspect.Parameter.empty else dict[str, parameter.annotation]  # type: ignore[name-defined]
    return parameter.annotation


def _of_kind(parameters: Sequence[inspect.Parameter], kind: object) -> str | None:
    return next((parameter.name for parameter in parameters if parameter.kind is kind), None)


def _leading(signature: inspect.Signature) -> tuple[inspect.Parameter, ...]:
    """The parameters passed by position: all before a ``*args``, otherwise only positional-only ones."""
    parameters = signature.parameters.values()
    spread = any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters)
    kinds = _POSITIONAL if spread else (inspect.Parameter.POSITIONAL_ONLY,)
    return tuple(parameter for parameter in parameters if parameter.kind in kinds)


def _written(task: str, parameters: Sequence[inspect.Parameter], returns: Any) -> str:
    parts: list[str] = []
    for parameter in parameters:
        star = _STARS.get(parameter.kind, "")
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not any(part.startswith("*") for part in parts):
            parts.append("*")
        text = star + parameter.name
        if parameter.annotation is not inspect.Parameter.empty:
            text += f": {type_name(parameter.annotation)}"
        if parameter.default is not inspect.Parameter.empty:
            is_shown = not parameter.default or not is_secret_name(parameter.name)
            text += f" = {_cut(repr(parameter.default)) if is_shown else MASK}"
        parts.append(text)
    arrow = "" if returns is inspect.Parameter.empty else f" -> {type_name(returns)}"
    return f"{task}({', '.join(parts)}){arrow}"


def _path(location: tuple[int | str, ...], values: object) -> str:
    """The path of a value in the arguments: ``user.created``, ``rows[3]``.

    pydantic inserts names of its own, such as those of union members; the values show which names are theirs.
    """
    text = ""
    here: object = values
    for step in location:
        if isinstance(step, int):
            text += f"[{step}]"
            here = here[step] if isinstance(here, Sequence) and step < len(here) else None
        elif isinstance(here, Mapping):
            if step in here or step == location[-1]:
                text += f".{step}" if text else step
                here = here.get(step)
        elif hasattr(here, step):
            text += f".{step}"
            here = getattr(here, step)
    return text


def _shown(value: object) -> str:
    try:
        return f"{_cut(mask_pairs(repr(value)[:_READ]))} ({type(value).__name__})"
    except Exception:  # `repr` of the user's class may raise anything, and an integer may have too many digits
        return f"a {type(value).__name__}"


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
