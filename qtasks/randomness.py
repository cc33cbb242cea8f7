"""Randomness as a port: ids and jitter come from a `Random` object, which a test can seed.

Shared by the broker and the tasks.
"""

from __future__ import annotations

import random
import secrets
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
