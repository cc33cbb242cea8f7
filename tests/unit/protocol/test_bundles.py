"""The lines of a bundle and of its response: what is written is what is read, and nothing else is read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtasks.protocol import bundles, quick_json
from qtasks.protocol.bundles import BundleItem, ItemOutcome, StillRunning

_TEXTS = st.text(st.characters(codec="utf-8"))
_HEADERS = st.lists(st.tuples(_TEXTS, _TEXTS)).map(tuple)
_ITEMS = st.builds(
    BundleItem,
    target=st.from_regex(r"[a-z_]{1,9}(\?[a-z=/]{0,9})?", fullmatch=True),
    headers=_HEADERS,
    body=_TEXTS.map(str.encode),
)
_COUNTS = st.integers(0, 2**53)
_OUTCOMES = st.builds(
    ItemOutcome,
    place=_COUNTS,
    status=st.integers(200, 599),
    headers=_HEADERS,
    body=_TEXTS.map(str.encode),
    after_ms=_COUNTS,
)


def line_of(item: BundleItem) -> bytes:
    line = bundles.item_line(item)
    assert line is not None
    return line


@given(st.lists(_ITEMS, min_size=1, max_size=bundles.MAX_ITEMS))
def test_the_deliveries_of_a_bundle_arrive_as_they_were_sent(items: list[BundleItem]) -> None:
    assert bundles.read_items(b"".join(map(line_of, items))) == items


@given(_OUTCOMES)
def test_an_outcome_arrives_as_it_was_sent(outcome: ItemOutcome) -> None:
    line = bundles.outcome_line(outcome)

    assert line.count(b"\n") == 1
    assert bundles.read_line(line[:-1]) == outcome


@given(_COUNTS)
def test_the_number_of_deliveries_that_run_arrives(count: int) -> None:
    assert bundles.read_line(bundles.running_line(count).rstrip()) == StillRunning(count)


def test_a_body_that_is_no_text_has_no_line() -> None:
    assert bundles.item_line(BundleItem("add", (), b"\xff")) is None


@given(st.binary())
def test_a_line_of_any_bytes_is_read_or_refused(line: bytes) -> None:
    try:
        bundles.read_line(line)
    except ValueError:
        return


@pytest.mark.parametrize(
    "wrong",
    [
        {"to": "a/b"},
        {"to": ""},
        {"to": None},
        {"headers": [["only a name"]]},
        {"headers": {"a": "b"}},
        {"headers": [["a", 1]]},
        {"body": 1},
        {"body": "\ud800"},
    ],
)
def test_a_delivery_of_another_shape_is_refused(wrong: dict[str, object]) -> None:
    right = {"to": "add", "headers": [["a", "b"]], "body": ""}
    assert bundles.read_items(json.dumps(right).encode() + b"\n")

    with pytest.raises(ValueError, match=r"."):
        bundles.read_items(json.dumps(right | wrong).encode() + b"\n")


@pytest.mark.parametrize("body", [b"", b"\n", b"{}", b"[]\n", b'{"to":"a","headers":[],"body":""}\n' * 65])
def test_what_is_no_bundle_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        bundles.read_items(body)


@pytest.mark.parametrize(
    "wrong",
    [{"at": -1}, {"at": True}, {"status": 199}, {"status": 600}, {"status": "200"}, {"ms": None}, {"body": None}],
)
def test_an_outcome_of_another_shape_is_refused(wrong: dict[str, object]) -> None:
    right = {"at": 0, "status": 200, "headers": [], "body": "", "ms": 0}
    assert bundles.read_line(json.dumps(right).encode())

    with pytest.raises(ValueError, match=r"."):
        bundles.read_line(json.dumps(right | wrong).encode())


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | _TEXTS,
        lambda v: st.lists(v) | st.dictionaries(_TEXTS, v),
    )
)
def test_the_standard_library_takes_the_place_of_orjson(value: object) -> None:
    dumps, loads = quick_json._of_standard_library()

    assert quick_json.loads(dumps(value)) == loads(quick_json.dumps(value)) == value
