"""Cron expressions in plain English: a sentence names exactly the times at which the schedule runs."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtasks.protocol import cron
from qtasks.protocol.cron_english import describe

WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = (
    "January February March April May June July August September October November December".split()  # noqa: SIM905
)


@pytest.mark.parametrize(
    ("expression", "english"),
    [
        ("* * * * *", "every minute"),
        ("*/15 * * * *", "every 15 minutes"),
        ("0 * * * *", "every hour"),
        ("5,20 * * * *", "every hour at minutes 5 and 20"),
        ("15 9 * * 1-5", "at 09:15 from Monday to Friday"),
        ("0 0 * * 6,0", "at 00:00 on Saturday and Sunday"),
        ("0 9 * * FRI-SAT,SUN", "at 09:00 from Friday to Sunday"),
        ("*/10 8-17 * * *", "every 10 minutes from 08:00 to 17:50"),
        ("*/5 9 * * 1", "every 5 minutes from 09:00 to 09:55 on Monday"),
        ("5 */3 * * *", "every 3 hours at minute 5, from 00:05"),
        ("0 9-17 * * *", "every hour from 09:00 to 17:00"),
        ("0 9 1,15 * *", "at 09:00 on days 1 and 15 of the month"),
        ("0 9 1 1 *", "at 09:00 on day 1 of the month in January"),
        ("0 9 1 * 1", "at 09:00 on day 1 of the month and also on Monday"),
        ("@daily", "every day at 00:00"),
        ("@every 90m", "every 1 hour 30 minutes"),
        ("@every 1h", "every hour"),
        ("CRON_TZ=Europe/Berlin 0 9 * * *", "every day at 09:00 (Europe/Berlin)"),
    ],
)
def test_common_expressions_read_well(expression: str, english: str) -> None:
    assert describe(expression) == english


@pytest.mark.parametrize(
    "expression", ["*/7 * * * *", "7 3 */2 * *", "0 9 1 6 1", "nonsense", "", "TZ=Mars/Base 0 0 * * *"]
)
def test_what_has_no_short_sentence_stays_as_it_is(expression: str) -> None:
    assert describe(expression) == expression


def field(low: int, high: int) -> st.SearchStrategy[str]:
    """One field: a wildcard, a step, a range, or a list."""
    number = st.integers(low, high)
    ranges = st.tuples(number, number).map(lambda pair: f"{min(pair)}-{max(pair)}")
    return st.one_of(
        st.just("*"),
        st.sampled_from([2, 3, 5, 6, 10, 15, 30]).map(lambda step: f"*/{step}"),
        ranges,
        st.tuples(ranges, st.integers(1, 6)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
        st.lists(number, min_size=1, max_size=4).map(lambda numbers: ",".join(map(str, numbers))),
    )


@given(st.tuples(field(0, 59), field(0, 23), field(1, 31), field(1, 12), field(0, 6)).map(" ".join))
def test_a_sentence_is_never_wrong(expression: str) -> None:
    try:
        parsed = cron.parse(expression)
    except ValueError:
        return  # such as 31 February
    sentence = describe(expression)
    if sentence == expression:
        return
    minute, hour, day, month, weekday = parsed.numbers.split()
    times = {(h, m) for h in numbers(hour, 0, 23) for m in numbers(minute, 0, 59)}
    assert read_times(sentence) == times, sentence
    days, weekdays = numbers(day, 1, 31), {(each - 1) % 7 for each in numbers(weekday, 0, 6)}
    for d, w, mo in itertools.product((1, 2, 15, 28, 31), range(7), range(1, 13)):
        in_month = mo in numbers(month, 1, 12)
        by_day, by_week = d in days, w in weekdays
        either = by_day or by_week if "*" not in (day, weekday) else by_day and by_week
        assert read_day(sentence, d, w, mo) is (either and in_month), (sentence, d, w, mo)


def numbers(text: str, low: int, high: int) -> set[int]:
    """The numbers of a field as the parser writes them."""
    chosen: set[int] = set()
    for item in text.split(","):
        star, _, step = item.partition("/")
        chosen.update(range(low, high + 1, int(step or 1)) if star == "*" else {int(item)})
    return chosen


# -- a reader of the sentences, written on its own


def read_times(sentence: str) -> set[tuple[int, int]]:
    clock = r"(\d\d):(\d\d)"
    everything = set(itertools.product(range(24), range(60)))
    if listed := re.match(rf"(?:every day )?at ((?:{clock}(?:, | and )?)+)", sentence):
        return {(int(h), int(m)) for h, m in re.findall(clock, listed[1])}
    if step := re.match(r"every (\d+) hours at minute (\d+), from 00:\d\d", sentence):
        return {(h, int(step[2])) for h in range(0, 24, int(step[1]))}
    if minutes := re.match(r"every hour at minutes? ([\d, and]+)", sentence):
        return {(h, int(m)) for h in range(24) for m in re.findall(r"\d+", minutes[1].partition(" on")[0])}
    span = re.search(rf"from {clock} to {clock}", sentence)
    low, high = ((int(span[1]), int(span[2])), (int(span[3]), int(span[4]))) if span else ((0, 0), (23, 59))
    within = {time for time in everything if low <= time <= high}
    if sentence.startswith("every minute"):
        return within
    if sentence.startswith("every hour"):
        return {time for time in within if time[1] == low[1]}
    step = re.match(r"every (\d+) minutes", sentence)
    assert step is not None, sentence
    return {time for time in within if time[1] % int(step[1]) == 0}


def read_day(sentence: str, day: int, weekday: int, month: int) -> bool:
    by_day = read_list(r"(?:on days?|from day) ([\d, andto]+?) of the month", sentence, lambda text: int(text))
    by_week = read_list(rf"(?:on|from) ((?:(?:{'|'.join(WEEKDAYS)})(?:, | and | to )?)+)", sentence, WEEKDAYS.index)
    by_month = read_list(rf"(?:in|from) ((?:(?:{'|'.join(MONTHS)})(?:, | and | to )?)+)", sentence, MONTHS.index)
    parts = [value in chosen for value, chosen in ((day, by_day), (weekday, by_week)) if chosen is not None]
    matches = any(parts) if " and also " in sentence else all(parts)
    return matches and (by_month is None or month - 1 in by_month)


def read_list(pattern: str, sentence: str, value: object) -> set[int] | None:
    """The values of a list or a range in a sentence; None if it has none of that kind."""
    assert callable(value)
    match = re.search(pattern, sentence)
    if match is None:
        return None
    values = [value(word) for word in re.findall(r"[A-Z]\w+|\d+", match[1])]
    return set(range(values[0], values[1] + 1)) if " to " in match[1] else set(values)
