"""The query of a callback URL, and the header that carries a call."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtasks.errors import PayloadError
from qtasks.protocol import targets
from qtasks.protocol.headers import check_forwarded
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.llm import callback_url, model_request
from qtasks.tasks.llm.callback_url import CallbackQuery, Repair

ids = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=128)
tokens = st.integers(0, 10**12)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
queries = st.builds(
    CallbackQuery,
    ids,
    digests,
    st.none() | st.builds(Repair, source=ids, input_tokens=tokens, output_tokens=tokens),
    st.integers(0, 10**9 - 1),
    st.booleans(),
)
values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(queries)
def test_a_query_is_read_as_it_was_written_and_stands_in_a_url(made: CallbackQuery) -> None:
    query = made.text()
    assert callback_url.read(query) == made
    targets.check_url(f"https://app.example.com/qtasks/summarise?{query}")


@given(st.text(max_size=200))
def test_any_other_query_is_none(query: str) -> None:
    with pytest.raises(PayloadError):
        callback_url.read(query)


@given(queries, st.data())
def test_a_query_with_one_character_changed_is_another_query_or_none(made: CallbackQuery, data: st.DataObject) -> None:
    """One call has exactly one spelling, so a signed URL has one meaning."""
    query = made.text()
    place = data.draw(st.integers(0, len(query) - 1))
    changed = query[:place] + data.draw(st.characters()) + query[place + 1 :]
    try:
        read = callback_url.read(changed)
    except PayloadError:
        return
    assert (read == made) == (changed == query)


@given(ids, st.lists(values, max_size=3), st.dictionaries(st.text("abc", min_size=1), values, max_size=3))
def test_a_call_is_read_as_it_was_written_and_is_a_header(
    call_id: str, args: list[Any], kwargs: dict[str, Any]
) -> None:
    envelope = Envelope(call_id, args, kwargs, 3, expires_ms=5)
    written = model_request.encode(envelope)
    assert model_request.decode(written) == envelope
    assert check_forwarded([(model_request.HEADER, written)]) == ((model_request.HEADER, written),)


@pytest.mark.parametrize("call", ["", "%", "e30", "e30=", "eyJ2IjoxfQ==\n", "\xff"])
def test_what_is_no_call_is_refused(call: str) -> None:
    with pytest.raises(PayloadError):
        model_request.decode(call)
