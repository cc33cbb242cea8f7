"""Strict JSON reader for input from outside.

Python's reader accepts duplicate names, ``NaN``, ``1e400``, integers of any length and half of a surrogate pair, and it
recurses as deep as the text nests. Each of these can crash later code, or mean something else to another program, so
this reader refuses each of them with an error that names the reason. It checks the depth before anything recurses.

Most texts come from our own programs, which write JSON in one way. So where orjson is installed, a text is first read
by it and written again. If the bytes are the same, nothing in them is refused here: a name that stands twice would have
been lost, a number too large would have changed. Any other text is read as if orjson were not there.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, NoReturn

from qtasks.protocol import quick_json

MAX_DEPTH = 32
MAX_INTEGER = 2**53
"""Largest magnitude on which all JSON readers agree (RFC 8259, section 6)."""

MAX_DIGITS = 4300
"""Largest number of digits with `big_integers`: the time to read an integer grows with the square of its length."""

_OPEN_AND_CLOSE = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_TO_ZERO = bytes(ord("0") if byte in b"0123456789" else ord(" ") for byte in range(256))
_LONG = b"0" * 16
"""Digits of the smallest integer beyond `MAX_INTEGER`, all of them replaced by zeros."""
_UNREAD: Final = object()
_CONTAINERS: Final = frozenset({dict, list})
# Alternatives in this order: a proper pair (fine), a half of one or NUL (named), any other escape (fine).
_ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|\\u(?P<bad>0000|[dD][89a-fA-F][0-9a-fA-F]{2})"
    r"|\\.",
    re.DOTALL,
)


def loads(
    data: bytes, *, max_depth: int = MAX_DEPTH, max_values: int | None = None, big_integers: bool = False
) -> object:
    """Read one JSON value from UTF-8 bytes.

    `max_values` limits how many values there are in all: each of them costs far more memory and time than its bytes.
    Integers up to 2^53 in magnitude; with `big_integers` up to 4300 digits (ids made by snowflake generators are
    larger than 2^53). Raises ValueError ``invalid JSON: ...``, and no other exception for any bytes.
    """
    if (quickly_read := _read_quickly(data, max_depth, max_values, big_integers=big_integers)) is not _UNREAD:
        return quickly_read
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid JSON: not UTF-8 at byte {error.start}") from None
    if text.startswith("\ufeff"):
        raise ValueError("invalid JSON: starts with a byte order mark")
    if data.count(b"[") + data.count(b"{") > max_depth and _is_deeper(data, max_depth):
        raise ValueError(f"invalid JSON: nested deeper than {max_depth} levels")
    if max_values is not None and data.count(b",") >= max_values and outside_strings(data).count(b",") >= max_values:
        raise ValueError(f"invalid JSON: more than {max_values} values")
    if "\\u" in text:
        _refuse_bad_escapes(text)
    try:
        value: object = (_ANY_INTEGER if big_integers else _SAFE_INTEGER).decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    return value


def _read_quickly(data: bytes, max_depth: int, max_values: int | None, *, big_integers: bool) -> object:
    """The value of a text that needs no other check than these; `_UNREAD` for any other text."""
    if (
        not quick_json.is_quick
        or (max_values is not None and data.count(b",") >= max_values)
        or (not big_integers and _LONG in data.translate(_TO_ZERO))
        or b"\\u0000" in data  # NUL is written again as it was
    ):
        return _UNREAD
    try:
        value: object = quick_json.loads(data)
        if data.count(b"[") + data.count(b"{") > max_depth and _nests_deeper(value, max_depth):
            return _UNREAD
        return value if quick_json.dumps(value) == data else _UNREAD
    except (ValueError, TypeError):
        return _UNREAD


def _nests_deeper(value: object, levels: int) -> bool:
    """True if arrays and objects in a value nest deeper than `levels`. orjson reads no more than a thousand levels."""
    layer: list[Any] = [value]
    while containers := [each for each in layer if type(each) in _CONTAINERS]:
        if levels == 0:
            return True
        levels -= 1
        layer = [inner for outer in containers for inner in (outer.values() if type(outer) is dict else outer)]
    return False


def _is_deeper(data: bytes, levels: int) -> bool:
    """True if brackets outside strings nest deeper than `levels`. Fast, because a body may have a million brackets."""
    brackets = outside_strings(data).translate(_OPEN_AND_CLOSE, _NO_BRACKETS)
    while levels > 0:
        size, brackets = len(brackets), brackets.replace(b"[]", b"")  # removes the innermost level only
        levels -= 1
        if len(brackets) * 4 > size * 3:  # little is gained: count the rest one by one
            break
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket == ord("[") else -1
        if depth > levels:
            return True
    return False


def outside_strings(data: bytes) -> bytes:
    """What of a JSON text lies outside its strings."""
    # Without escapes, every second piece between quotation marks lies outside a string. (A backslash outside
    # a string makes the count after it wrong, but the parser stops at that backslash.)
    return b"".join(data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])


def _refuse_bad_escapes(text: str) -> None:
    """Raise ValueError for half of a surrogate pair, which UTF-8 cannot store, or NUL, which PostgreSQL cannot."""
    for escape in _ESCAPE.finditer(text):
        if bad := escape["bad"]:
            what = "a NUL character" if bad == "0000" else "half of a surrogate pair"
            raise ValueError(f"invalid JSON: {what} (\\u{bad}) in a string")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        name = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"invalid JSON: duplicate name {name[:64]!r}")
    return result


def _safe_integer(digits: str) -> int:
    if len(digits) > 17 or abs(value := int(digits)) > MAX_INTEGER:
        raise ValueError("invalid JSON: an integer beyond 2^53")
    return value


def _any_integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"invalid JSON: an integer of more than {MAX_DIGITS} digits")
    return int(digits)


def _float(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError("invalid JSON: a number too large for a float")
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"invalid JSON: {name} is not a JSON number")


_SAFE_INTEGER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_safe_integer, parse_float=_float, parse_constant=_constant
)
_ANY_INTEGER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_any_integer, parse_float=_float, parse_constant=_constant
)
