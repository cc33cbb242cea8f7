"""Which annotated values can travel as JSON, and how pydantic reads and writes them."""

from __future__ import annotations

import collections
import datetime as dt
import inspect
import re
import types
import typing
from collections import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ForwardRef, Literal, TypeVar, Union, get_args, get_origin
from uuid import UUID

from pydantic import BeforeValidator, ConfigDict, Discriminator, EncodedBytes, JsonValue, TypeAdapter
from pydantic.errors import PydanticUserError
from typing_extensions import TypeAliasType, TypedDict

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError
from qtasks.tasks.encode.declared_schema import check_declared
from qtasks.tasks.encode.equality import mentions_abstract
from qtasks.tasks.encode.faithful import is_faithful
from qtasks.tasks.encode.typed_json import Proof, TypedJson
from qtasks.tasks.encode.unions import Tagged
from qtasks.tasks.encode.wire_types import (
    AS_LIST,
    AS_SET,
    BYTES,
    DATETIMES,
    JSON_VALUE,
    LISTED,
    TEXT_KEY,
    TIME,
    literal,
    pattern,
)


def _tuples_as_lists(value: object) -> object:
    if type(value) in (tuple, list):
        return [_tuples_as_lists(item) for item in value]  # type: ignore[attr-defined]
    if type(value) is dict:
        return {key: _tuples_as_lists(item) for key, item in value.items()}
    return value


UNTYPED_RESULT = Annotated[JsonValue, BeforeValidator(_tuples_as_lists)]
"""The type of a result without a return annotation. Tuples are accepted, because ``return a, b`` is common."""

_BARE: dict[object, Any] = {
    inspect.Parameter.empty: JSON_VALUE,
    Any: JSON_VALUE,
    object: JSON_VALUE,
    JsonValue: JSON_VALUE,
    dict: dict[TEXT_KEY, JSON_VALUE],
    collections.OrderedDict: collections.OrderedDict[TEXT_KEY, JSON_VALUE],
    collections.Counter: collections.Counter[TEXT_KEY],
    abc.Mapping: abc.Mapping[TEXT_KEY, JSON_VALUE],
    abc.MutableMapping: abc.MutableMapping[TEXT_KEY, JSON_VALUE],
    list: list[JSON_VALUE],
    tuple: tuple[JSON_VALUE, ...],
    set: set[JSON_VALUE],
    frozenset: frozenset[JSON_VALUE],
    collections.deque: collections.deque[JSON_VALUE],
    abc.Sequence: Annotated[abc.Sequence[JSON_VALUE], AS_LIST],
    abc.MutableSequence: abc.MutableSequence[JSON_VALUE],
    abc.Set: Annotated[abc.Set[JSON_VALUE], AS_SET],
    abc.MutableSet: abc.MutableSet[JSON_VALUE],
    abc.Hashable: JSON_VALUE,
    bytes: BYTES,
    **DATETIMES,
    dt.time: TIME,
    re.Pattern: pattern(re.Pattern),
}
_DICTS = (collections.OrderedDict, collections.defaultdict, collections.Counter)
_ITERATED = (abc.Iterable, abc.Iterator, abc.Generator, abc.Collection, abc.Reversible)
_MAPPINGS = (dict, abc.Mapping, abc.MutableMapping, *_DICTS)
_KEYS = (TEXT_KEY, int, UUID, dt.date)
"""Types of keys whose text in JSON shows which key it is."""
_ALIASES = (TypeAliasType, getattr(typing, "TypeAliasType", TypeAliasType))
"""The class of ``type`` statements in Python 3.12 and 3.13 is not the one of typing_extensions."""
_KEPT = (type, abc.Callable)
"""Types whose arguments say nothing about values that travel."""


@dataclass(frozen=True, slots=True)
class Portable:
    """Makes the annotations that pydantic uses in place of those of a task.

    Without a type (no annotation, `Any`, a bare `dict` or `set`) only JSON values are accepted: pydantic would write
    any object that it knows, such as a datetime as text, and the receiver could not restore its type.
    """

    is_tagged: bool = True
    """True if a value of a union may travel with the name of its member; a language model knows no such names."""
    reveals_secrets: bool = False

    def of(self, annotation: Any) -> Any:
        """The annotation that pydantic uses in place of `annotation`."""
        try:
            if (replacement := _BARE.get(annotation)) is not None:
                return replacement
        except TypeError:  # not hashable, as `Annotated` with a list in it
            pass
        origin, inner = get_origin(annotation), get_args(annotation)
        if annotation in _ITERATED or origin in _ITERATED:
            return Annotated[list[self.of(inner[0] if inner else Any)], LISTED]  # type: ignore[misc]
        if (meaning := _meaning(annotation, origin, inner)) is not None:
            return self.of(meaning)
        if origin is None or origin in _KEPT or not inner:
            return _BARE.get(origin, annotation)  # `typing.Dict` and similar aliases
        return self._of_parametrized(annotation, origin, inner)

    def _of_parametrized(self, annotation: Any, origin: Any, inner: tuple[Any, ...]) -> Any:
        if origin is Literal:
            return literal(annotation)
        if origin is re.Pattern:
            return pattern(annotation) if inner == (str,) else annotation
        if origin is Annotated:
            return self._of_annotated(annotation, inner[0], inner[1:])
        if origin in (Union, types.UnionType):
            return self._of_union(inner)
        replaced = tuple(item if item is Ellipsis or isinstance(item, list) else self.of(item) for item in inner)
        if self.is_tagged and origin in _MAPPINGS and replaced[0] is str:
            replaced = (TEXT_KEY, *replaced[1:])
        made = annotation if replaced == inner else origin[replaced]
        if self.is_tagged and origin in _MAPPINGS and replaced[0] not in _KEYS:
            return Annotated[made, self._keyed(made, replaced)]
        if origin is abc.Sequence:
            return Annotated[made, AS_LIST]
        return Annotated[made, AS_SET] if origin is abc.Set else made

    def _keyed(self, mapping: Any, inner: tuple[Any, ...]) -> Tagged:
        key, value = (*inner, int)[:2]  # a Counter has numbers
        items = {"items": list[tuple[key, value]]}  # type: ignore[valid-type]
        return Tagged(
            mapping, items, split=lambda it: list(it.items()), join=dict, reveals_secrets=self.reveals_secrets
        )

    def _of_annotated(self, annotation: Any, inner: Any, metadata: tuple[Any, ...]) -> Any:
        if any(isinstance(mark, EncodedBytes) for mark in metadata):
            return annotation  # it has an encoding of its own
        if get_origin(inner) not in (Union, types.UnionType):
            return Annotated[(self.of(inner), *metadata)]
        if any(isinstance(mark, Discriminator) or getattr(mark, "discriminator", None) for mark in metadata):
            return annotation  # a field of each value tells its member
        return self._of_union(get_args(inner), metadata)

    def _of_union(self, inner: tuple[Any, ...], metadata: tuple[Any, ...] = ()) -> Any:
        replaced = tuple(self.of(item) for item in inner)
        union: Any = Union[replaced]  # noqa: UP007 - made at run time
        if metadata:
            union = Annotated[(union, *metadata)]
        members = [item for item in replaced if item is not type(None)]
        if not self.is_tagged or len(members) < 2 or is_faithful(union):
            return union
        names: dict[str, Any] = {}
        for written, member in zip(inner, replaced, strict=True):
            name = type_name(written)
            names[name if name not in names else f"{name} {len(names)}"] = member
        return Annotated[union, Tagged(union, names, reveals_secrets=self.reveals_secrets)]


def _meaning(annotation: Any, origin: Any, inner: tuple[Any, ...]) -> Any:
    """What another name stands for: a type variable, a NewType or an alias. None for a type itself."""
    if isinstance(annotation, TypeVar):
        return Union[annotation.__constraints__] if annotation.__constraints__ else annotation.__bound__ or object  # noqa: UP007
    if (supertype := getattr(annotation, "__supertype__", None)) is not None:
        return supertype
    aliased = _aliased(origin or annotation)
    return aliased if aliased is None or not inner else aliased[inner]


def _aliased(annotation: Any) -> Any:
    """What a ``type`` alias stands for; None for anything else, and for an alias that mentions itself."""
    if not isinstance(annotation, _ALIASES):
        return None
    return None if _is_mentioned(annotation, annotation.__value__, set()) else annotation.__value__


def _is_mentioned(alias: Any, annotation: Any, seen: set[int]) -> bool:
    if annotation is alias or get_origin(annotation) is alias or isinstance(annotation, (str, ForwardRef)):
        return True
    if id(annotation) in seen:
        return False
    seen.add(id(annotation))
    inner = [*get_args(annotation)]
    if isinstance(annotation, _ALIASES):
        inner.append(annotation.__value__)
    return any(_is_mentioned(alias, part, seen) for part in inner)


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


def adapter(annotation: Any, *, where: str, is_tagged: bool = False, reveals_secrets: bool = False) -> TypeAdapter[Any]:
    """A reader and writer for one annotation, in pydantic's plain form unless `is_tagged`.

    Raises DefinitionError that begins with `where`.
    """
    made: TypeAdapter[Any] = _adapter(
        Portable(is_tagged=is_tagged, reveals_secrets=reveals_secrets).of(annotation), annotation, where
    )
    has_sets(made, where, reveals_secrets=reveals_secrets)
    return made


def _adapter(portable: Any, annotation: Any, where: str) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(portable)
    except (PydanticUserError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise DefinitionError(
            f"{where}: {type_name(annotation)} cannot travel as JSON: {reason}",
            fix="pass an id or plain data instead, or use a pydantic model",
            code=ErrorCode.TYPE_NOT_SERIALIZABLE,
        ) from error


def has_sets(made: TypeAdapter[Any], where: str, *, reveals_secrets: bool = False) -> bool:
    """As `check_declared`, with errors that begin with `where`."""
    try:
        return check_declared(made, reveals_secrets=reveals_secrets)
    except DefinitionError as error:
        raise error.reworded(f"{where}: {error.message}") from error


def form(annotation: Any, *, where: str, reveals_secrets: bool = False) -> TypedJson[Any]:
    """Writes and reads values of one annotation. Raises DefinitionError that begins with `where`.

    `reveals_secrets`: what is written is encrypted, so secrets are written as they are.
    """
    portable = Portable(reveals_secrets=reveals_secrets).of(annotation)
    made = _adapter(portable, annotation, where)
    is_finished = has_sets(made, where, reveals_secrets=reveals_secrets) or reveals_secrets
    if is_faithful(portable) and not is_finished:
        return TypedJson(made)
    names = frozenset[str]() if is_faithful(portable) else None
    return TypedJson(
        made,
        Proof(made, names, mentions_abstract(annotation), is_finished=is_finished, reveals_secrets=reveals_secrets),
    )


def record_form(
    name: str, fields: dict[str, Any], *, where: str, reveals_secrets: bool = False
) -> TypedJson[dict[str, Any]]:
    """Writes and reads several named values, all of them optional. Raises as `form`."""
    made = Portable(reveals_secrets=reveals_secrets)
    portable = {field: made.of(annotation) for field, annotation in fields.items()}
    is_finished = reveals_secrets
    for field, annotation in fields.items():
        # Each one alone, so that an error tells which.
        place = f"{where}: parameter {field!r}"
        is_set = has_sets(_adapter(portable[field], annotation, place), place, reveals_secrets=reveals_secrets)
        is_finished = is_finished or is_set
    whole = _record(name, portable, ConfigDict())
    proved = {field: annotation for field, annotation in portable.items() if not is_faithful(annotation)}
    if not proved and not is_finished:
        return TypedJson(whole)
    reader = whole if len(proved) == len(portable) else _record(name, proved, ConfigDict())
    is_abstract = any(mentions_abstract(fields[field]) for field in proved)
    return TypedJson(whole, Proof(reader, frozenset(proved), is_abstract, is_finished, reveals_secrets))


def loose_adapter(name: str, fields: dict[str, Any]) -> TypeAdapter[dict[str, Any]]:
    """As `record_adapter`, for values that are pickled: of a class that pydantic does not know, instances are accepted.

    It validates values and does not write them. An annotation that pydantic cannot use is not checked.
    """
    anything = ConfigDict(arbitrary_types_allowed=True)
    usable: dict[str, Any] = {}
    for field, annotation in fields.items():
        usable[field] = Any if annotation is inspect.Parameter.empty else _listed(annotation)
        try:
            _record(name, {field: usable[field]}, anything)
        except (PydanticUserError, TypeError):
            usable[field] = Any
    return _record(name, usable, anything)


def _listed(annotation: Any) -> Any:
    """`annotation`, or a list for an iterable, of which pydantic would make an iterator that can be read once."""
    if annotation in _ITERATED or get_origin(annotation) in _ITERATED:
        return Annotated[list[(*get_args(annotation), Any)[0]], LISTED]  # type: ignore[misc]
    return annotation


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
