"""Types whose values arrive as they are, by construction: what JSON has itself, and collections of it."""

from __future__ import annotations

import types
from typing import Annotated, Any, Union, get_args, get_origin

import annotated_types

from qtasks.tasks.encode.wire_types import JSON_VALUE, LISTED

_SCALARS: dict[Any, str] = {int: "int", float: "float", str: "str", bool: "bool", type(None): "null", None: "null"}
_LISTS = (list, set, frozenset, tuple)
_CONSTRAINTS = (
    annotated_types.Gt,
    annotated_types.Ge,
    annotated_types.Lt,
    annotated_types.Le,
    annotated_types.MinLen,
    annotated_types.MaxLen,
)


def is_faithful(portable: Any) -> bool:
    """True if every value that pydantic makes of the type is read from its JSON form as it was."""
    return bool(_kinds(portable))


def _kinds(portable: Any) -> frozenset[str]:
    """The kinds of JSON values that a faithful type has; none for any other type."""
    if portable == JSON_VALUE:
        return frozenset({*_SCALARS.values(), "list", "dict"})
    if isinstance(portable, type) and portable in _SCALARS:
        return frozenset({_SCALARS[portable]})
    origin, inner = get_origin(portable), get_args(portable)
    if origin is Annotated:
        is_known = all(mark is LISTED or isinstance(mark, _CONSTRAINTS) for mark in inner[1:])
        return _kinds(inner[0]) if is_known else frozenset()
    if origin in _LISTS:
        return frozenset({"list"} if all(item is Ellipsis or _kinds(item) for item in inner) else ())
    if origin is dict:
        return frozenset({"dict"} if _kinds(inner[0]) == {"str"} and _kinds(inner[1]) else ())
    if origin in (Union, types.UnionType):
        return _of_union([_kinds(member) for member in inner])
    return frozenset()


def _of_union(members: list[frozenset[str]]) -> frozenset[str]:
    kinds = frozenset[str]().union(*members)
    is_told_apart = all(members) and sum(map(len, members)) == len(kinds)
    is_optional = len(members) == 2 and frozenset({"null"}) in members
    return kinds if all(members) and (is_told_apart or is_optional) else frozenset()
