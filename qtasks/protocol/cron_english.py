"""Cron expressions as plain English. Pure.

    15 9 * * 1-5              at 09:15 from Monday to Friday
    */10 8-17 * * *           every 10 minutes from 08:00 to 17:50
    CRON_TZ=Europe/Berlin ... (Europe/Berlin)

A sentence names exactly the times at which the schedule runs. An expression for which there is no short sentence of
that kind stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from qtasks.protocol import cron

_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MOST_LISTED = 6
"""Times, days or months that a sentence lists."""
_UNITS = ((86_400_000, "day"), (3_600_000, "hour"), (60_000, "minute"), (1_000, "second"))


def describe(text: str) -> str:
    """`text`, a cron expression, in English; the expression itself if that has no short form, or is not valid."""
    try:
        expression = cron.parse(text)
    except ValueError:
        return text
    if expression.every_ms:
        return f"every {_span(expression.every_ms)}"
    minute, hour, day, month, weekday = expression.numbers.split(" ")
    times = _times(_numbers(minute, 60), _numbers(hour, 24))
    days = _days(_listed(day), _listed(weekday), _listed(month))
    if times is None or days is None:
        return text
    sentence = f"{times} {days}" if days else f"every day {times}" if times.startswith("at ") else times
    return sentence if expression.zone == "UTC" else f"{sentence} ({expression.zone})"


def describe_change(zone: str, change: cron.ClockChange) -> str:
    """What a change of the clocks of `zone` does to the runs of a schedule."""
    run, before, after = (f"{local:%H:%M}" for local in (change.run, change.before, change.after))
    if change.before < change.after:
        effect = f"run of {run} starts at {after}" if change.fixed else f"runs in between, from {run}, are left out"
    else:
        effect = f"run of {run} comes once" if change.fixed else f"runs in between, from {run}, come twice"
    return f"On {change.before:%Y-%m-%d} the clocks of {zone} go from {before} to {after}: its {effect}."


def _span(span_ms: int) -> str:
    parts: list[str] = []
    for size, name in _UNITS:
        count, span_ms = divmod(span_ms, size)
        if count:
            parts.append(name if count == 1 and span_ms == 0 and not parts else _plural(count, name))
    return " ".join(parts)


def _plural(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _numbers(field: str, size: int) -> list[int]:
    """The numbers of a field of minutes or hours."""
    numbers: set[int] = set()
    for item in field.split(","):
        star, _, step = item.partition("/")
        numbers.update(range(0, size, int(step or 1)) if star == "*" else (int(item),))
    return sorted(numbers)


def _listed(field: str) -> list[int] | None:
    """The numbers of a field of days or months; None for all of them."""
    return None if field == "*" else [int(item) for item in field.split(",")]


# -- the times of a day


def _times(minutes: list[int], hours: list[int]) -> str | None:
    """At which times of a day it runs; None if there is no short way to say it."""
    if len(minutes) * len(hours) <= _MOST_LISTED:
        return "at " + _and([_clock(hour, minute) for hour in hours for minute in minutes])
    every_minutes = _step(minutes, 60)
    if len(hours) == 24:
        if minutes == [0]:
            return "every hour"
        if every_minutes is not None:
            return "every minute" if every_minutes == 1 else f"every {every_minutes} minutes"
        if len(minutes) <= _MOST_LISTED:
            return f"every hour at minute{'s' if len(minutes) > 1 else ''} {_and([str(minute) for minute in minutes])}"
        return None
    if len(minutes) == 1 and (every_hours := _step(hours, 24)) is not None:
        return f"every {every_hours} hours at minute {minutes[0]}, from {_clock(hours[0], minutes[0])}"
    span = f"from {_clock(hours[0], minutes[0])} to {_clock(hours[-1], minutes[-1])}"
    if every_minutes is not None and hours == list(range(hours[0], hours[-1] + 1)):
        return f"every minute {span}" if every_minutes == 1 else f"every {every_minutes} minutes {span}"
    return f"every hour {span}" if len(minutes) == 1 and _is_row(hours) else None


def _step(numbers: list[int], size: int) -> int | None:
    """The distance of numbers that begin with 0 and go on evenly, over the end as well; None for others."""
    step = size // len(numbers)
    return step if len(numbers) > 1 and numbers == list(range(0, size, step)) and size % step == 0 else None


def _is_row(numbers: Sequence[int]) -> bool:
    """True for three numbers or more that follow each other."""
    return len(numbers) > 2 and all(second - first == 1 for first, second in pairwise(numbers))


def _clock(hour: int, minute: int) -> str:
    return f"{hour:02}:{minute:02}"


# -- the days


def _days(days: list[int] | None, weekdays: list[int] | None, months: list[int] | None) -> str | None:
    """On which days it runs: empty for every day; None if there is no short way to say it."""
    if days is not None and weekdays is not None:  # either may match
        if len(days) == 31 or len(weekdays) == 7:
            days = weekdays = None
        elif months is not None and len(months) < 12:
            return None  # it would be unclear what the months belong to
    parts = [
        *([] if days is None or len(days) == 31 else [_of_month(days)]),
        *([] if weekdays is None or len(weekdays) == 7 else [_of_week(weekdays)]),
        *([] if months is None or len(months) == 12 else [_in_months(months)]),
    ]
    if None in parts:
        return None
    joiner = " and also " if days is not None and weekdays is not None else " "
    return joiner.join(part for part in parts if part is not None)


def _of_month(days: list[int]) -> str | None:
    if len(days) > _MOST_LISTED and not _is_row(days):
        return None
    if _is_row(days):
        return f"from day {days[0]} to {days[-1]} of the month"
    return f"on day{'s' if len(days) > 1 else ''} {_and([str(day) for day in days])} of the month"


def _of_week(weekdays: list[int]) -> str | None:
    from_monday = sorted((weekday - 1) % 7 for weekday in weekdays)
    names = [_WEEKDAYS[weekday] for weekday in from_monday]
    return f"from {names[0]} to {names[-1]}" if _is_row(from_monday) else f"on {_and(names)}"


def _in_months(months: list[int]) -> str | None:
    if _is_row(months):
        return f"from {_MONTHS[months[0] - 1]} to {_MONTHS[months[-1] - 1]}"
    return "in " + _and([_MONTHS[month - 1] for month in months]) if len(months) <= _MOST_LISTED else None


def _and(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
