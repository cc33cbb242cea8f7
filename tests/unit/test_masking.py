"""What is masked in texts and in JSON data, and that masking takes a time that grows with the text alone."""

from __future__ import annotations

import time

import pytest

from qtasks.masking import mask_pairs

LONG = 40_000


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("token=abc", "token=***"),
        ("the db.password-2: abc, x=1", "the db.password-2: ***, x=1"),
        ('{"apiKey": "a b", "n": 1}', '{"apiKey": ***, "n": 1}'),
        ("Authorization: Bearer abc; x", "Authorization: ***; x"),
        ("token=*** and token='***'", "token=*** and token='***'"),
        ("a token is missing", "a token is missing"),
    ],
)
def test_the_values_of_secret_names_are_masked(text: str, shown: str) -> None:
    assert mask_pairs(text) == shown


@pytest.mark.parametrize(
    "piece", ["token", "a", "token ", "token=", 'token="', "token=\\", "token: ", "://u:", "://u:p@h"]
)
def test_a_long_text_is_masked_at_once(piece: str) -> None:
    began = time.process_time()
    mask_pairs(piece * (LONG // len(piece)))
    assert time.process_time() - began < 1, "some milliseconds; a time that grows with the square is 13 s"
