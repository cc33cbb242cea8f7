"""Identifiers in the formats of the wire (docs/protocol.md 1.6)."""

from __future__ import annotations

import base64
import json
import re
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st

from qtasks.broker import ids
from qtasks.protocol import development
from qtasks.protocol.signing import check_keys
from qtasks.tasks.encode.envelope import MADE_ID, new_call_id
from tests.support.broker import START_MS, SeededRandom

BASE58 = "[1-9A-HJ-NP-Za-km-z]"


def decode(text: str) -> int:
    number = 0
    for letter in text:
        number = number * 58 + ids._ALPHABET.index(letter)
    return number


@given(st.binary(max_size=40), st.integers(0, 60))
def test_base58_says_the_same_number_in_at_least_that_width(data: bytes, width: int) -> None:
    text = ids.base58(data, width)
    assert decode(text) == int.from_bytes(data)
    assert len(text) >= width
    assert re.fullmatch(f"{BASE58}*", text)


def test_every_kind_has_its_prefix_and_its_length() -> None:
    chance = SeededRandom()
    for _ in range(200):
        assert re.fullmatch(f"msg_{BASE58}{{30}}", ids.message_id(chance, START_MS))
        assert re.fullmatch(f"jwt_{BASE58}{{28}}", ids.jwt_id(chance))
        pair = ids.signing_keys(chance)
        for key in (pair.current, pair.next):
            assert re.fullmatch(f"sig_{BASE58}{{44}}", key)
        check_keys(pair)
        assert pair.current != pair.next


def test_a_token_is_what_sdks_decode_and_scanners_find() -> None:
    chance = SeededRandom()
    made = [ids.token_secret(chance) for _ in range(200)]
    for token in made:
        content = json.loads(base64.b64decode(token, validate=True))
        assert list(content) == ["UserID", "Password"]
        assert re.fullmatch(f"qtk_{BASE58}{{12}}", content["UserID"])
        assert re.fullmatch(f"{BASE58}{{44}}", content["Password"])
        assert quote(token, safe="") == token
        assert token.startswith("eyJVc2VySUQiOiJxdGtf")
    assert len(set(made)) == len(made)
    for user in development.USERS:
        assert json.loads(base64.b64decode(user.token)).keys() == {"UserID", "Password"}


def test_message_ids_sort_by_time_and_two_of_one_moment_differ() -> None:
    chance = SeededRandom()
    moments = [0, 1, START_MS - 1, START_MS, START_MS + 1, START_MS + 10**9, 10**13]
    made = [ids.message_id(chance, moment) for moment in moments for _ in range(3)]
    assert len(set(made)) == len(made)
    times = [message_id[:10] for message_id in made]
    assert times == sorted(times)


def test_an_id_can_be_told_neither_from_its_time_nor_from_its_neighbour() -> None:
    chance = SeededRandom()
    first, second = (ids.message_id(chance, START_MS)[4:] for _ in range(2))
    assert decode(first[:8]) == decode(second[:8]) == START_MS
    assert sum(a != b for a, b in zip(first[8:], second[8:], strict=True)) > 16  # of 22 letters nearly all differ


def test_every_letter_is_as_good_as_any_other_within_a_quarter() -> None:
    counts = [ids.letters(bytes(range(256))).count(letter) for letter in ids._ALPHABET]
    assert set(counts) == {4, 5}


def test_message_ids_made_together_are_as_those_made_one_by_one() -> None:
    assert ids.message_ids(SeededRandom(), 1, 0) == []
    made = ids.message_ids(SeededRandom(), 1_700_000_000_000, 1000)
    assert len(set(made)) == 1000
    one = ids.message_id(SeededRandom(), 1_700_000_000_000)
    assert {(len(each), each[:12]) for each in made} == {(len(one), one[:12])}


def test_ids_that_begin_with_the_time_are_neighbours_and_have_the_form_of_call_ids() -> None:
    made = [new_call_id() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert all(MADE_ID.fullmatch(each) for each in made)
    times = [each[5:17] for each in made]
    assert times == sorted(times)
