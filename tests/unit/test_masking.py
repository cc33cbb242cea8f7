"""What is masked in texts and in JSON data, and that masking takes a time that grows with the text alone."""

from __future__ import annotations

import time

import pytest

from qtasks.masking import mask_pairs, masked

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
        ("postgres://ada:p@ss'#1@db/shop?x=1", "postgres://ada:***@db/shop?x=1"),
        ("redis://:hunter2@h, redis://:x@h", "redis://:***@h, redis://:***@h"),
        ("http://h:80/a@b and http://h:80?to=a@b", "http://h:80/a@b and http://h:80?to=a@b"),
        ('["http://h:80","a@b"]', '["http://h:80","a@b"]'),
    ],
)
def test_the_values_of_secret_names_are_masked(text: str, shown: str) -> None:
    assert mask_pairs(text) == shown
    assert mask_pairs(shown) == shown, "what is masked stays as it is"


def test_secrets_inside_the_texts_of_json_data_are_masked() -> None:
    document = {"url": "https://api/x?api_key=sk", "inner": ['{"password": "a, b", "n": 1}'], "id": "12", "n": 12}
    shown = {"url": "https://api/x?api_key=***", "inner": ['{"password": "***", "n": 1}'], "id": "12", "n": 12}
    assert masked(document) == shown
    assert masked(shown) == shown


def test_the_signature_of_a_task_keeps_its_types() -> None:
    described = {"signature": "(order: int, token: str, password: str = ***) -> None"}
    assert masked(described) == described


@pytest.mark.parametrize(
    "piece", ["token", "a", "token ", "token=", 'token="', "token=\\", "token: ", "://u:", "://u:p@h"]
)
def test_a_long_text_is_masked_at_once(piece: str) -> None:
    began = time.process_time()
    mask_pairs(piece * (LONG // len(piece)))
    assert time.process_time() - began < 1, "some milliseconds; a time that grows with the square is 13 s"
