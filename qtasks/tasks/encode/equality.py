"""The first place where two values differ: a value as it was sent, and as it arrives.

Stricter than ``==``: types must be the same at every depth, floats have the same bits, decimals the same digits, and
datetimes the same zone. Two kinds of time zones count as equal: all whose offset never changes, if it is the same.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import functools
import re
import struct
import typing
from collections import abc
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel

_BY_EQUALITY = frozenset({int, str, bool, bytes, type(None), dt.date, dt.timedelta, UUID})
_ABSTRACT = (abc.Sequence, abc.Set, abc.Mapping)


@dataclasses.dataclass(frozen=True, slots=True)
class Divergence:
    """Where two values differ first, as a path such as ``.rows[3]``, and what is there in each of them."""

    path: str
    sent: object
    arrived: object

    def below(self, step: str) -> Divergence:
        """The same difference, seen from the value that holds it at `step`."""
        return Divergence(step + self.path, self.sent, self.arrived)


def difference(sent: object, arrived: object, *, is_abstract: bool = False) -> Divergence | None:
    """Where `arrived` differs from `sent`, or None if it does not.

    `is_abstract`: somewhere in the declared type is an abstract container such as ``Sequence``, so a tuple may arrive
    as a list.
    """
    kind: Any = type(sent)
    if kind is not type(arrived):
        return _of_abstract(sent, arrived) if is_abstract else Divergence("", sent, arrived)
    if kind in _BY_EQUALITY:
        return None if sent == arrived else Divergence("", sent, arrived)
    return _comparison(kind)(sent, arrived, is_abstract)  # type: ignore[arg-type]  # a class is hashable


Comparison = Callable[[Any, Any, bool], "Divergence | None"]


_identity: Any = object.__eq__


@functools.lru_cache(maxsize=1024)
def _comparison(kind: Any) -> Comparison:
    """How two values of the class `kind` are compared."""
    for base, compare in _COMPARISONS:
        if issubclass(kind, base):
            return compare
    if dataclasses.is_dataclass(kind):
        names = tuple(field.name for field in dataclasses.fields(kind))
        if any("InitVar" in str(field.type) for field in kind.__dataclass_fields__.values()):
            return functools.partial(_of_instances, names)
        return lambda sent, arrived, _: _of_parts(sent, arrived, names)
    return _of_states if kind.__eq__ is _identity else _of_others


def _of_abstract(sent: Any, arrived: Any) -> Divergence | None:
    for base in _ABSTRACT:
        if isinstance(sent, base) and isinstance(arrived, base) and not isinstance(sent, (str, bytes)):
            if base is abc.Mapping:
                return _of_mappings(sent, arrived, is_abstract=True)
            return (_of_sets if base is abc.Set else _of_items)(sent, arrived, True)
    return Divergence("", sent, arrived)


def _of_items(sent: Any, arrived: Any, is_abstract: bool) -> Divergence | None:
    if len(sent) != len(arrived):
        return Divergence("", sent, arrived)
    names = getattr(type(sent), "_fields", ())
    if names and type(sent) is type(arrived):
        return _of_parts(sent, arrived, names)
    for index, (item, other) in enumerate(zip(sent, arrived, strict=True)):
        changed = difference(item, other, is_abstract=is_abstract)
        if changed is not None:
            return changed.below(f"[{index}]")
    return None


def _of_mappings(sent: Any, arrived: Any, is_abstract: bool) -> Divergence | None:
    if len(sent) != len(arrived) or not _is_same_factory(sent, arrived):
        return Divergence("", sent, arrived)
    for (key, value), (other_key, other_value) in zip(sent.items(), arrived.items(), strict=True):
        is_same_text = type(key) is str and type(other_key) is str and key == other_key
        if not is_same_text and difference(key, other_key, is_abstract=is_abstract) is not None:
            return Divergence("", sent, arrived)
        changed = difference(value, other_value, is_abstract=is_abstract)
        if changed is not None:
            return changed.below(f".{key}")
    return None


def _is_same_factory(sent: object, arrived: object) -> bool:
    if not isinstance(sent, collections.defaultdict) or not isinstance(arrived, collections.defaultdict):
        return True
    made, other = sent.default_factory, arrived.default_factory
    return made is other or (
        getattr(made, "__code__", None) is not None
        and getattr(made, "__code__", None) is getattr(other, "__code__", None)
    )


def _of_sets(sent: Any, arrived: Any, is_abstract: bool) -> Divergence | None:
    if len(sent) != len(arrived):
        return Divergence("", sent, arrived)
    by_equality = {item: item for item in arrived}
    for item in sent:
        # What is not equal to itself, as NaN, is not found by its hash, but among all of them.
        candidates = [by_equality[item]] if item in by_equality else arrived
        if all(difference(item, other, is_abstract=is_abstract) is not None for other in candidates):
            return Divergence("", sent, arrived)
    return None


def _of_deques(sent: Any, arrived: Any, is_abstract: bool) -> Divergence | None:
    return Divergence("", sent, arrived) if sent.maxlen != arrived.maxlen else _of_items(sent, arrived, is_abstract)


def _of_models(sent: Any, arrived: Any, is_abstract: bool) -> Divergence | None:  # noqa: ARG001 - each field tells
    changed = _of_parts(sent, arrived, type(sent).model_fields)
    if changed is None and (sent.__pydantic_extra__ or arrived.__pydantic_extra__):
        changed = difference(sent.__pydantic_extra__ or {}, arrived.__pydantic_extra__ or {})
    if changed is None and (sent.__pydantic_private__ or arrived.__pydantic_private__):
        changed = difference(sent.__pydantic_private__ or {}, arrived.__pydantic_private__ or {})
    return changed


_ABSENT: Any = object()


def _of_instances(names: tuple[str, ...], sent: Any, arrived: Any, is_abstract: bool) -> Divergence | None:  # noqa: ARG001
    """Dataclasses with an ``InitVar``: it is not a field, but what was made of it is in the instance."""
    own, other = getattr(sent, "__dict__", {}), getattr(arrived, "__dict__", {})
    return _of_parts(sent, arrived, (*names, *(name for name in own if name in other and name not in names)))


def _of_parts(sent: Any, arrived: Any, names: Iterable[str]) -> Divergence | None:
    kind: Any = type(sent)
    abstract = _abstract_parts(kind)
    for name in names:
        own, other = getattr(sent, name, _ABSENT), getattr(arrived, name, _ABSENT)
        if own is not other:
            inner = difference(own, other, is_abstract=name in abstract)
            if inner is not None:
                return inner.below(f".{name}")
    return None


def _of_states(sent: Any, arrived: Any, is_abstract: bool) -> Divergence | None:  # noqa: ARG001 - it has no declared type
    """Objects without an equality of their own are what is in them; of a lock, for example, that is nothing."""
    own, other = _state(sent), _state(arrived)
    return None if sent is arrived else difference(own, other)


def _state(value: object) -> dict[str, Any]:
    slots = (name for base in type(value).__mro__ for name in _slots(base))
    return {**{name: getattr(value, name) for name in slots if hasattr(value, name)}, **getattr(value, "__dict__", {})}


def _slots(base: type) -> tuple[str, ...]:
    names = base.__dict__.get("__slots__", ())
    return tuple(name for name in ((names,) if isinstance(names, str) else names) if not name.startswith("__"))


def _of_floats(sent: Any, arrived: Any, is_abstract: bool) -> Divergence | None:  # noqa: ARG001
    return None if struct.pack("d", sent) == struct.pack("d", arrived) else Divergence("", sent, arrived)


def _of_complex(sent: Any, arrived: Any, is_abstract: bool) -> Divergence | None:  # noqa: ARG001
    is_same = struct.pack("dd", sent.real, sent.imag) == struct.pack("dd", arrived.real, arrived.imag)
    return None if is_same else Divergence("", sent, arrived)


def _of_decimals(sent: Any, arrived: Any, is_abstract: bool) -> Divergence | None:  # noqa: ARG001
    return None if sent.as_tuple() == arrived.as_tuple() else Divergence("", sent, arrived)


def _of_times(sent: Any, arrived: Any, is_abstract: bool) -> Divergence | None:  # noqa: ARG001
    is_same = (
        sent.replace(tzinfo=None) == arrived.replace(tzinfo=None)
        and sent.fold == arrived.fold
        and _is_same_zone(sent.tzinfo, arrived.tzinfo)
    )
    return None if is_same else Divergence("", sent, arrived)


def _is_same_zone(sent: dt.tzinfo | None, arrived: dt.tzinfo | None) -> bool:
    if sent is arrived:
        return True
    if sent is None or arrived is None:
        return False
    offset = fixed_offset(sent)
    return sent == arrived if offset is None else offset == fixed_offset(arrived)


def fixed_offset(zone: dt.tzinfo) -> dt.timedelta | None:
    """The offset of a zone in which it never changes, such as UTC; None for any other zone."""
    try:
        return zone.utcoffset(None)
    except Exception:  # zones of other packages may want a datetime
        return None


def _of_patterns(sent: Any, arrived: Any, is_abstract: bool) -> Divergence | None:  # noqa: ARG001
    is_same = sent.pattern == arrived.pattern and sent.flags == arrived.flags
    return None if is_same else Divergence("", sent, arrived)


def _of_members(sent: Any, arrived: Any, is_abstract: bool) -> Divergence | None:  # noqa: ARG001
    return None if sent is arrived or sent.value == arrived.value else Divergence("", sent, arrived)


def _of_others(sent: Any, arrived: Any, is_abstract: bool) -> Divergence | None:  # noqa: ARG001
    try:
        is_same = bool(sent == arrived)
    except Exception:  # it runs code of the user's class
        is_same = False
    return None if is_same else Divergence("", sent, arrived)


_COMPARISONS: tuple[tuple[type, Comparison], ...] = (
    (BaseModel, _of_models),
    (abc.Mapping, _of_mappings),
    (enum.Enum, _of_members),
    (float, _of_floats),
    (dt.datetime, _of_times),
    (dt.time, _of_times),
    (Decimal, _of_decimals),
    (abc.Set, _of_sets),
    (collections.deque, _of_deques),
    (list, _of_items),
    (tuple, _of_items),
    (re.Pattern, _of_patterns),
    (complex, _of_complex),
)


def mentions_abstract(annotation: Any) -> bool:
    """True if an abstract container is a part of the declared type."""
    return any(
        isinstance(part, type) and part.__module__ == "collections.abc" for part in _mentioned(annotation, set())
    )


def _mentioned(annotation: Any, seen: set[int]) -> Iterator[Any]:
    if id(annotation) in seen:
        return
    seen.add(id(annotation))
    yield get_origin(annotation) or annotation
    inner = [*get_args(annotation), getattr(annotation, "__value__", None), getattr(annotation, "__supertype__", None)]
    if typing.is_typeddict(annotation) or hasattr(annotation, "__total__"):
        inner += getattr(annotation, "__annotations__", {}).values()
    for part in inner:
        yield from _mentioned(part, seen)


@functools.lru_cache(maxsize=1024)
def _abstract_parts(kind: type) -> frozenset[str]:
    """The fields of a class in whose declared type an abstract container is."""
    if issubclass(kind, BaseModel):
        hints: Mapping[str, Any] = {name: field.annotation for name, field in kind.model_fields.items()}
    else:
        try:
            hints = typing.get_type_hints(kind)
        except Exception:  # names that its module does not have any more
            hints = {}
    return frozenset(name for name, hint in hints.items() if mentions_abstract(hint))
