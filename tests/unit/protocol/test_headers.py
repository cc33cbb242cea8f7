"""Which header lines may travel to a destination (docs/protocol.md 3.5)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtasks.protocol.headers import BROKER_OWNED, PER_CONNECTION, WireError, canonical_name, check_forwarded, decode


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("my-header", "My-Header"),
        ("MY-HEADER", "My-Header"),
        ("x_custom", "X_custom"),
        ("Upstash-Workflow-RunId", "Upstash-Workflow-Runid"),
        ("a--b-", "A--B-"),
        ("te", "Te"),
        ("x y", "x y"),
        ("é", "é"),
        ("", ""),
    ],
)
def test_names_are_written_as_go_writes_them(name: str, canonical: str) -> None:
    assert canonical_name(name) == canonical


@given(st.text())
def test_a_canonical_name_stays(name: str) -> None:
    assert canonical_name(canonical_name(name)) == canonical_name(name)


def test_order_and_repetition_are_kept_and_blanks_around_values_are_not() -> None:
    lines = [("B", " 1 "), ("A", ""), ("B", "\t2, 3")]
    assert check_forwarded(lines) == (("B", "1"), ("A", ""), ("B", "2, 3"))


@pytest.mark.parametrize("name", sorted(BROKER_OWNED))
def test_t12_the_brokers_own_headers_are_dropped(name: str) -> None:
    assert canonical_name(name) == name
    assert check_forwarded([(name, "forged"), ("A", "1")]) == (("A", "1"),)


@pytest.mark.parametrize("name", sorted(PER_CONNECTION))
@pytest.mark.parametrize("value", ["x", "", "a\r\nX: y", "\ud800"])
def test_t11_headers_of_the_connection_are_dropped_whatever_they_say(name: str, value: str) -> None:
    assert canonical_name(name) == name
    assert check_forwarded([(name, value), ("A", "1")]) == (("A", "1"),)


@pytest.mark.parametrize("name", ["", "X Y", "X:", "X\r\nY", "X\x00", "é", "(x)", "x,y"])
def test_t11_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(WireError, match="invalid forwarded header name"):
        check_forwarded([(name, "x")])


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\n", "a\rb", "\x00", "\x7f", "\x1b[2J", "é", "\u2028", "\ud800"])
def test_t11_a_bad_value_is_refused_naming_its_header(value: str) -> None:
    with pytest.raises(WireError, match="invalid value of forwarded header X-Y"):
        check_forwarded([("X-Y", value)])


def test_sixty_four_lines_and_16_kib_are_the_limit() -> None:
    assert len(check_forwarded([("A", "1")] * 64)) == 64
    assert check_forwarded([("A", "x" * (16 * 1024 - 1))])
    assert len(check_forwarded([("A", "1")] * 64 + [("Host", "x" * 16 * 1024)])) == 64
    for lines, words in (([("A", "1")] * 65, "65 > 64"), ([("A", "x" * 16 * 1024)], "16385 > 16384 bytes")):
        with pytest.raises(WireError, match=words) as caught:
            check_forwarded(lines)
        assert caught.value.status == 431


@pytest.mark.parametrize(
    ("raw", "text"), [(b"abc", "abc"), ("Müller".encode(), "Müller"), ("Müller".encode("latin-1"), "Müller")]
)
def test_a_value_is_read_as_utf8_or_else_as_latin1(raw: bytes, text: str) -> None:
    assert decode(raw) == text
