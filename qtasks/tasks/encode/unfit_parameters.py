"""What cannot be a parameter of a task, and options that look like templates: refused where they are declared."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError
from qtasks.tasks.context import Injected, TaskContext
from qtasks.tasks.encode.searchable import check_searchable

_REQUEST = "take it in a dependency: def tenant(request: Request): ..., and here tenant: str = Depends(tenant)"
_OF_A_REQUEST: Mapping[tuple[str, str], str] = {
    ("starlette.requests", "HTTPConnection"): _REQUEST,
    ("starlette.responses", "Response"): "return the result of the task",
    ("starlette.background", "BackgroundTask"): "send calls of other tasks with .delay()",
    ("starlette.datastructures", "UploadFile"): "store what was uploaded, and pass its key",
    ("fastapi.security.oauth2", "SecurityScopes"): _REQUEST,
}
"""Classes of which FastAPI makes the values itself, by module and name, and what to do instead."""
_BRACES = re.compile(r"\{\s*([^\W\d]\w*)")


def check_declared(task: str, function: Callable[..., object], options: Mapping[str, Any]) -> None:
    """Refuse what can be seen while `function` is decorated. Raises DefinitionError.

    An annotation that cannot be resolved yet is checked when the parameters are read.
    """
    names = getattr(inspect.unwrap(function), "__globals__", {})
    parameters = {
        name: parameter.replace(annotation=_known(parameter.annotation, names))
        for name, parameter in inspect.signature(function).parameters.items()
    }
    for parameter in parameters.values():
        check_fillable(task, parameter)
    check_texts(task, function, options)
    check_searchable(task, options.get("search"), parameters, is_depends)
    unique = options.get("unique")
    for name in [unique] if isinstance(unique, str) else unique if isinstance(unique, (list, tuple)) else ():
        if name not in parameters:
            raise DefinitionError(
                f"{task}: unique={unique!r}, but there is no parameter {name!r}", code=ErrorCode.OPTION_INVALID
            )


def check_fillable(task: str, parameter: inspect.Parameter) -> None:
    """Refuse a parameter that neither a caller nor the dispatcher can fill. Raises DefinitionError."""
    marks = (parameter.default, *getattr(unaliased(parameter.annotation), "__metadata__", ()))
    depends = [mark for mark in marks if is_depends(mark)]
    if len(depends) > 1:
        raise _error(task, parameter, "has two Depends", "keep the one in Annotated, or the default")
    if depends:
        return
    _check_marks(task, parameter, marks)
    if not isinstance(parameter.default, Injected):
        _check_classes(task, parameter)


def _check_marks(task: str, parameter: inspect.Parameter, marks: Iterable[object]) -> None:
    for mark in marks:
        if _is_instance_of(mark, "fastapi.params"):
            what = f"is {type(mark).__name__}(), a part of a request; a task has arguments"
            raise _error(task, parameter, what, f"declare `{parameter.name}` with its type alone, and pass the value")
    if _is_instance_of(parameter.default, "pydantic.fields"):
        what = "has Field() as its default, which a direct call would get as the value"
        raise _error(task, parameter, what, f"{parameter.name}: Annotated[..., Field(...)] = ...")


def _check_classes(task: str, parameter: inspect.Parameter) -> None:
    for kind in _classes(parameter.annotation):
        if issubclass(kind, TaskContext):
            raise DefinitionError(
                f"{task}: parameter {parameter.name!r} is a TaskContext that callers would have to pass",
                fix=f"{parameter.name}: TaskContext = injected",
                code=ErrorCode.INJECTION_INVALID,
            )
        for base in kind.__mro__:
            if (fix := _OF_A_REQUEST.get((base.__module__, base.__name__))) is not None:
                what = f"is a {kind.__name__}, which belongs to a request; a task has arguments"
                raise _error(task, parameter, what, fix)


def check_texts(task: str, function: Callable[..., object], options: Mapping[str, Any]) -> None:
    """Refuse a text such as ``key="{order}"``: it is not a template. Raises DefinitionError."""
    for option, value in options.items():
        for text in value if isinstance(value, (list, tuple)) else (value,):
            if not isinstance(text, str) or (braces := _BRACES.search(text)) is None:
                continue
            if braces[1] in inspect.signature(function).parameters:
                raise DefinitionError(
                    f"{task}: {option}={text!r} is not a template: every call would have this text",
                    fix=f'set it for each call: {task}.using({option}=f"{text}").delay(...)',
                    code=ErrorCode.OPTION_INVALID,
                )


def is_depends(mark: object) -> bool:
    """True for FastAPI's ``Depends(...)`` and ``Security(...)``."""
    # Looked up by module name: a task without dependencies does not need FastAPI to be imported.
    return any(base.__module__ == "fastapi.params" and base.__name__ == "Depends" for base in type(mark).__mro__)


def unaliased(annotation: Any) -> Any:
    """What the name of a ``type`` statement stands for."""
    while type(annotation).__name__ == "TypeAliasType":
        annotation = annotation.__value__
    return annotation


def _known(annotation: Any, names: Mapping[str, Any]) -> Any:
    """The annotation behind a text, if its names exist already; otherwise none."""
    if not isinstance(annotation, str):
        return annotation
    try:
        holder = type("Holder", (), {"__annotations__": {"value": annotation}})
        return get_type_hints(holder, globalns=dict(names), include_extras=True)["value"]
    except Exception:  # names that exist later, or only for type checkers
        return inspect.Parameter.empty


def _classes(annotation: Any) -> Iterator[type]:
    """The classes that an annotation names: itself, or the members of a union."""
    annotation = unaliased(annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _classes(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _classes(member)
    elif isinstance(annotation, type):
        yield annotation


def _is_instance_of(mark: object, module: str) -> bool:
    return any(base.__module__ == module for base in type(mark).__mro__)


def _error(task: str, parameter: inspect.Parameter, what: str, fix: str) -> DefinitionError:
    return DefinitionError(
        f"{task}: parameter {parameter.name!r} {what}", fix=fix, code=ErrorCode.PARAMETER_OF_A_REQUEST
    )
