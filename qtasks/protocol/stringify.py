"""JSON text exactly as JavaScript's ``JSON.stringify`` writes it (docs/protocol.md 2.0).

Receivers that were written against the hosted service compare and hash the bodies of callbacks, so one value must have
one text: no blanks, letters beyond ASCII as they are, halves of surrogate pairs escaped, and numbers as JavaScript
writes them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from json.encoder import encode_basestring

_SURROGATE = re.compile("[\ud800-\udfff]")


def stringify(value: object) -> bytes:
    """The JSON text of `value` in UTF-8: texts, numbers, booleans, None, and lists, tuples and mappings of them.

    Numbers that JSON does not have (NaN, infinity) are ``null``, as in JavaScript. Integers keep all their digits.
    Raises TypeError for a value of another kind, or a name that is not a text.
    """
    text = _written(value)
    if _SURROGATE.search(text):
        # A pair that stands as two halves is one letter; what is left over has no UTF-8.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        text = _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)
    return text.encode()


def _written(value: object) -> str:
    match value:
        case str():
            return encode_basestring(value)
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int():
            return int.__repr__(value)
        case float():
            return _number(value)
        case list() | tuple():
            return "[" + ",".join([_written(item) for item in value]) + "]"
        case Mapping():
            return "{" + ",".join([f"{_name(name)}:{_written(item)}" for name, item in value.items()]) + "}"
    raise TypeError(f"{type(value).__name__} has no JSON text")


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a name in a JSON object is a text, not {type(name).__name__}")
    return encode_basestring(name)


def _number(value: float) -> str:
    """The shortest digits that read back as `value`; the exponent form below 1e-6 and from 1e21 on."""
    if not math.isfinite(value):
        return "null"
    if value == 0:
        return "0"
    shortest = Decimal(repr(abs(value)))
    digits = "".join(map(str, shortest.as_tuple().digits)).rstrip("0")
    point = shortest.adjusted() + 1  # how many digits stand before the decimal point
    if 0 < point <= 21:
        whole, fraction = digits[:point].ljust(point, "0"), digits[point:]
        text = f"{whole}.{fraction}" if fraction else whole
    elif -6 < point <= 0:
        text = "0." + "0" * -point + digits
    else:
        text = digits[0] + ("." + digits[1:] if digits[1:] else "") + f"e{point - 1:+d}"
    return text if value > 0 else f"-{text}"
