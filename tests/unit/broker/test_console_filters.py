"""The text of a filter is read as docs/console.md says; what cannot be read is named with its place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtasks.broker.console import filter_text
from qtasks.broker.console.filter_text import FilterError
from qtasks.broker.core.observed.message_filter import Condition, ConsoleFilter, Kind

NOW_MS = 1_796_000_000_000


def read(text: str) -> ConsoleFilter:
    return filter_text.read(text, now_ms=NOW_MS)


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("task:charge", Condition(Kind.TASK, ("charge",))),
        ("task:a,b", Condition(Kind.TASK, ("a", "b"))),
        ("-status:failed", Condition(Kind.STATUS, ("failed",), negated=True)),
        ('error:"card declined, twice"', Condition(Kind.ERROR, ("card declined, twice",))),
        ("arg.user.id:42", Condition(Kind.ARGUMENT, ("42",), path=("user", "id"))),
        ("arg.0:x", Condition(Kind.ARGUMENT, ("x",), path=("0",))),
        ("charge", Condition(Kind.ANY, ("charge",))),
        ("-charge", Condition(Kind.ANY, ("charge",), negated=True)),
        ('"two words"', Condition(Kind.ANY, ("two words",))),
        ("https://x.example/a:b", Condition(Kind.ANY, ("https://x.example/a:b",))),
        ("url:https://x.example/*", Condition(Kind.URL, ("https://x.example/*",))),
        ('label:"a,b",c', Condition(Kind.LABEL, ("a,b", "c"))),
    ],
)
def test_a_word_is_a_condition(text: str, condition: Condition) -> None:
    assert read(text).conditions == (condition,)


@pytest.mark.parametrize(
    ("text", "after_ms", "before_ms"),
    [
        ("after:2h", NOW_MS - 7_200_000, None),
        ("before:15m", None, NOW_MS - 900_000),
        ("-after:3d", None, NOW_MS - 3 * 86_400_000),
        ("after:1970-01-02", 86_400_000, None),
        ("after:1970-01-01T01:00", 3_600_000, None),
        ("after:1970-01-01T01:00:30+01:00", 30_000, None),
        ("after:1970-01-01T00:00Z before:1970-01-01T00:01Z", 0, 60_000),
        ("after:2h after:1h", NOW_MS - 3_600_000, None),
    ],
)
def test_times_are_dates_or_ages(text: str, after_ms: int | None, before_ms: int | None) -> None:
    assert read(text) == ConsoleFilter((), after_ms, before_ms)


@pytest.mark.parametrize(
    ("text", "at", "length", "problem"),
    [
        ("task:a foo:b", 7, 5, "foo: does not belong to a filter"),
        ("status:odd", 0, 10, "'odd': unknown status"),
        ("after:soon", 0, 10, "unknown form of a time"),
        ("after:2026-02-30", 0, 16, "unknown form of a time"),
        ("after:1h,2h", 0, 11, "takes one time"),
        ("task:", 0, 5, "a value is missing"),
        ('a "b', 2, 2, "has no partner"),
        ("arg:1", 0, 5, "a name or a position"),
        ("task.x:1", 0, 8, "does not belong"),
        ("x" * 2_001, 0, 2_001, "at most 2000 characters"),
        ("a " * 21, 0, 42, "at most 20 words"),
        ("task:" + ",".join(map(str, range(51))), 0, 147, "at most 50 values"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, at: int, length: int, problem: str) -> None:
    with pytest.raises(FilterError) as caught:
        read(text)
    [named] = caught.value.problems
    assert (named.at, named.length) == (at, length)
    assert problem in named.text


@given(st.text(alphabet='abc:.,-"* \n0é\x00', max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    problems: tuple[filter_text.Problem, ...] = ()
    try:
        read(text)
    except FilterError as error:
        problems = error.problems
    assert all(0 <= problem.at < len(text) for problem in problems)
