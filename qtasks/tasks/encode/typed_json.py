"""Values of one annotated type, written as JSON and read from it.

A caller's value is checked first. What is then written can be read again: on the other side of the wire it has to be
equal, and of the same type.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter

from qtasks.tasks.encode.annotations import WIRE

T = TypeVar("T")


class TypedJson(Generic[T]):
    """Checks, writes and reads the values of one type."""

    def __init__(self, adapter: TypeAdapter[T]) -> None:
        self._adapter = adapter

    def check(self, value: object) -> T:
        """A caller's value, converted to the type. Raises pydantic's ValidationError."""
        return self._adapter.validate_python(value)

    def write(self, checked: T) -> Any:
        """A checked value as plain JSON values.

        Raises PydanticSerializationError, ValueError, TypeError or RecursionError for a value that JSON cannot carry.
        """
        # Names, never aliases: of the two an alias may be different for reading and for writing.
        return self._adapter.dump_python(checked, mode="json", round_trip=True, by_alias=False)

    def read(self, plain: object) -> T:
        """The value that was written as `plain`. Raises pydantic's ValidationError."""
        return self._adapter.validate_python(plain, context=WIRE, by_name=True, by_alias=True)
