"""The forms of what a dispatcher answers. It comes from the network: each value is read by its type. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from qtasks.protocol.strict_json import MAX_INTEGER

Reader = Callable[[Any, str], Any]
"""Reads a value at a place. Raises ValueError."""


def _typed(kind: type) -> Reader:
    def read(value: Any, place: str) -> Any:
        if type(value) is not kind:
            raise ValueError(f"{place} is not a {kind.__name__}")
        return value

    return read


def optional(reader: Reader) -> Reader:
    """The same, or None."""
    return lambda value, place: None if value is None else reader(value, place)


def object_of(members: dict[str, Reader]) -> Reader:
    """An object of these members, without others."""

    def read(value: Any, place: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError(f"{place} is not an object")
        return {name: reader(value.get(name), f"{place}.{name}") for name, reader in members.items()}

    return read


def list_of(reader: Reader) -> Reader:
    """A list of any length."""

    def read(value: Any, place: str) -> list[Any]:
        if not isinstance(value, list):
            raise ValueError(f"{place} is not a list")
        return [reader(item, place) for item in value]

    return read


def _int(value: Any, place: str) -> int:
    if type(value) is not int:
        raise ValueError(f"{place} is not an int")
    if abs(value) > MAX_INTEGER:
        raise ValueError(f"{place} is beyond 2^53")
    return value


def _number(value: Any, place: str) -> int | float:
    """A number that need not be exact: a large integer as a float."""
    if type(value) is float:
        return value
    if type(value) is not int:
        raise ValueError(f"{place} is not a number")
    try:
        return value if abs(value) <= MAX_INTEGER else float(value)
    except OverflowError:
        raise ValueError(f"{place} is too large") from None


TEXT: Final = _typed(str)
BOOL: Final = _typed(bool)
INT: Final[Reader] = _int
NUMBER: Final[Reader] = _number
