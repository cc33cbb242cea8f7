"""Histograms of spans of time, as one integer each: to add two of them is to add the integers. Pure.

A histogram has `BUCKETS` lanes of 32 bits, each a count. Bucket 0 is for less than a millisecond; every further bucket
is 20 % wider than the one before it, so a quantile is within 10 % of the truth.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from typing import Final

BUCKETS: Final = 128
_BITS: Final = 32
_GROWTH: Final = 1.2
_LOWER_MS: Final = tuple(_GROWTH**number for number in range(BUCKETS - 1))
"""The lower bounds of the buckets from the second one on, in milliseconds; the last one begins at some months."""
BOUNDS: Final = (13, 22, 26, 34, 38, 47, 51, 57, 61, 69, 79)
"""Buckets whose upper bounds a monitoring system gets: from about 10 ms over 1 s to half an hour."""
_LANES: Final = struct.Struct(f"<{BUCKETS}I")


def of(span_ms: int) -> int:
    """The histogram of one span; a negative one counts as 0."""
    return 1 << _BITS * bisect_right(_LOWER_MS, span_ms)


def quantile_ms(histogram: int, share: float) -> int | None:
    """The span that `share` of all spans do not exceed, such as 0.95, in milliseconds; None for an empty histogram."""
    counts = _LANES.unpack(histogram.to_bytes(_LANES.size, "little"))
    rest = math.ceil(sum(counts) * share)
    for bucket, count in enumerate(counts):
        rest -= count
        if count and rest <= 0:
            return 0 if bucket == 0 else round(_LOWER_MS[bucket - 1] * math.sqrt(_GROWTH))
    return None


def cumulative(histogram: int) -> tuple[list[tuple[float, int]], int, float]:
    """How many spans were below each of `BOUNDS`, in seconds; how many there are; and their sum, in seconds, about."""
    counts = _LANES.unpack(histogram.to_bytes(_LANES.size, "little"))
    below = [(_LOWER_MS[bound] / 1000, sum(counts[: bound + 1])) for bound in BOUNDS]
    middle_ms = math.sqrt(_GROWTH)
    total_ms = sum(count * _LOWER_MS[bucket] * middle_ms for bucket, count in enumerate(counts[1:]))
    return below, sum(counts), total_ms / 1000


def pack(histogram: int) -> bytes:
    """The bytes that are stored: as many as its largest span needs."""
    return histogram.to_bytes((histogram.bit_length() + 7) // 8, "little")


def unpack(data: bytes) -> int:
    """The histogram in stored bytes; what does not fit is left out."""
    return int.from_bytes(data[: _LANES.size], "little")
