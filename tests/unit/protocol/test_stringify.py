"""JSON as JavaScript writes it (docs/protocol.md 2.0)."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtasks.protocol.stringify import stringify

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [1, "b", None, True, False], "c": {}}, '{"a":[1,"b",null,true,false],"c":{}}'),
        ("é😀\u2028\x7f/", '"é😀\u2028\x7f/"'),
        ('\b\t\n\f\r\x00\x1f"\\', r'"\b\t\n\f\r\u0000\u001f\"\\"'),
        ("\ud800x\udfff", r'"\ud800x\udfff"'),
        ("\ud83d\ude00 \ude00\ud83d", r'"😀 \ude00\ud83d"'),
        ({"\udabc": "\udabc"}, r'{"\udabc":"\udabc"}'),
        (1.0, "1"),
        (-0.0, "0"),
        (1e21, "1e+21"),
        (1.2345678901234567e20, "123456789012345670000"),
        (1.5e300, "1.5e+300"),
        (0.000001, "0.000001"),
        (0.0000001, "1e-7"),
        (-1.25e-9, "-1.25e-9"),
        (123.456, "123.456"),
        (5e-324, "5e-324"),
        (2**63, "9223372036854775808"),
        ([math.nan, math.inf], "[null,null]"),
        (("a", ("b",)), '["a",["b"]]'),
    ],
)
def test_a_value_has_the_text_that_javascript_gives_it(value: object, text: str) -> None:
    assert stringify(value).decode() == text


@given(values)
def test_every_value_is_read_back_as_it_was(value: Any) -> None:
    assert json.loads(stringify(value), parse_int=float) == value  # JavaScript has no other numbers


@pytest.mark.parametrize("value", [b"bytes", {1: "x"}, {"x": {1, 2}}, [object()]])
def test_what_json_does_not_have_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        stringify(value)
