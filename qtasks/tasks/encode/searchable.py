"""Parameters by whose values calls can be found, ``search=("user_id",)``: which can be, and what is refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError, did_you_mean
from qtasks.masking import is_secret_name
from qtasks.protocol.labels.argument_labels import MAX_NAMES, is_name
from qtasks.tasks.context import Injected

_STARS: Final[Mapping[object, str]] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
_UNFIT: Final = {"object": "an object", "array": "a list", "number": "a number that need not be whole"}
"""Types of JSON whose values have no label."""
_SECRET: Final = "password"  # noqa: S105 - the format of secrets in a schema


def check_searchable(
    task: str, value: Any, parameters: Mapping[str, inspect.Parameter], is_filled: Callable[[Any], bool]
) -> None:
    """Refuse a `value` of the option `search` that does not name parameters of callers. Raises DefinitionError.

    `is_filled` tells whether a default, or a mark in an annotation, is that of a dependency.
    """
    names = searchable_names(task, value)
    for name in names:
        _check_parameter(task, names, name, parameters.get(name), parameters, is_filled)


def searchable_names(task: str, value: Any) -> tuple[str, ...]:
    """The names in a `value` of the option `search`. Raises DefinitionError for what can be no such name."""
    if value is None:
        return ()
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, tuple)) else ()
    if not names or not all(type(name) is str for name in names) or len(set(names)) < len(names):
        raise _invalid(task, f"search={value!r}: expected the name of a parameter, or a list of names")
    if len(names) > MAX_NAMES:
        raise _invalid(task, f"search has {len(names)} names; {MAX_NAMES} are allowed")
    for name in names:
        if is_secret_name(name):
            raise _error(task, names, f"{name!r} is secret, and the labels of a message are not")
        if not is_name(name):
            raise _error(task, names, f"{name!r} is not a name of at most 64 ASCII letters, digits and _")
    return names


def _check_parameter(
    task: str,
    names: Sequence[str],
    name: str,
    parameter: inspect.Parameter | None,
    others: Mapping[str, inspect.Parameter],
    is_filled: Callable[[Any], bool],
) -> None:
    if parameter is None:
        raise _error(task, names, f"there is no parameter {name!r}{did_you_mean(name, list(others))}")
    if (stars := _STARS.get(parameter.kind)) is not None:
        raise _error(task, names, f"{stars}{name} has no value of its own", fix="declare the parameter by its name")
    marks = (parameter.default, *getattr(parameter.annotation, "__metadata__", ()))
    if any(isinstance(mark, Injected) or is_filled(mark) for mark in marks):
        raise _error(task, names, f"{name!r} is filled where the task runs, so no call has it")
    check_type(task, names, name, parameter.annotation)


def check_type(task: str, names: Sequence[str], name: str, annotation: Any) -> None:
    """Refuse a type whose values never have a label. Raises DefinitionError."""
    if annotation in (inspect.Parameter.empty, Any):
        return
    from pydantic import TypeAdapter

    try:
        schema = TypeAdapter(annotation).json_schema(mode="serialization")
        kinds = set(_kinds(schema, schema.get("$defs", {})))
    except Exception:  # the parameters are read elsewhere, which says what is wrong with the type
        return
    if _SECRET in kinds:
        raise _error(task, names, f"{name!r} is secret, and the labels of a message are not")
    if kinds and kinds <= _UNFIT.keys():
        fix = f"pass what identifies it as one more argument of {task}"
        raise _error(task, names, f"{name!r} is {_UNFIT[min(kinds)]}", fix=fix)


def _kinds(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[str]:
    """The types that a value of a schema may have; an empty text for any type."""
    if (reference := schema.get("$ref")) is not None:
        yield from _kinds(definitions.get(reference.rpartition("/")[2], {}), definitions)
    elif members := schema.get("anyOf") or schema.get("oneOf"):
        for member in members:
            if member.get("type") != "null":
                yield from _kinds(member, definitions)
    else:
        yield _SECRET if schema.get("format") == _SECRET else schema.get("type", "")


def _error(task: str, names: Sequence[str], text: str, *, fix: str | None = None) -> DefinitionError:
    return _invalid(task, f"search={tuple(names)!r}, but {text}", fix=fix)


def _invalid(task: str, text: str, *, fix: str | None = None) -> DefinitionError:
    return DefinitionError(f"{task}: {text}", fix=fix, code=ErrorCode.OPTION_INVALID)
