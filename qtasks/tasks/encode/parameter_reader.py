"""The signature of a task's function: which parameters the caller passes, and which the dispatcher fills."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError
from qtasks.masking import MASK, is_secret_name
from qtasks.tasks.context import Injected, TaskContext, injected
from qtasks.tasks.encode.annotations import UNTYPED_RESULT, form, hints, loose_adapter, record_form, type_name
from qtasks.tasks.encode.parameters import TaskParameters
from qtasks.tasks.encode.shown_values import cut
from qtasks.tasks.encode.typed_json import TypedJson
from qtasks.tasks.encode.unfit_parameters import check_fillable, is_depends, unaliased

_STARS: Mapping[object, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_KEYWORD = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def read_parameters(
    task: str,
    function: Callable[..., object],
    *,
    returns: Any = None,
    injectable: tuple[type, ...] = (),
    pickled: bool = False,
    reveals_secrets: bool = False,
) -> TaskParameters:
    """Read the signature of `function`. Raises DefinitionError for one that cannot be a task's.

    `returns` is the type of the result if the function returns something else. Parameters of an `injectable` type may
    be ``= injected`` as well; the code that makes the values supplies them. `pickled`: the arguments are pickled, and
    so is a result that JSON cannot carry. `reveals_secrets`: they are encrypted, so secrets are written as they are.
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
        check_fillable(task, named)
        if named.annotation in injectable and isinstance(named.default, Injected):
            caller_parameters.append(named)
        elif is_dependency(named):
            dependencies.append(_without_mark(named))
        elif is_context(named):
            contexts.append(named.name)
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
        arguments=TypedJson(loose_adapter(task, fields))
        if pickled
        else record_form(task, fields, where=task, reveals_secrets=reveals_secrets),
        result=_result(
            task,
            resolved.get("return", inspect.Parameter.empty),
            pickled=pickled,
            reveals_secrets=reveals_secrets,
        ),
        result_name=type_name(resolved.get("return", inspect.Parameter.empty)),
        loose_result=loose_adapter(task, {"result": resolved.get("return", Any)}) if pickled else None,
        leading=_leading(signature),
        wrapped=_positional(signature) if hasattr(function, "__wrapped__") else (),
    )


def _without_mark(dependency: inspect.Parameter) -> inspect.Parameter:
    """Beside Depends in an annotation, `= injected` says to type checkers that callers leave it out: no default."""
    is_marked = isinstance(dependency.default, Injected)
    return dependency.replace(default=inspect.Parameter.empty) if is_marked else dependency


def _result(task: str, annotation: Any, *, pickled: bool, reveals_secrets: bool) -> TypedJson[Any] | None:
    if annotation is inspect.Parameter.empty and not pickled:
        annotation = UNTYPED_RESULT
    try:
        return form(annotation, where=f"{task}: the result", reveals_secrets=reveals_secrets)
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
    return False


def is_dependency(parameter: inspect.Parameter) -> bool:
    """True if FastAPI fills `parameter` (``= Depends(...)`` or ``Annotated[..., Depends()]``)."""
    return any(map(is_depends, (parameter.default, *getattr(unaliased(parameter.annotation), "__metadata__", ()))))


def _field(parameter: inspect.Parameter) -> Any:
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return list if parameter.annotation is inspect.Parameter.empty else list[parameter.annotation]  # type: ignore[name-defined]
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        return dict if parameter.annotation is inspect.Parameter.empty else dict[str, parameter.annotation]  # type: ignore[name-defined]
    return parameter.annotation


def _of_kind(parameters: Sequence[inspect.Parameter], kind: object) -> str | None:
    return next((parameter.name for parameter in parameters if parameter.kind is kind), None)


def _positional(signature: inspect.Signature) -> tuple[inspect.Parameter, ...]:
    return tuple(parameter for parameter in signature.parameters.values() if parameter.kind in _POSITIONAL)


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
            text += f" = {_written_default(parameter)}"
        parts.append(text)
    arrow = "" if returns is inspect.Parameter.empty else f" -> {type_name(returns)}"
    return f"{task}({', '.join(parts)}){arrow}"


def _written_default(parameter: inspect.Parameter) -> str:
    """A default as its author would write it; ``...`` if its own code cannot say."""
    try:
        is_shown = not is_secret_name(parameter.name) or not parameter.default
        return cut(repr(parameter.default)) if is_shown else MASK
    except Exception:
        return "..."
