"""How long something has been kept, when the broker's time has leapt meanwhile. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from qtasks.broker.core.values import DAY_MS


class Leap(NamedTuple):
    """A start at which the broker's time went from `from_ms` to `to_ms`: a long stop, or a clock that is wrong."""

    from_ms: int
    to_ms: int


def cutoff_ms(now_ms: int, age_ms: int, leaps: Iterable[Leap]) -> int:
    """The time before which something ended that has been kept for `age_ms`, Unix milliseconds.

    `leaps` are all leaps since then, newest first. Each counts as at most one day: a clock that is ahead by years must
    not delete what is kept for a week.
    """
    left_ms = age_ms
    for leap in leaps:
        if (since_ms := now_ms - leap.to_ms) >= left_ms:
            break
        left_ms -= since_ms + min(DAY_MS, leap.to_ms - leap.from_ms)
        now_ms = leap.from_ms
        if left_ms <= 0:
            return now_ms
    return now_ms - left_ms
