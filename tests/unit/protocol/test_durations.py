from __future__ import annotations

import math
import re
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtasks.protocol import durations

SECONDS: dict[str, int | Fraction] = {
    "d": 86400,
    "h": 3600,
    "m": 60,
    "s": 1,
    "ms": Fraction(1, 10**3),
    "us": Fraction(1, 10**6),
    "ns": Fraction(1, 10**9),
}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("50s", 50),
        ("1d10h30m", 86400 + 10 * 3600 + 30 * 60),
        ("1h30m3s", 3600 + 30 * 60 + 3),
        ("10d", 10 * 86400),
        ("100s", 100),
        ("0", 0),
        ("0s", 0),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("1.s", 1),
        ("500ms", 0.5),
        ("3s1h", 3603),
        ("2000µs", 0.002),
        ("2000μs", 0.002),
        ("2000us", 0.002),
        ("3000000ns", 0.003),
        ("0000000000000000000000000001s", 1),
    ],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert durations.parse(text) == seconds * 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'time: invalid duration ""'),
        ("10", 'time: missing unit in duration "10"'),
        ("1h10", 'time: missing unit in duration "1h10"'),
        ("5x", 'time: unknown unit "x" in duration "5x"'),
        ("1h 30m", 'time: unknown unit "h " in duration "1h 30m"'),
        ("-5s", 'time: invalid duration "-5s"'),
        ("+5s", 'time: invalid duration "+5s"'),
        (" 5s", 'time: invalid duration " 5s"'),
        (".s", 'time: invalid duration ".s"'),
        ("9e99d", 'time: unknown unit "e" in duration "9e99d"'),
        ("1_0s", 'time: unknown unit "_" in duration "1_0s"'),
        ("١s", 'time: invalid duration "\\u0661s"'),
        ("1h1h", 'time: repeated unit "h" in duration "1h1h"'),
        ("1S", 'time: unknown unit "S" in duration "1S"'),
        ("1s\n", 'time: unknown unit "s\\n" in duration "1s\\n"'),
        ("293y", 'time: unknown unit "y" in duration "293y"'),
        ("106752d", 'time: invalid duration "106752d"'),
        ("9" * 200 + "h", 'time: invalid duration "' + "9" * 64 + '..."'),
        ("1" * 10_000, 'time: invalid duration "' + "1" * 64 + '..."'),
    ],
)
def test_what_is_no_duration_is_refused_in_the_words_people_search_for(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        durations.parse(text)
    assert str(caught.value) == message


def test_response_headers_know_no_days() -> None:
    assert durations.parse("6m5s", days=False) == 365_000
    with pytest.raises(ValueError, match="unknown unit"):
        durations.parse("1d", days=False)


@given(st.dictionaries(st.sampled_from(sorted(SECONDS)), st.decimals(0, 9999, places=3), min_size=1))
def test_a_duration_is_the_sum_of_its_parts_rounded_up(parts: dict[str, Decimal]) -> None:
    text = "".join(f"{number}{unit}" for unit, number in parts.items())
    whole_ns = sum(math.floor(Fraction(number) * SECONDS[unit] * 10**9) for unit, number in parts.items())
    assert durations.parse(text) == math.ceil(Fraction(whole_ns, 10**6))


@given(st.integers(0, durations.MAX_MS))
def test_what_is_written_is_read_back(ms: int) -> None:
    assert durations.parse(durations.format(ms)) == ms


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        assert durations.parse(text) >= 0
    except ValueError as error:
        assert str(error).startswith("time: ")  # noqa: PT017 - both ends are fine


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0s"), (1500, "1500ms"), (90_000, "1m30s"), (5_403_000, "1h30m3s"), (86_400_000, "24h"), (3_600_000, "1h")],
)
def test_durations_are_written_in_one_way(ms: int, text: str) -> None:
    assert durations.format(ms) == text


def test_a_negative_duration_is_not_written() -> None:
    with pytest.raises(ValueError, match="negative"):
        durations.format(-1)


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        ("1h", 3_600_000),
        (10, 10_000),
        (1.5, 1500),
        (0.57, 570),
        (0, 0),
        (timedelta(minutes=3), 180_000),
        (timedelta(microseconds=1), 1),
    ],
)
def test_people_may_write_texts_seconds_and_timedeltas(value: str | float | timedelta, ms: int) -> None:
    assert durations.to_ms(value) == ms


@pytest.mark.parametrize("value", [-1, -0.5, timedelta(seconds=-1), math.nan, math.inf, "10", "soon"])
def test_what_cannot_be_waited_for_is_refused(value: str | float | timedelta) -> None:
    with pytest.raises(ValueError, match=r"negative|finite|write one such as"):
        durations.to_ms(value)


@pytest.mark.parametrize("value", [True, None, [], b"1s"])
def test_other_types_are_no_durations(value: object) -> None:
    with pytest.raises(TypeError):
        durations.to_ms(value)  # type: ignore[arg-type]
