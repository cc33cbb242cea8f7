"""How far a running task has come: told from inside, read through its handle."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

EVERY_S = 0.1
"""A task may tell of every row; what comes sooner than this after the last news is left out, the last step never."""

MAX_NOTE = 500
"""Characters of a note that are kept."""


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` (None: nobody knows), in whatever unit the task counts, and a note for people."""

    done: float
    total: float | None = None
    note: str = ""

    @property
    def fraction(self) -> float | None:
        """From 0 to 1; None where the total is not known."""
        if self.total is None:
            return None
        return min(1.0, max(0.0, self.done / self.total)) if self.total > 0 else 1.0

    def to_json(self) -> str:
        """As it is kept."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Progress:
        """The reverse of `to_json`."""
        return cls(**json.loads(text))


class Reporter:
    """Takes news of one run from any thread; `publish` is called when `latest` is worth keeping."""

    __slots__ = ("_last_s", "_monotonic", "latest", "publish")

    def __init__(
        self, publish: Callable[[], None] | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.publish = publish
        self.latest: str | None = None
        self._monotonic = monotonic
        self._last_s = -math.inf

    def report(self, progress: Progress) -> None:
        """Have it known, unless the last news is only just out. Raises ValueError for what is no number."""
        for number in (progress.done, progress.total):
            if number is not None and not math.isfinite(number):
                raise ValueError(f"progress is counted in finite numbers, not {number!r}")
        self.latest = progress.to_json()
        now_s = self._monotonic()
        if self.publish is None or (now_s - self._last_s < EVERY_S and progress.done != progress.total):
            return
        self._last_s = now_s
        self.publish()
