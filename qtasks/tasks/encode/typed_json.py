"""Values of one annotated type, written as JSON and read from it.

A caller's value is checked first. What is then written can be read again: on the other side of the wire it is equal,
and of the same type. Of a few types that is known: those that JSON has itself, and collections of them. A value of any
other type proves it when it is written: it is read again there and then, exactly as the other side will read it, and
compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pydantic_core
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from qtasks.masking import is_secret_name
from qtasks.tasks.encode.equality import Divergence, difference
from qtasks.tasks.encode.plain_form import SECRETS, finished
from qtasks.tasks.encode.shown_values import path_of, shown
from qtasks.tasks.encode.wire_types import WIRE

T = TypeVar("T")


class NotPortable(ValueError):
    """A value would not arrive as it is: the path that leads to it, the reason, and what can be done."""

    def __init__(self, path: str, reason: str, fix: str | None = None) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.path = path
        self.reason = reason
        self.fix = fix


@dataclass(frozen=True, slots=True)
class Proof:
    """What has to be proved when values of a type are written."""

    reader: TypeAdapter[Any]
    """Reads the values that are proved."""
    names: frozenset[str] | None = None
    """Of a record, the values that are proved; None for the value itself."""
    is_abstract: bool = False
    """True if a tuple may arrive as a list, because the declared type is abstract."""
    is_finished: bool = False
    """True if the plain form has to be finished: it has sets, or secrets that are revealed."""
    reveals_secrets: bool = False


class TypedJson(Generic[T]):
    """Checks, writes and reads the values of one type. Without a `proof` the values need none.

    It asks the validator and the serializer in `adapter`, whose own methods take as long again to hand over arguments.
    """

    def __init__(self, adapter: TypeAdapter[T], proof: Proof | None = None) -> None:
        self._adapter = adapter
        self._proof = proof
        # JSON is read as JSON: in strict mode a text may stand for a date there, but not in Python.
        self._reads_text = proof is not None and (proof.names is None or bool(proof.names))

    def check(self, value: object) -> T:
        """A caller's value, converted to the type. Raises pydantic's ValidationError."""
        return self._adapter.validator.validate_python(value)  # type: ignore[no-any-return]

    def write(self, checked: T) -> Any:
        """A checked value as plain JSON values.

        Raises NotPortable for a value that would arrive changed; PydanticSerializationError, ValueError, TypeError or
        RecursionError for one that JSON cannot carry.
        """
        # Names, never aliases: of the two an alias may be different for reading and for writing.
        proof = self._proof
        if proof is None:
            return self._adapter.serializer.to_python(checked, mode="json", round_trip=True, by_alias=False)
        try:
            plain = self._adapter.dump_python(checked, mode="json", round_trip=True, by_alias=False, warnings="none")
        except (PydanticSerializationError, ValueError) as error:
            raise _not_written(checked, error) from None
        if proof.is_finished:
            plain = finished(checked, plain, reveals_secrets=proof.reveals_secrets)
        if self._reads_text:
            _prove(proof, checked, plain)
        return plain

    def read(self, plain: object) -> T:
        """The value that was written as `plain`. Raises pydantic's ValidationError."""
        if self._reads_text:
            return read_text(self._adapter, plain)
        return self._adapter.validator.validate_python(plain, context=WIRE, by_name=True, by_alias=True)  # type: ignore[no-any-return]


def read_text(adapter: TypeAdapter[T], plain: object) -> T:
    """Read plain JSON values as the JSON text that they were. Raises pydantic's ValidationError."""
    return adapter.validate_json(json.dumps(plain), context=WIRE, by_name=True, by_alias=True)


def _prove(proof: Proof, checked: Any, plain: Any) -> None:
    if proof.names is not None:
        checked = {name: value for name, value in checked.items() if name in proof.names}
        plain = {name: plain[name] for name in checked}
        if not checked:
            return
    try:
        arrived = read_text(proof.reader, plain)
    except ValidationError as error:
        raise _not_read(checked, error) from None
    changed = difference(checked, arrived, is_abstract=proof.is_abstract)
    if changed is not None:
        raise _changed(changed)


def _changed(changed: Divergence) -> NotPortable:
    path = changed.path.removeprefix(".")
    if is_secret_name(path) or isinstance(changed.sent, SECRETS):
        return NotPortable(path, "its value is not shown, and would not arrive as it is", _FIX)
    sent, arrived = shown(changed.sent), shown(changed.arrived)
    return NotPortable(path, f"{sent} would arrive as {arrived}", _fix(changed))


_FIX = "declare a type of which JSON can carry every value, or pass a key and look the value up in the task"


def _fix(changed: Divergence) -> str:
    zone = getattr(changed.sent, "tzinfo", None)
    if zone is not None and type(changed.sent) is type(changed.arrived):
        return "convert it to UTC, and pass the name of its zone beside it; a parameter of this type keeps its zone"
    sent, arrived = type(changed.sent), type(changed.arrived)
    if sent is not arrived and issubclass(sent, arrived):
        return f"declare {sent.__name__}, or a union that contains it; fields of a subclass are lost"
    return _FIX


def _not_read(checked: Any, error: ValidationError) -> NotPortable:
    first = error.errors(include_url=False)[0]
    path = path_of(first["loc"], checked)
    message = "" if is_secret_name(path) else f": {first['msg']}"
    return NotPortable(path, f"it is written, but could not be read again{message}", _FIX)


def _not_written(checked: Any, error: Exception) -> NotPortable:
    return NotPortable(_unwritable(checked).removeprefix("."), str(error), _FIX)


def _unwritable(value: Any) -> str:
    """The path of the first part that cannot be written, as far as it is known."""
    parts: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        parts = [(f".{name}", part) for name, part in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(f"[{index}]", part) for index, part in enumerate(value)]
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        parts = [(f".{name}", part) for name, part in vars(value).items()]
    for step, part in parts:
        try:
            pydantic_core.to_jsonable_python(part, bytes_mode="utf8")
        except (PydanticSerializationError, ValueError):
            return step + _unwritable(part)
    return ""
