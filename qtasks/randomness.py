"""Randomness as a port: ids and jitter come from a `Random` object, which a test can seed.

Shared by the broker and the tasks.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from typing import Protocol


class Random(Protocol):
    """The source of ids and jitter."""

    def token(self, size: int) -> bytes:
        """`size` unpredictable bytes."""

    def fraction(self) -> float:
        """A float in [0, 1) for jitter; not for secrets."""


class SystemRandom:
    """The machine's randomness."""

    def token(self, size: int) -> bytes:
        """`size` unpredictable bytes."""
        return secrets.token_bytes(size)

    def fraction(self) -> float:
        """A float in [0, 1) for jitter."""
        return random.random()  # noqa: S311 - jitter need not be unpredictable


def ordered_id() -> str:
    """A new id of 32 hex digits: the time in milliseconds, then 80 random bits.

    Ids of one moment are neighbours in an index, as those of UUID version 7 (RFC 9562). Where an id is all random, each
    new row of a large table changes a page of its own.
    """
    return f"{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"
