"""Unions whose members look alike in JSON, such as ``date | datetime`` or ``bytes | str``; and keys that are not texts.

A value is written plainly if its plain form is read as the same value. Otherwise it travels with the name of the member
that takes it: ``{"qtasks.type": "date", "value": "2026-01-01"}``. So does a dictionary that looks like such an object.
A mapping travels as its items: ``{"qtasks.type": "items", "value": [[1, "a"]]}``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import GetCoreSchemaHandler, TypeAdapter, ValidationInfo, ValidatorFunctionWrapHandler
from pydantic_core import CoreSchema, core_schema

from qtasks.lazy import lazy_property
from qtasks.tasks.encode.equality import difference, mentions_abstract
from qtasks.tasks.encode.plain_form import finished
from qtasks.tasks.encode.typed_json import read_text
from qtasks.tasks.encode.wire_types import WIRE

_NAME, _VALUE = "qtasks.type", "value"


class Tagged:
    """Beside a type in ``Annotated``: a value that its plain form would change travels as one of the `members`.

    `split` makes of a value what the members write, and `join` the reverse.
    """

    def __init__(
        self,
        whole: Any,
        members: Mapping[str, Any],
        *,
        split: Callable[[Any], Any] = lambda value: value,
        join: Callable[[Any], Any] = lambda value: value,
        reveals_secrets: bool = False,
    ) -> None:
        self._whole = whole
        self._members = members
        self._split = split
        self._join = join
        self._reveals_secrets = reveals_secrets
        self._is_abstract = mentions_abstract(whole)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The type's own validation for a caller's value; the wire's form for JSON."""
        return core_schema.with_info_wrap_validator_function(
            self._validate,
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(self._written, when_used="json"),
        )

    def _validate(self, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        return self._read(value) if info.context is WIRE else handler(value)

    def _read(self, plain: Any) -> Any:
        if isinstance(plain, dict) and _NAME in plain:
            name = plain[_NAME]
            if name not in self._members or plain.keys() != {_NAME, _VALUE}:
                raise ValueError(f"the declared type has no member {name!r}; it has {', '.join(self._members)}")
            value = self._join(read_text(self._adapter_of(name), plain[_VALUE]))
            return self._adapter.validate_python(value)  # what a caller's value has passed
        return self._adapter.validate_python(plain, context=WIRE, by_name=True, by_alias=True)

    def _written(self, value: Any) -> Any:
        first: list[Any] = []
        for plain in self._forms(value):
            first = first or [plain]
            try:
                if difference(value, self._read(plain), is_abstract=self._is_abstract) is None:
                    return plain
            except Exception:  # noqa: S112 - validators of the user's classes may raise anything
                continue
        # None of them: the proof of the whole value finds the change, and where it is.
        return first[0] if first else repr(value)

    def _forms(self, value: Any) -> Iterator[Any]:
        """The plain form, then those that name a member."""
        plain = self._plain(self._adapter, value)
        if plain and not (isinstance(plain[0], dict) and _NAME in plain[0]):
            yield plain[0]
        for name in self._members:
            for inner in self._plain(self._adapter_of(name), self._split(value)):
                yield {_NAME: name, _VALUE: inner}

    def _plain(self, adapter: TypeAdapter[Any], value: Any) -> list[Any]:
        try:
            plain = adapter.dump_python(value, mode="json", round_trip=True, by_alias=False, warnings="none")
            return [finished(value, plain, reveals_secrets=self._reveals_secrets)]
        except Exception:  # a member that cannot write this value; serializers of the user may raise anything
            return []

    @lazy_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self._whole)

    @lazy_property
    def _adapters(self) -> dict[str, TypeAdapter[Any]]:
        return {}

    def _adapter_of(self, name: str) -> TypeAdapter[Any]:
        if name not in self._adapters:
            self._adapters[name] = TypeAdapter(self._members[name])
        return self._adapters[name]
