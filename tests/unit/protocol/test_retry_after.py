from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtasks.protocol import retry_after

DAY_MS = 86_400_000
NOW_MS = 1_719_490_584_000  # Thu, 27 Jun 2024 12:16:24 GMT


def asked(value: str, name: str = "Retry-After") -> int | None:
    return retry_after.delay_ms(((name, value),), NOW_MS)


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        ("0", 0),
        ("10", 10_000),
        (" 10 ", 10_000),
        ("86400", DAY_MS),
        ("6m5s", 365_000),
        ("12ms", 12),
        ("1.5s", 1500),
        ("24h", DAY_MS),
        ("Thu, 27 Jun 2024 12:17:24 GMT", 60_000),
        ("Sun, 27 Jun 2024 12:17:24 GMT", 60_000),  # the official example has the weekday wrong as well
        ("Thu, 27 jun 2024 12:17:24 GMT", 60_000),
        ("Thu, 27 Jun 2024 12:16:24 GMT", 0),
        ("Thu, 27 Jun 1994 12:16:24 GMT", 0),  # past: now
        ("Fri, 28 Jun 2024 12:16:24 GMT", DAY_MS),
    ],
)
def test_a_wish_of_up_to_a_day_counts(value: str, ms: int) -> None:
    assert asked(value) == ms


@pytest.mark.parametrize(
    "value",
    [
        "",
        "abc",
        "86401",
        "90000",
        "25h",
        "1d",
        "-1",
        "+5",
        "1e3",
        "1e308",
        "NaN",
        "Infinity",
        "10.5",
        "1" + "0" * 5000,
        "٣",
        "1_0",
        "10, 20",
        "1719490644",  # an absolute time is far more than a day of seconds
        "Fri, 28 Jun 2024 12:16:25 GMT",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Fri, 31 Feb 2024 12:16:24 GMT",
        "Fri, 27 Foo 2024 12:16:24 GMT",
        "Thu, 27 Jun 0000 12:16:24 GMT",
        "Thu, 27 Jun 2024 24:16:24 GMT",
        "Thu, 27 Jun 2024 12:16:60 GMT",
        "Thu, 27 Jun 2024 12:17:24 +0200",
        "2024-06-27T12:17:24Z",
    ],
)
def test_anything_else_is_no_wish(value: str) -> None:
    assert asked(value) is None


@pytest.mark.parametrize(
    "name",
    [
        "Retry-After",
        "retry-after",
        "X-RateLimit-Reset",
        "x-ratelimit-reset-requests",
        "X-Ratelimit-Reset-Tokens",
    ],
)
def test_the_whole_family_is_heard_in_any_case(name: str) -> None:
    assert asked("10", name) == 10_000


def test_other_headers_are_not_heard() -> None:
    assert asked("10", "X-RateLimit-Remaining") is None
    assert retry_after.delay_ms((), NOW_MS) is None


def test_the_longest_usable_wish_counts() -> None:
    headers = (
        ("X-RateLimit-Reset-Requests", "12ms"),
        ("X-RateLimit-Reset-Tokens", "6m5s"),
        ("Retry-After", "1"),
        ("Retry-After", "90000"),
        ("X-RateLimit-Reset", "soon"),
    )
    assert retry_after.delay_ms(headers, NOW_MS) == 365_000


@given(
    st.text()
    | st.from_regex(r"[0-9.]{0,30}[a-z]{0,2}", fullmatch=True)
    | st.from_regex(r"Mon, [0-9]{2} (Feb|Dec) [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT", fullmatch=True),
    st.integers(0, 2**53),
)
def test_no_answer_of_an_endpoint_raises(value: str, now_ms: int) -> None:
    ms = retry_after.delay_ms((("Retry-After", value),), now_ms)
    assert ms is None or 0 <= ms <= DAY_MS
