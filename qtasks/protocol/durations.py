"""Durations as the wire writes them: ``1d10h30m``, ``500ms``, ``1.5h`` (docs/protocol.md 3.2).

The grammar is Go's ``time.ParseDuration`` without signs, plus ``d``. Error texts are Go's, because people
search for them.
"""

from __future__ import annotations

import math
import re
from datetime import timedelta

_NS_PER_MS = 1_000_000
_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,  # micro sign
    "\u03bcs": 1_000,  # Greek mu, which keyboards produce as well
    "ms": _NS_PER_MS,
    "s": 1_000_000_000,
    "m": 60 * 1_000_000_000,
    "h": 3_600 * 1_000_000_000,
    "d": 86_400 * 1_000_000_000,
}
_PART = re.compile(r"(?P<whole>[0-9]*)(?:\.(?P<fraction>[0-9]*))?(?P<unit>[^0-9.]*)")

MAX_LENGTH = 256
"""Characters of a duration. A longer one is refused, because reading very many digits takes much time."""

MAX_MS = (2**63 - 1) // _NS_PER_MS
"""The longest duration that fits into Go's 64-bit nanoseconds, about 292 years."""


def parse(text: str, *, days: bool = True) -> int:
    """Read a duration and return milliseconds, rounded up.

    A sequence of ``<number><unit>`` with the units ns us µs ms s m h d, each unit once; ``0`` may stand alone. ASCII
    digits only; no sign, no blanks. `days=False` leaves out ``d``, as response headers do (docs/protocol.md 4.6).

    Raises ValueError with Go's words, such as ``time: missing unit in duration "10"``.
    """
    if text == "0":
        return 0
    shown = _quote(text)
    if not text or len(text) > MAX_LENGTH:
        raise ValueError(f"time: invalid duration {shown}")
    total_ns = 0
    seen: set[int] = set()
    position = 0
    while position < len(text):
        part = _PART.match(text, position)
        assert part is not None, "every part of the pattern is optional"
        position = part.end()
        whole, fraction, unit = part["whole"], part["fraction"] or "", part["unit"]
        if not whole and not fraction:
            raise ValueError(f"time: invalid duration {shown}")
        if not unit:
            raise ValueError(f"time: missing unit in duration {shown}")
        factor = _UNITS_NS.get(unit)
        if factor is None or (unit == "d" and not days):
            raise ValueError(f"time: unknown unit {_quote(unit)} in duration {shown}")
        if factor in seen:
            raise ValueError(f"time: repeated unit {_quote(unit)} in duration {shown}")
        seen.add(factor)
        total_ns += int(whole + fraction) * factor // 10 ** len(fraction)
    total_ms = -(-total_ns // _NS_PER_MS)
    if total_ms > MAX_MS:
        raise ValueError(f"time: invalid duration {shown}")
    return total_ms


def format(ms: int) -> str:  # noqa: A001 - read as durations.format
    """Write milliseconds (>= 0) so that `parse` reads the same number back: ``1h30m3s``, ``1500ms``, ``0s``."""
    if ms < 0:
        raise ValueError(f"a duration cannot be negative: {ms} ms")
    if ms == 0:
        return "0s"
    if ms % 1000:
        return f"{ms}ms"
    minutes, seconds = divmod(ms // 1000, 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "m"), (seconds, "s"))
    return "".join(f"{number}{unit}" for number, unit in parts if number)


def to_ms(value: str | float | timedelta) -> int:
    """The milliseconds of a duration as people write it: ``"1h30m"``, a number of seconds, or a timedelta.

    Raises ValueError for a duration that is negative, infinite or malformed, TypeError for any other type.
    """
    if isinstance(value, str):
        try:
            return parse(value)
        except ValueError as error:
            raise ValueError(f'{error}; write one such as "30s", "10m" or "1h30m"') from None
    if isinstance(value, timedelta):
        ms = -(-value // timedelta(milliseconds=1))
    elif isinstance(value, bool):
        raise TypeError("a duration is a string, a number of seconds or a timedelta, not a bool")
    elif math.isfinite(value):
        ms = round(value * 1000)
    else:
        raise ValueError(f"a duration must be finite, not {value}")
    if ms < 0:
        raise ValueError(f"a duration cannot be negative: {value}")
    return ms


def _quote(text: str) -> str:
    """`text` in double quotes for an error: shortened, control and non-ASCII characters escaped."""
    shown = text if len(text) <= 64 else text[:64] + "..."
    return '"' + shown.encode("unicode_escape").decode("ascii").replace('"', '\\"') + '"'
