"""When an endpoint asks for a pause: ``Retry-After`` and related headers (docs/protocol.md 4.6)."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from qtasks.protocol import durations
from qtasks.protocol.messages import Headers

MAX_DELAY_MS = 24 * 60 * 60 * 1000
"""A longer delay is ignored: GitHub, for one, sends a Unix timestamp, which is far too long as a number of seconds."""

_HEADER_NAMES = frozenset(
    {"retry-after", "x-ratelimit-reset", "x-ratelimit-reset-requests", "x-ratelimit-reset-tokens"}
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SECONDS = re.compile(r"[0-9]{1,15}")
_DATE = re.compile(
    r"[A-Za-z]{3}, (?P<day>[0-9]{1,2}) (?P<month>[A-Za-z]{3}) (?P<year>[0-9]{4}) "
    r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2}) (?:GMT|UTC)"
)


def delay_ms(headers: Headers, now_ms: int) -> int | None:
    """The delay in milliseconds that the headers of a failed response request; None if they contain no valid one.

    A value is a number of seconds, an HTTP date (the weekday is not checked, the past means now) or a duration such as
    ``6m5s``. The longest of several headers counts. A value above one day, or one that cannot be read, is
    ignored: the response of an endpoint never raises here.
    """
    delays = (_read(value.strip(), now_ms) for name, value in headers if name.lower() in _HEADER_NAMES)
    return max((delay for delay in delays if delay is not None and delay <= MAX_DELAY_MS), default=None)


def _read(text: str, now_ms: int) -> int | None:
    if _SECONDS.fullmatch(text):
        return int(text) * 1000
    if date := _DATE.fullmatch(text):
        return _until(date, now_ms)
    try:
        return durations.parse(text, days=False)
    except ValueError:
        return None


def _until(date: re.Match[str], now_ms: int) -> int | None:
    month = date["month"].capitalize()
    if month not in _MONTHS:
        return None
    day, hour, minute, second = (int(date[part]) for part in ("day", "hour", "minute", "second"))
    try:
        moment = datetime(int(date["year"]), _MONTHS.index(month) + 1, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
    return max(0, round(moment.timestamp() * 1000) - now_ms)
