from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtasks.protocol import quick_json, strict_json


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"null", None),
        (b' {"a": [1, 2.5, "x", true, null, {}]}\r\n\t', {"a": [1, 2.5, "x", True, None, {}]}),
        ('"snow ☃"'.encode(), "snow ☃"),
        (rb'"\ud83d\ude00"', "\U0001f600"),
        (rb'"\\u0000 \\\\ud800"', r"\u0000 \\ud800"),
        (b"9007199254740992", 2**53),
        (b"-9007199254740992", -(2**53)),
        (b"1e5", 1e5),
        (b"[" * 32 + b"]" * 32, None),
        (b'"' + b"[" * 1000 + b'\\"[{"', None),
        (b"[" + b"[]," * 1000 + b"{}]", None),
    ],
)
def test_json_is_read(data: bytes, value: object) -> None:
    assert strict_json.loads(data) == (json.loads(data) if value is None else value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Expecting value at line 1 column 1"),
        (b"{", "Expecting property name"),
        (b"[1,]", "Expecting value|Illegal trailing comma"),
        (b"1 2", "Extra data"),
        (b"'x'", "Expecting value"),
        (b'"\x00"', "Invalid control character"),
        (b'"a\nb"', "Invalid control character"),
        (b"\xff", "not UTF-8 at byte 0"),
        (b'"\xed\xa0\x80"', "not UTF-8 at byte 1"),
        ('{"a":1}'.encode("utf-16"), "not UTF-8"),
        ('{"a":1}'.encode("utf-32"), "not UTF-8"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"a":1,"a":2}', "duplicate name 'a'"),
        (b'{"x":{"a":1,"b":1,"a":2}}', "duplicate name 'a'"),
        (rb'{"a":1,"\u0061":2}', "duplicate name 'a'"),
        (b"NaN", "NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b"1e400", "too large for a float"),
        (b"-1e400", "too large for a float"),
        (b"9007199254740993", "beyond 2^53"),
        (b"-9007199254740993", "beyond 2^53"),
        (b"1" * 5000, "beyond 2^53"),
        (rb'"\ud800"', "half of a surrogate pair (\\ud800)"),
        (rb'"\uD9ff"', "half of a surrogate pair"),
        (rb'{"\uDC00": 1}', "half of a surrogate pair"),
        (rb'"\ud83dx\ude00"', "half of a surrogate pair"),
        (rb'"\ud83d\ud83d\ude00"', "half of a surrogate pair"),
        (rb'"\u0000"', "a NUL character"),
        (rb'"\\\u0000"', "a NUL character"),
        (b"[" * 33 + b"]" * 33, "nested deeper than 32 levels"),
        (b'{"a":' * 33 + b"1" + b"}" * 33, "nested deeper than 32 levels"),
        (b"[" * 100_000, "nested deeper than 32 levels"),
        (b'["\\"", ' + b"[" * 100_000, "nested deeper than 32 levels"),
        (b'"' + b'\\"' * 500_000 + b"[" * 40, "Unterminated string"),
    ],
)
def test_what_readers_disagree_about_is_refused(data: bytes, reason: str) -> None:
    pattern = reason if "|" in reason else re.escape(reason)
    with pytest.raises(ValueError, match=f"^invalid JSON: .*(?:{pattern})"):
        strict_json.loads(data)


def test_big_integers_are_read_where_allowed() -> None:
    assert strict_json.loads(b"[175928847299117063, -1e2]", big_integers=True) == [175928847299117063, -100.0]
    assert strict_json.loads(b"1" * 4300, big_integers=True) == int("1" * 4300)
    with pytest.raises(ValueError, match="invalid JSON: an integer of more than 4300 digits"):
        strict_json.loads(b"1" * 4301, big_integers=True)


def test_the_depth_can_be_chosen() -> None:
    assert strict_json.loads(b"[[[1]]]", max_depth=3) == [[[1]]]
    with pytest.raises(ValueError, match="deeper than 2"):
        strict_json.loads(b"[[[1]]]", max_depth=2)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@given(json_values, st.booleans())
def test_what_json_writes_is_read_back_unless_it_holds_nul(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    if r"\u0000" not in text.replace(r"\\", ""):
        assert strict_json.loads(text.encode()) == value


@given(st.binary() | st.text(r'[]{}",:\ud80c0 1e-', max_size=40).map(str.encode))
def test_any_bytes_are_read_as_json_does_or_refused(data: bytes) -> None:
    try:
        value = strict_json.loads(data)
    except ValueError as error:
        assert str(error).startswith("invalid JSON: ")  # noqa: PT017 - both ends are fine
    else:
        assert value == json.loads(data)


def deepest(text: str) -> int:
    """Nesting counted one character at a time."""
    depth = most = 0
    inside = escaped = False
    for character in text:
        if inside:
            inside, escaped = escaped or character != '"', character == "\\" and not escaped
        elif character == '"':
            inside = True
        else:
            depth += (character in "[{") - (character in "]}")
            most = max(most, depth)
    return most


@given(
    st.recursive(
        st.text('[]{}"\\a,', max_size=6),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('[{"\\', max_size=3), inner, max_size=3),
        max_leaves=12,
    ),
    st.integers(1, 5),
)
def test_depth_is_counted_outside_strings(value: Any, max_depth: int) -> None:
    for data in (json.dumps(value).encode(), quick_json.dumps(value)):
        if deepest(data.decode()) <= max_depth:
            assert strict_json.loads(data, max_depth=max_depth) == value
        else:
            with pytest.raises(ValueError, match=f"nested deeper than {max_depth} levels"):
                strict_json.loads(data, max_depth=max_depth)


@given(st.text('[]{}"\\a', max_size=60), st.integers(1, 5))
def test_no_text_gets_deeper_than_allowed(text: str, max_depth: int) -> None:
    try:
        strict_json.loads(text.encode(), max_depth=max_depth)
    except ValueError:
        return
    assert deepest(text) <= max_depth


numbers = st.integers(-(2**70), 2**70) | st.floats()
pieces = st.sampled_from(
    [
        *'{}[],:"',
        *("\\", " ", "\n", "\0", "\ufeff", "true", "null", "NaN", "Infinity", '"a":', '"a":1', "[" * 33 + "]" * 33),
        *("0", "-0", "-0.0", "1e400", "1E5", "0.1000", "1" * 30, *(str(2**bits + 1) for bits in (53, 63, 64))),
        *('"\\u0000"', '"\\ud800"', '"\\ud83d\\ude00"', '"\\u00e9"', '"\\u001f"', '"é☃😀"', '"\\n\\""'),
    ]
)
texts = (
    st.recursive(
        numbers.map(json.dumps) | st.text(max_size=6).map(json.dumps) | pieces,
        lambda inner: (
            st.lists(inner, max_size=4).map(lambda parts: f"[{','.join(parts)}]")
            # Names may stand twice.
            | st.lists(st.tuples(st.sampled_from("abc"), inner), max_size=4).map(
                lambda members: "{{{}}}".format(",".join(f'"{name}":{value}' for name, value in members))
            )
        ),
        max_leaves=12,
    ).map(lambda text: text.encode(errors="surrogatepass"))
    | st.lists(pieces, max_size=8).map(lambda parts: "".join(parts).encode(errors="surrogatepass"))
    | st.binary(max_size=30)
)


@given(texts, st.booleans(), st.integers(1, 40), st.none() | st.integers(1, 5))
def test_with_and_without_orjson_the_same_texts_are_read_and_refused(
    data: bytes, big_integers: bool, max_depth: int, max_values: int | None
) -> None:
    outcomes = []
    for is_quick in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(quick_json, "is_quick", is_quick)
            try:
                value = strict_json.loads(data, max_depth=max_depth, max_values=max_values, big_integers=big_integers)
                outcomes.append(repr(value))  # tells 1 from 1.0, and 0.0 from -0.0
            except ValueError as error:
                outcomes.append(f"refused: {error}")
    assert outcomes[0] == outcomes[1]


def test_what_our_programs_write_is_read_by_orjson(monkeypatch: pytest.MonkeyPatch) -> None:
    document = {"v": 1, "id": "call_1", "args": [1, -2.5, True, None, 'é☃\n"\\'], "kwargs": {"a": {"b": [2**63]}}}
    monkeypatch.setattr(strict_json, "_ANY_INTEGER", None)
    assert strict_json.loads(quick_json.dumps(document), big_integers=True) == document


def test_a_batch_of_our_client_is_read_by_orjson(monkeypatch: pytest.MonkeyPatch) -> None:
    document = [{"headers": {"A": "1"}, "body": '{"args":[{}]}'}] * 1000
    monkeypatch.setattr(strict_json, "_ANY_INTEGER", None)
    assert strict_json.loads(quick_json.dumps(document), big_integers=True, max_values=250_000) == document
