"""Types that pydantic would write with a loss, each with a form in which all of it travels.

`bytes` travel as base64; a datetime or time in a zone as RFC 9557 writes it,
``2026-07-01T12:00:00+02:00[Europe/Berlin]``; a regular expression with other flags than those in its text as an object.
What can be iterated arrives as a list.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import enum
import re
import sys
import zoneinfo
from collections.abc import Callable, Iterable
from typing import Annotated, Any, get_args

import annotated_types
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    FutureDatetime,
    GetCoreSchemaHandler,
    JsonValue,
    NaiveDatetime,
    PastDatetime,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapSerializer,
    WrapValidator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

WIRE: Any = {"qtasks": "wire"}
"""The validation context of values that come from JSON, and not from a caller."""

_SURROGATES = re.compile("[\ud800-\udfff]")
_ZONED = re.compile(r"(?P<time>[^\[]+)(?:\[(?P<zone>[^\]=]+)\])?(?P<fold>\[_fold=1\])?")
_LOOSE: dict[type, TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in (dt.datetime, dt.time)}


def from_wire(read: Callable[[Any], object]) -> BeforeValidator:
    """Reads a value with `read` if it comes from JSON; a caller's value is left to pydantic."""

    def validate(value: object, info: ValidationInfo) -> object:
        return read(value) if info.context is WIRE else value

    return BeforeValidator(validate)


def _bytes_read(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None


def _bytes_written(value: Any, handler: SerializerFunctionWrapHandler) -> Any:
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else handler(value)


def _zone_read(name: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"this machine does not know the time zone {name!r}") from None


def _moment_from_wire(kind: type, zoned: Callable[[re.Match[str]], object]) -> WrapValidator:
    """Reads a text with a zone or a fold with `zoned`; any other as pydantic does, but in strict mode too."""

    def validate(value: object, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> object:
        if info.context is not WIRE or not isinstance(value, str) or (match := _ZONED.fullmatch(value)) is None:
            return handler(value)
        if match["zone"] is not None or match["fold"] is not None:
            return handler(zoned(match))
        try:
            return handler(value)
        except ValidationError:  # what a function has read is not JSON any more, of which strict mode takes a text
            return handler(_LOOSE[kind].validate_python(value))

    return WrapValidator(validate)


def _zoned_datetime(match: re.Match[str]) -> dt.datetime:
    if match["zone"] is None:
        moment: dt.datetime = _LOOSE[dt.datetime].validate_python(match["time"])
        return moment.replace(fold=1)
    moment, zone = dt.datetime.fromisoformat(match["time"]), _zone_read(match["zone"])
    offset, local = moment.utcoffset(), moment.replace(tzinfo=zone)
    folds = (1, 0) if match["fold"] else (0, 1)
    same = [local.replace(fold=fold) for fold in folds if local.replace(fold=fold).utcoffset() == offset]
    # The rules of the zone may differ between two machines; the moment is what was meant.
    return same[0] if same else moment.astimezone(zone)


def _datetime_written(value: Any, handler: SerializerFunctionWrapHandler) -> Any:
    if not isinstance(value, dt.datetime):
        return handler(value)
    if not isinstance(value.tzinfo, zoneinfo.ZoneInfo) or not value.tzinfo.key:
        return handler(value) + "[_fold=1]" if value.fold else handler(value)
    text = f"{value.isoformat()}[{value.tzinfo.key}]"
    is_told = value.fold == 0 or value.replace(fold=0).utcoffset() != value.utcoffset()
    return text if is_told else f"{text}[_fold=1]"


def _zoned_time(match: re.Match[str]) -> dt.time:
    moment: dt.time = _LOOSE[dt.time].validate_python(match["time"])
    zone = moment.tzinfo if match["zone"] is None else _zone_read(match["zone"])
    return moment.replace(tzinfo=zone, fold=1 if match["fold"] else 0)


def _time_written(value: Any, handler: SerializerFunctionWrapHandler) -> Any:
    if not isinstance(value, dt.time):
        return handler(value)
    fold = "[_fold=1]" if value.fold else ""
    if isinstance(value.tzinfo, zoneinfo.ZoneInfo) and value.tzinfo.key:
        return f"{value.replace(tzinfo=None).isoformat()}[{value.tzinfo.key}]{fold}"
    return f"{handler(value)}{fold}" if fold else handler(value)


def _pattern_read(value: object) -> object:
    if isinstance(value, dict) and isinstance(value.get("pattern"), str) and type(value.get("flags")) is int:
        return re.compile(value["pattern"], value["flags"])
    return value


def _pattern_written(value: Any, handler: SerializerFunctionWrapHandler) -> Any:
    if not isinstance(value, re.Pattern) or not isinstance(value.pattern, str):
        return handler(value)
    is_plain = value.flags == re.compile(value.pattern).flags
    return value.pattern if is_plain else {"pattern": value.pattern, "flags": value.flags}


class _Listed:
    """Beside ``list[...]``: takes what can be iterated, and reads it once, here."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        listed = handler(source)
        # Not in front of JSON: what a function has returned is not read as JSON any more.
        from_caller = core_schema.no_info_before_validator_function(_iterated, listed)
        return core_schema.json_or_python_schema(json_schema=listed, python_schema=from_caller)


def _iterated(value: Any) -> Any:
    return list(value) if isinstance(value, Iterable) and not isinstance(value, list) else value


class _UnknownTypeError(Exception):
    """A value is not one of those that JSON has."""


_LEAVES = (str, int, float, bool, type(None))


def _copied(value: Any) -> Any:
    """JSON values, copied. A value of a subclass raises: it would arrive as its base."""
    kind = type(value)
    if kind in _LEAVES:
        return value
    if kind is list:
        return [_copied(item) for item in value]
    if kind is dict and all(map(_is_text, value)):
        return {key: _copied(item) for key, item in value.items()}
    raise _UnknownTypeError


def _is_text(key: object) -> bool:
    """True for a key that is written as it is: half of a surrogate pair would be replaced without a word."""
    return type(key) is str and (key.isascii() or not _SURROGATES.search(key))


def _json_checked(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return _copied(value)
    except (_UnknownTypeError, RecursionError):
        handler(value)  # what no JSON value is at all, and the limit of depth, are pydantic's errors
    path, part = _unknown(value)
    error = PydanticCustomError("invalid-json-value", "input was not a valid JSON value")
    raise ValidationError.from_exception_data("JSON", [{"type": error, "loc": path, "input": part}])


def _unknown(value: Any) -> tuple[tuple[str | int, ...], Any]:
    """The first part of a value that is of a subclass, and the path that leads to it."""
    items = value.items() if type(value) is dict else enumerate(value) if type(value) is list else ()
    for step, part in items:
        if isinstance(step, str) and not _is_text(step):
            return (), step
        try:
            _copied(part)
        except _UnknownTypeError:
            path, culprit = _unknown(part)
            return (step, *path), culprit
    return (), value


BYTES = Annotated[bytes, from_wire(_bytes_read), WrapSerializer(_bytes_written, return_type=str, when_used="json")]
_OF_DATETIME = (
    _moment_from_wire(dt.datetime, _zoned_datetime),
    WrapSerializer(_datetime_written, return_type=str, when_used="json"),
)
DATETIMES: dict[Any, Any] = {
    kind: Annotated[(kind, *_OF_DATETIME)]
    for kind in (dt.datetime, AwareDatetime, NaiveDatetime, FutureDatetime, PastDatetime)
}
TIME = Annotated[
    dt.time, _moment_from_wire(dt.time, _zoned_time), WrapSerializer(_time_written, return_type=str, when_used="json")
]
JSON_VALUE = Annotated[JsonValue, WrapValidator(_json_checked)]
"""A JSON value, and no subclass of its types: of an enum with a text, the text would arrive."""
TEXT_KEY = Annotated[str, annotated_types.MaxLen(sys.maxsize)]
"""A key that is a text. With a limit pydantic looks into it, and refuses half of a surrogate pair."""
LISTED = _Listed()
AS_LIST, AS_SET = AfterValidator(list), AfterValidator(set)
"""Beside an abstract container: what the task gets is a list or a set, like what the caller gave."""


def pattern(annotation: Any) -> Any:
    """A regular expression with its flags. `annotation` is ``re.Pattern`` or ``re.Pattern[str]``."""
    return Annotated[annotation, from_wire(_pattern_read), WrapSerializer(_pattern_written, when_used="json")]


def literal(annotation: Any) -> Any:
    """A ``Literal``; of its members of an Enum pydantic would read none from JSON."""
    members = {member.value: member for member in get_args(annotation) if isinstance(member, enum.Enum)}
    if not members:
        return annotation

    def read(value: object) -> object:
        return members.get(value, value) if isinstance(value, (str, int, float)) else value

    return Annotated[annotation, from_wire(read)]
