"""Which annotated values can travel as JSON, and how pydantic reads and writes them."""

from __future__ import annotations

import base64
import binascii
import collections
import inspect
import types
import typing
from collections import abc
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    BeforeValidator,
    ConfigDict,
    JsonValue,
    PlainSerializer,
    SecretBytes,
    SecretStr,
    TypeAdapter,
    ValidationInfo,
)
from pydantic.errors import PydanticUserError
from typing_extensions import TypedDict

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError

WIRE: Any = {"qtasks": "wire"}
"""The validation context of values that come from JSON, and not from a caller."""


def _bytes_from_wire(value: object, info: ValidationInfo) -> object:
    if info.context is not WIRE or not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None


_BYTES = Annotated[
    bytes,
    BeforeValidator(_bytes_from_wire),
    PlainSerializer(lambda value: base64.b64encode(value).decode("ascii"), return_type=str, when_used="json"),
]


def _tuples_as_lists(value: object) -> object:
    if isinstance(value, (tuple, list)):
        return [_tuples_as_lists(item) for item in value]
    if isinstance(value, dict):
        return {key: _tuples_as_lists(item) for key, item in value.items()}
    return value


UNTYPED_RESULT = Annotated[JsonValue, BeforeValidator(_tuples_as_lists)]
"""The type of a result without a return annotation. Tuples are accepted, because ``return a, b`` is common."""

_BARE: dict[object, Any] = {
    inspect.Parameter.empty: JsonValue,
    Any: JsonValue,
    object: JsonValue,
    dict: dict[str, JsonValue],
    collections.OrderedDict: collections.OrderedDict[str, JsonValue],
    collections.Counter: collections.Counter[str],
    abc.Mapping: abc.Mapping[str, JsonValue],
    abc.MutableMapping: abc.MutableMapping[str, JsonValue],
    list: list[JsonValue],
    tuple: tuple[JsonValue, ...],
    set: set[JsonValue],
    frozenset: frozenset[JsonValue],
    collections.deque: collections.deque[JsonValue],
    abc.Sequence: abc.Sequence[JsonValue],
    abc.MutableSequence: abc.MutableSequence[JsonValue],
    abc.Set: abc.Set[JsonValue],
    abc.MutableSet: abc.MutableSet[JsonValue],
    abc.Iterable: abc.Iterable[JsonValue],
    abc.Hashable: JsonValue,
    bytes: _BYTES,
}


def portable(annotation: Any) -> Any:
    """The annotation that pydantic uses in place of `annotation`.

    Without a type (no annotation, `Any`, a bare `dict` or `set`) only JSON values are accepted: pydantic would write
    any object that it knows, such as a datetime as text, and the receiver could not restore its type. `bytes` travel as
    base64. Raises DefinitionError for a type whose values would arrive changed.
    """
    if annotation in (SecretStr, SecretBytes):
        raise DefinitionError(
            f"{annotation.__name__} cannot be an argument or a result: it would arrive as asterisks",
            fix="pass a reference to the secret and look it up in the task",
            code=ErrorCode.TYPE_NOT_SERIALIZABLE,
        )
    try:
        if (replacement := _BARE.get(annotation)) is not None:
            return replacement
    except TypeError:  # not hashable, as `Annotated` with a list in it
        pass
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is None or origin is Literal or not inner:
        return _BARE.get(origin, annotation)  # `typing.Dict` and similar aliases
    if origin is Annotated:
        return Annotated[(portable(inner[0]), *inner[1:])]
    replaced = tuple(item if item is Ellipsis or isinstance(item, list) else portable(item) for item in inner)
    if replaced == inner:
        return annotation
    if origin in (Union, types.UnionType):
        return Union[replaced]  # noqa: UP007 - made at run time
    return origin[replaced]


def hints(function: Callable[..., object]) -> dict[str, Any]:
    """The resolved annotations of `function`. Raises DefinitionError that names one that cannot be resolved."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise DefinitionError(
            f"{function.__qualname__}: an annotation names {error.name!r}, which its module does not have",
            fix="import it at the top of the module, outside `if TYPE_CHECKING`",
            code=ErrorCode.TYPE_NOT_SERIALIZABLE,
        ) from error
    except TypeError as error:
        raise DefinitionError(
            f"{function.__qualname__}: an annotation is not a type: {error}", code=ErrorCode.TYPE_NOT_SERIALIZABLE
        ) from error


def adapter(annotation: Any, *, where: str) -> TypeAdapter[Any]:
    """A reader and writer for one annotation. Raises DefinitionError that begins with `where`."""
    try:
        return TypeAdapter(portable(annotation))
    except (PydanticUserError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise DefinitionError(
            f"{where}: {type_name(annotation)} cannot travel as JSON: {reason}",
            fix="pass an id or plain data instead, or use a pydantic model",
            code=ErrorCode.TYPE_NOT_SERIALIZABLE,
        ) from error
    except DefinitionError as error:
        raise error.reworded(f"{where}: {error.message}") from error


def record_adapter(name: str, fields: dict[str, Any], *, where: str) -> TypeAdapter[dict[str, Any]]:
    """Reads and writes several named values, all of them optional."""
    try:
        return _record(name, {field: portable(annotation) for field, annotation in fields.items()}, ConfigDict())
    except (PydanticUserError, TypeError, DefinitionError):
        for field, annotation in fields.items():  # which one is it?
            adapter(annotation, where=f"{where}: parameter {field!r}")
        raise


def loose_adapter(name: str, fields: dict[str, Any]) -> TypeAdapter[dict[str, Any]]:
    """As `record_adapter`, for values that are pickled: of a class that pydantic does not know, instances are accepted.

    It validates values and does not write them. An annotation that pydantic cannot use is not checked.
    """
    anything = ConfigDict(arbitrary_types_allowed=True)
    usable: dict[str, Any] = {}
    for field, annotation in fields.items():
        usable[field] = Any if annotation is inspect.Parameter.empty else annotation
        try:
            _record(name, {field: usable[field]}, anything)
        except (PydanticUserError, TypeError):
            usable[field] = Any
    return _record(name, usable, anything)


def _record(name: str, fields: dict[str, Any], config: ConfigDict) -> TypeAdapter[dict[str, Any]]:
    make: Any = TypedDict  # the functional form takes any text as a name, but type checkers want literals
    record = make(name, fields, total=False)
    record.__pydantic_config__ = ConfigDict(extra="forbid", **config)
    return TypeAdapter(record)


def type_name(annotation: Any) -> str:
    """An annotation as it is written in code."""
    if annotation is inspect.Parameter.empty or annotation is Any:
        return "a JSON value"
    if annotation is type(None):
        return "None"
    if get_origin(annotation) is Annotated:
        return type_name(get_args(annotation)[0])
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "")
