"""Reads the text of a filter: ``task:charge status:failed after:2h "card declined"`` (docs/console.md)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

from qtasks.broker.core.observed.message_filter import Condition, ConsoleFilter, Kind
from qtasks.broker.core.observed.statuses import WORDS

MAX_LENGTH: Final = 2_000
"""Characters of a filter at most."""
MAX_CONDITIONS: Final = 20
"""Words of a filter at most."""
MAX_VALUES: Final = 50
"""Values of one word at most."""
_TIMES: Final = ("after", "before")
_KINDS: Final = {kind.value: kind for kind in Kind if kind is not Kind.ANY}
_WORD: Final = re.compile(r'(?:[^\s"]|"[^"]*"?)+')
_NAME: Final = re.compile(r"([a-z]+)(?:\.([^:\"\s]+))?:")
_PART: Final = re.compile(r'(?:[^,"]|"[^"]*"?)+')
_AGE: Final = re.compile(r"(\d{1,6})(s|m|h|d|w)")
_UNIT_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}(?:T\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?(?:Z|[+-]\d{2}:\d{2})?)?")


@dataclass(frozen=True, slots=True)
class Problem:
    """What cannot be read: `length` characters from position `at`, and a sentence about it."""

    at: int
    length: int
    text: str


class FilterError(Exception):
    """A filter that cannot be read."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(problems[0].text)
        self.problems = problems


class _Time(NamedTuple):
    """A limit for the time of publishing."""

    is_earliest: bool
    time_ms: int


def read(text: str, *, now_ms: int) -> ConsoleFilter:
    """The filter in `text`; ages count back from `now_ms`, wall time in Unix ms. Raises FilterError."""
    if len(text) > MAX_LENGTH:
        raise FilterError((Problem(0, len(text), f"a filter has at most {MAX_LENGTH} characters"),))
    conditions: list[Condition] = []
    times: list[_Time] = []
    problems: list[Problem] = []
    for at, word in _words(text):
        try:
            item = _read_word(word, now_ms)
        except ValueError as error:
            problems.append(Problem(at, len(word), str(error)))
            continue
        if isinstance(item, _Time):
            times.append(item)
        else:
            conditions.append(item)
    if len(conditions) > MAX_CONDITIONS:
        problems.append(Problem(0, len(text), f"a filter has at most {MAX_CONDITIONS} words"))
    if problems:
        raise FilterError(tuple(problems))
    return ConsoleFilter(
        tuple(conditions),
        max((time.time_ms for time in times if time.is_earliest), default=None),
        min((time.time_ms for time in times if not time.is_earliest), default=None),
    )


def _words(text: str) -> Iterator[tuple[int, str]]:
    for match in _WORD.finditer(text):
        yield match.start(), match[0]


def _read_word(word: str, now_ms: int) -> Condition | _Time:
    """One word. Raises ValueError with a sentence."""
    if word.count('"') % 2:
        raise ValueError('a quotation mark (") has no partner')
    negated = len(word) > 1 and word.startswith("-")
    word = word[1:] if negated else word
    name = _NAME.match(word)
    if name is None or _is_url(word):
        return Condition(Kind.ANY, _values(word), negated)
    values = _values(word[name.end() :])
    if name[1] in _TIMES and name[2] is None:
        if len(values) > 1:
            raise ValueError(f"{name[1]}: takes one time")
        return _Time((name[1] == "after") is not negated, _time_ms(values[0], now_ms))
    kind = _KINDS.get(name[1])
    if kind is Kind.ARGUMENT and name[2] is None:
        raise ValueError("an argument has a name or a position: arg.user_id:42, arg.0:42")
    if kind is None or (name[2] is not None and kind is not Kind.ARGUMENT):
        names = ", ".join(f"{word}:" for word in (*_KINDS, *_TIMES) if word != Kind.ARGUMENT)
        raise ValueError(f"{name[0]} does not belong to a filter; there are {names}, arg.NAME:")
    if kind is Kind.STATUS and (unknown := [value for value in values if value not in WORDS]):
        raise ValueError(f"{unknown[0]!r}: unknown status; there are {', '.join(WORDS)}")
    path = tuple(name[2].split(".")) if name[2] else ()
    return Condition(kind, values, negated, path)


def _is_url(word: str) -> bool:
    return word.startswith(("http://", "https://"))


def _values(text: str) -> tuple[str, ...]:
    """The values of a word, which are separated by commas. Raises ValueError for none, and for too many."""
    values = tuple(dict.fromkeys(part.replace('"', "") for part in _PART.findall(text)))
    if not values or "" in values:
        raise ValueError("a value is missing")
    if len(values) > MAX_VALUES:
        raise ValueError(f"a word has at most {MAX_VALUES} values")
    return values


def _time_ms(text: str, now_ms: int) -> int:
    """A date, a time, or an age, in Unix milliseconds. Raises ValueError."""
    if age := _AGE.fullmatch(text):
        return now_ms - int(age[1]) * _UNIT_MS[age[2]]
    if _DATE.fullmatch(text):
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            pass
        else:
            moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
            return round(moment.timestamp() * 1000)
    raise ValueError(f"{text!r}: unknown form of a time; write 2026-11-28, 2026-11-28T10:00, 15m, 2h or 3d")
