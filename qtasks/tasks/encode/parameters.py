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
from qtasks.errors import ArgumentsError, did_you_mean
from qtasks.masking import is_secret_name, mask_values, secrets_in
from qtasks.tasks.context import TaskContext
from qtasks.tasks.encode.annotations import form, type_name
from qtasks.tasks.encode.equality import difference
from qtasks.tasks.encode.plain_form import without_made
from qtasks.tasks.encode.shown_values import path_of, shown
from qtasks.tasks.encode.typed_json import NotPortable, TypedJson

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
    arguments: TypedJson[Values]
    result: TypedJson[Any] | None
    """Reads and writes the result as JSON; None if JSON cannot carry it."""
    result_name: str
    loose_result: TypeAdapter[Values] | None
    """Checks a value named `result` that may be pickled; None if it may not."""
    leading: tuple[inspect.Parameter, ...]
    """The parameters that must be passed by position."""
    wrapped: tuple[inspect.Parameter, ...] = ()
    """The parameters that may be passed by position, if a decorator stands between the caller and them."""

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
            return self.arguments.read(values) if from_wire else self.arguments.check(values)
        except ValidationError as error:
            raise self._misfit(values, error, from_wire=from_wire) from None

    def without_defaults(self, values: Values) -> Values:
        """The checked values that do not equal their default."""
        return {name: value for name, value in values.items() if not self._is_default(name, value)}

    def _is_default(self, name: str, value: Any) -> bool:
        if name not in self.defaults:
            return False
        default = self.defaults[name]
        try:
            checked = self.arguments.check({name: default})[name]
        except ValidationError:  # a default of another type, such as None where a number is declared
            checked = default
        return difference(value, checked) is None

    def to_json(self, values: Values) -> Values:
        """Checked values as plain JSON values, written by their declared types. Raises ArgumentsError (QT154)."""
        try:
            plain: Values = self.arguments.write(values)
        except NotPortable as error:
            raise self.not_json(error.path, error.reason, fix=error.fix) from None
        except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
            raise self.not_json(self._culprit(values), str(error)) from error
        return plain

    def lasting_json(self, values: Values) -> Values:
        """As `to_json`, but the same in every process: without what a ``default_factory`` made."""
        return {name: without_made(values[name], plain) for name, plain in self.to_json(values).items()}

    def some_to_json(self, values: Values, names: Sequence[str]) -> Values:
        """The checked values called `names` as plain JSON values, even if the arguments travel as a pickle.

        Raises ArgumentsError (QT154), and DefinitionError for a type that JSON cannot carry.
        """
        plain: Values = {}
        for name in names:
            if name in values:
                spread = name in (self.spread, self.spread_keywords)
                annotation = Any if spread else self.annotations[name]
                written = form(annotation, where=f"{self.task}: parameter {name!r}", reveals_secrets=True)
                try:
                    plain[name] = written.write(written.check(values[name]))
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
        *,
        positional: int = 0,
    ) -> Any:
        """Call `function` with checked values, the context if it has a parameter for it, and resolved dependencies.

        A decorator gets the first `positional` arguments by position, as the caller passed them: its own parameters may
        have other names.
        """
        filled = {**values, **dict.fromkeys(self.contexts, context), **dependencies}
        leading = self._first(positional) if positional and self.wrapped else self.leading
        if not leading and self.spread is None and self.spread_keywords is None:
            return function(**filled)
        args = [filled.pop(parameter.name, parameter.default) for parameter in leading]
        args.extend(filled.pop(self.spread, ()) if self.spread is not None else ())
        keywords = filled.pop(self.spread_keywords, {}) if self.spread_keywords is not None else {}
        return function(*args, **filled, **keywords)

    def not_json(self, path: str, reason: str, *, fix: str | None = None) -> ArgumentsError:
        """The error for a value that JSON cannot carry."""
        text = f"argument {path!r} cannot be written as JSON: {reason}"
        return self._error(text, ErrorCode.ARGUMENT_NOT_JSON, fix=fix)

    def not_picklable(self, name: str, reason: str) -> ArgumentsError:
        """The error for an argument that cannot be pickled."""
        return self._error(f"argument {name!r} cannot be pickled: {reason}", ErrorCode.ARGUMENT_NOT_JSON)

    def _first(self, positional: int) -> Sequence[inspect.Parameter]:
        """The parameters up to the caller's one at place `positional`, and all that must be passed by position."""
        last = self.positional[min(positional, len(self.positional)) - 1]
        names = [parameter.name for parameter in self.wrapped]
        return self.wrapped[: max(names.index(last) + 1, len(self.leading))]

    def _unexpected(self, name: str) -> ArgumentsError:
        if name in self.contexts or name in {parameter.name for parameter in self.dependencies}:
            return self._error(
                f"argument {name!r} is filled where the task runs and cannot be passed", ErrorCode.ARGUMENT_UNEXPECTED
            )
        guess = did_you_mean(name, sorted(self.keywords))
        return self._error(f"unexpected argument {name!r}{guess}", ErrorCode.ARGUMENT_UNEXPECTED)

    def _misfit(self, values: Values, error: ValidationError, *, from_wire: bool) -> ArgumentsError:
        first, *others = error.errors(include_url=False)
        name = str(first["loc"][0])
        path = path_of(first["loc"], values)
        expected = type_name(self.annotations.get(name, inspect.Parameter.empty))
        rest = f" (and {len(others)} more)" if others else ""
        message = first["msg"]
        if is_secret_name(path):
            got, message = "a value that is not shown", mask_values(message, secrets_in(first["input"], is_secret=True))
        else:
            got = shown(first["input"])
        # Without a declared type the value itself is the reason, and not its type.
        if first["type"] == "invalid-json-value":
            return self.not_json(path, f"{got} would not arrive as it is{rest}")
        # A field that a model forbids is one of a newer version of the model, as an argument that is unknown.
        is_newer = from_wire and all(problem["type"] == "extra_forbidden" for problem in (first, *others))
        code = ErrorCode.ARGUMENT_UNEXPECTED if is_newer else ErrorCode.ARGUMENT_TYPE_WRONG
        return self._error(f"argument {path!r} expects {expected}, got {got}: {message}{rest}", code)

    def _culprit(self, values: Values) -> str:
        """The argument that cannot be written: each one is written alone."""
        for name, value in values.items():
            try:
                self.arguments.write({name: value})
            except (PydanticSerializationError, ValueError, TypeError, RecursionError):
                return name
        return next(iter(values), "")

    def _error(self, text: str, code: str, *, fix: str | None = None) -> ArgumentsError:
        return ArgumentsError(f"{self.task}: {text}", details={"signature": self.signature}, fix=fix, code=code)
