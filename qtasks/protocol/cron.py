"""Cron expressions: when a schedule runs next (docs/protocol.md 5.8).

`parse` reads five fields with the grammar of the hosted service and writes them again in a spelling that means the same
to cronsim. cronsim finds the matching local times and ignores time zones. This module applies the zone, by the rule of
Debian's cron:

- A **fixed** time (no ``*`` in minute and hour) runs once: at the end of the gap if the clocks skip it, and only the
  first time in a repeated hour.
- With a **wildcard** in minute or hour, the schedule runs at every moment whose local time matches, so elapsed time
  counts: not in a gap, and twice in a repeated hour.

The current time is an argument, in Unix milliseconds; the rules of a zone come from the system's time zone database.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from cronsim import CronSim

from qtasks.protocol import durations

MAX_LENGTH = 512
MIN_EVERY_MS = 60_000

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - the calendar here has no zone; offsets are added by hand
_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)
_PREFIX = re.compile(r"(?:CRON_TZ|TZ)=(?P<zone>[^ \t]*)")
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*")
_NOT_ZONES = frozenset({"localtime", "posixrules", "posix", "right", "local"})
"""Names in the database's folder that are the machine's own zone, or the same zones counted with leap seconds."""

_ITEM = re.compile(r"(?:(?P<star>[*?])|(?P<low>[A-Za-z0-9]+)(?:-(?P<high>[A-Za-z0-9]+))?)(?:/(?P<step>[0-9]{1,9}))?")
_DESCRIPTORS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_LONGEST = {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}
"""Days of the months that never have 31."""


class _Kind(NamedTuple):
    """One of the five fields."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()


_KINDS = (
    _Kind("minute", 0, 59),
    _Kind("hour", 0, 23),
    _Kind("day of month", 1, 31),
    _Kind("month", 1, 12, ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")),
    _Kind("day of week", 0, 6, ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")),
)


class _BadFieldError(ValueError):
    """The error in one field; `parse` adds its position."""


class UnknownZone(ValueError):
    """The expression names a time zone that does not exist."""


class NeverDue(ValueError):
    """The expression is well-formed, and no date fits it."""


class ClockChange(NamedTuple):
    """A change of a zone's clock at which a schedule would run. The times are local, on the calendar of the zone."""

    before: datetime
    """What the clock shows when it changes, and what it shows `after`."""
    after: datetime
    run: datetime
    """The first run among the times that are skipped, or that come twice."""
    fixed: bool
    """True if the schedule runs once all the same, False if it follows the elapsed time."""


@dataclass(frozen=True, slots=True)
class Cron:
    """A checked expression; `text` is what the caller wrote without blanks around it, `zone` the name of its zone."""

    text: str
    zone: str = "UTC"
    _expression: str = field(default="", repr=False, compare=False)
    """Five fields in cronsim's spelling, or empty for ``@every``."""
    _fixed: bool = field(default=False, repr=False, compare=False)
    _every_ms: int = field(default=0, repr=False, compare=False)

    @property
    def fields(self) -> str:
        """The five fields without the zone; ``@daily`` and similar names become fields, ``@every`` stays."""
        written = " ".join(_PREFIX.sub("", self.text, count=1).split())
        return self._expression if written.startswith("@") and self._expression else written

    @property
    def numbers(self) -> str:
        """The five fields as numbers: ``*``, or a list of numbers and, in minute and hour, ``*/step``; or empty."""
        return self._expression

    @property
    def every_ms(self) -> int:
        """The interval of ``@every``; 0 for all other expressions."""
        return self._every_ms

    def next_ms(self, after_ms: int) -> int | None:
        """The first run strictly after a moment (Unix milliseconds), or None if no run follows within fifty years.

        ``@every`` counts from `after_ms`, so pass the time of the previous run.
        """
        if self._every_ms:
            return after_ms // 1000 * 1000 + self._every_ms
        after = _EPOCH + timedelta(seconds=after_ms // 1000)
        try:
            if self.zone == "UTC":
                moment = self._tick(after)
            elif self._fixed:
                moment = self._next_fixed(after, ZoneInfo(self.zone))
            else:
                moment = self._next_elapsed(after, ZoneInfo(self.zone))
        except (OverflowError, ValueError):  # the calendar ends with the year 9999
            return None
        return None if moment is None else (moment - _EPOCH) // timedelta(milliseconds=1)

    def clock_change(self, after_ms: int, within_ms: int) -> ClockChange | None:
        """The first change of the clock in that time, if the schedule has a run at a time that it skips or repeats."""
        if self._every_ms or self.zone == "UTC" or self._expression.split(" ")[1] == "*":
            return None  # what runs in every hour goes by the time that has passed
        after, zone = _EPOCH + timedelta(seconds=after_ms // 1000), ZoneInfo(self.zone)
        offset = _offset(after, zone)
        change = _next_change(after, after + timedelta(milliseconds=within_ms), offset, zone)
        if change is None:
            return None
        before, then = change + offset, change + _offset(change, zone)
        run = self._tick(min(before, then) - _SECOND)
        return None if run is None or run >= max(before, then) else ClockChange(before, then, run, self._fixed)

    def _tick(self, local: datetime) -> datetime | None:
        """The first match after a local time, on the calendar alone."""
        return next(CronSim(self._expression, local), None)

    def _next_fixed(self, after: datetime, zone: ZoneInfo) -> datetime | None:
        for local in CronSim(self._expression, after + _offset(after, zone)):
            moment = _first_moment(local, zone)
            if moment > after:  # else it ran before the hour was repeated, or together with one in a gap
                return moment
        return None

    def _next_elapsed(self, after: datetime, zone: ZoneInfo) -> datetime | None:
        """Walk from one change of the offset to the next: between them local time is UTC plus a constant."""
        offset = _offset(after, zone)
        while (local := self._tick(after + offset)) is not None:
            change = _next_change(after, local - offset, offset, zone)
            if change is None:
                return local - offset
            after, offset = change - _SECOND, _offset(change, zone)
        return None


def is_interval(text: str) -> bool:
    """True for ``@every``, whose runs depend on the time that has passed, and not on the calendar."""
    return "@every" in text


@lru_cache(maxsize=1024)
def parse(text: str) -> Cron:
    """Read a cron expression.

    Five fields (minute, hour, day of month, month, day of week) of ``*``, ``?``, numbers, ranges, lists and steps;
    months and weekdays also as English abbreviations of three letters; Sunday is 0, 7 is not a day. If both day fields
    are restricted, either may match. Or ``@hourly``, ``@daily``, ``@midnight``, ``@weekly``, ``@monthly``, ``@yearly``,
    ``@annually``, ``@every <duration of at least 1m>``. ``CRON_TZ=<zone>`` or ``TZ=<zone>`` may precede all of them;
    without it the zone is UTC.

    Raises ValueError that points at the wrong field: UnknownZone for a zone that does not exist, NeverDue for dates
    that do not.
    """
    text = text.strip(" \t")
    if not text:
        raise ValueError("Invalid cron expression empty spec string")
    if len(text) > MAX_LENGTH:
        raise ValueError(f"Invalid cron expression: {len(text)} characters, more than {MAX_LENGTH}")
    zone, start = "UTC", 0
    if prefix := _PREFIX.match(text):
        zone, start = prefix["zone"], prefix.end()
        _check_zone(zone, text, prefix.start("zone"))
    words = [(word[0], word.start()) for word in re.finditer(r"[^ \t]+", text) if word.start() >= start]
    if words and words[0][0].startswith("@"):
        return _read_descriptor(text, zone, words)
    if len(words) != len(_KINDS):
        shown = " ".join(word for word, _ in words)
        raise ValueError(f"Invalid cron expression expected exactly 5 fields, found {len(words)}: [{shown}]")
    fields = []
    for kind, (word, position) in zip(_KINDS, words, strict=True):
        try:
            fields.append(_read_field(kind, word))
        except _BadFieldError as error:
            raise ValueError(_pointed(text, position, len(word), f"{kind.name}: {error}")) from None
    if reason := _never(fields[2], fields[3], fields[4]):
        raise NeverDue(_pointed(text, words[2][1], len(words[2][0]), f"day of month: {reason}"))
    fixed = not any(item.startswith("*") for item in fields[:2])
    return Cron(text, zone, " ".join(fields), fixed)


def _read_descriptor(text: str, zone: str, words: list[tuple[str, int]]) -> Cron:
    (name, position), *rest = words
    if name == "@every" and len(rest) == 1:
        word, position = rest[0]
        try:
            every_ms = durations.parse(word)
        except ValueError as error:
            raise ValueError(_pointed(text, position, len(word), str(error))) from None
        if every_ms < MIN_EVERY_MS or every_ms % 1000:
            raise ValueError(
                _pointed(text, position, len(word), "an interval is a whole number of seconds of at least 1m")
            )
        return Cron(text, zone, _every_ms=every_ms)
    if rest or name not in _DESCRIPTORS:
        valid = f"valid names are {', '.join(_DESCRIPTORS)} and @every <duration>"
        raise ValueError(_pointed(text, position, len(text) - position, valid))
    expression = _DESCRIPTORS[name]
    return Cron(text, zone, expression, _fixed=name != "@hourly")


def _pointed(text: str, position: int, length: int, reason: str) -> str:
    """The reason with the expression below it and a caret under the part that is wrong."""
    shown = text.replace("\t", " ")
    shown = "".join(character if character.isprintable() else "?" for character in shown)
    return f"Invalid cron expression: {reason}\n  {shown}\n  {' ' * position}{'^' * max(1, length)}"


def _read_field(kind: _Kind, text: str) -> str:
    """A field in the spelling of cronsim: a wildcard begins with ``*``, everything else is a list of numbers.

    cronsim recognises a wildcard by a leading star, reads 7 as Sunday in ``5/2``, and treats ``*/2`` as unrestricted;
    the parser of the hosted service does none of these.
    """
    stars: list[str] = []
    numbers: set[int] = set()
    for item in text.split(","):
        match = _ITEM.fullmatch(item)
        if match is None:
            raise _BadFieldError(
                f'"{item}" is not a number, range, step or list' if item else "a list has an empty item"
            )
        step = 1 if match["step"] is None else int(match["step"])
        if step == 0:
            raise _BadFieldError(f'"{item}" has a step of 0')
        if match["star"] is None:
            numbers.update(_read_range(kind, item, match, step))
        elif step == 1:
            return "*"
        elif kind.name in {"minute", "hour"}:
            stars.append(f"*/{step}")
        else:
            numbers.update(range(kind.low, kind.high + 1, step))
    return ",".join(stars + [str(number) for number in sorted(numbers)])


def _read_range(kind: _Kind, item: str, match: re.Match[str], step: int) -> range:
    low = _read_value(kind, match["low"])
    if match["high"] is not None:
        high = _read_value(kind, match["high"])
    else:
        high = low if match["step"] is None else kind.high
    if high < low:
        raise _BadFieldError(f'the range "{item}" ends before it begins')
    return range(low, high + 1, step)


def _read_value(kind: _Kind, text: str) -> int:
    if text.upper() in kind.names:
        return kind.names.index(text.upper()) + kind.low
    if not (text.isdecimal() and len(text) <= 4 and kind.low <= int(text) <= kind.high):
        names = f" or {kind.names[0]} to {kind.names[-1]}" if kind.names else ""
        raise _BadFieldError(f'"{text}" is not {kind.low} to {kind.high}{names}')
    return int(text)


def _never(days: str, months: str, weekdays: str) -> str | None:
    """The reason why no date fits (30 February, 31 April ...), or None.

    With a weekday there is always a date, because either of the two day fields may match.
    """
    if days == "*" or weekdays != "*":
        return None
    first = min(int(day) for day in days.split(","))
    chosen = [int(month) for month in months.split(",")] if months != "*" else range(1, 13)
    if any(first <= _LONGEST.get(month, 31) for month in chosen):
        return None
    names = ", ".join(_KINDS[3].names[month - 1] for month in chosen)
    return f"there is never a day {first} in {names}"


def _check_zone(name: str, text: str, position: int) -> None:
    exists = _ZONE.fullmatch(name) is not None and name.split("/")[0].lower() not in _NOT_ZONES
    if exists:
        try:
            ZoneInfo(name)
        except (OSError, ValueError, KeyError):  # a folder, no time zone file, or not there
            exists = False
    if not exists:
        raise UnknownZone(
            _pointed(text, position, len(name), "unknown time zone; write an IANA name such as Europe/Berlin")
        )


def _offset(moment: datetime, zone: ZoneInfo) -> timedelta:
    """What the zone adds to UTC at a moment (naive UTC)."""
    offset = moment.replace(tzinfo=UTC).astimezone(zone).utcoffset()
    assert offset is not None, "a ZoneInfo always has one for a datetime"
    return offset


def _first_moment(local: datetime, zone: ZoneInfo) -> datetime:
    """The first moment (naive UTC) of a local time; for a local time in a gap, the end of the gap."""
    before = local.replace(tzinfo=zone, fold=0).utcoffset()
    assert before is not None, "a ZoneInfo always has one for a datetime"
    moment = local - before
    if moment + _offset(moment, zone) == local:
        return moment
    # Read with the offset before the gap, a time inside it lies behind the change, by less than the gap is wide.
    end = _next_change(moment - 2 * _DAY, moment, before, zone)
    return moment if end is None else end


def _next_change(after: datetime, until: datetime, offset: timedelta, zone: ZoneInfo) -> datetime | None:
    """The first moment in (after, until] at which the offset is not `offset`; all naive UTC.

    Looks once a day and then closer, to the second. Two changes that undo each other within a day are not seen; the
    database has none.
    """
    low = after
    while low < until:
        high = min(low + _DAY, until)
        if _offset(high, zone) == offset:
            low = high
            continue
        while high - low > _SECOND:
            middle = low + (high - low) // _SECOND // 2 * _SECOND
            low, high = (middle, high) if _offset(middle, zone) == offset else (low, middle)
        return high
    return None
