"""A machine's clock that a test sets, for real processes: libfaketime (https://github.com/wolfcw/libfaketime).

It changes wall time only. Monotonic clocks and timers stay those of the machine.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest


def library() -> str:
    """The path of libfaketime. Without it the test is skipped; on CI it fails."""
    found = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if found is not None:
        return str(found)
    if os.environ.get("CI") == "true":
        pytest.fail("libfaketime is not installed")
    pytest.skip("libfaketime is not installed")


class FakeClock:
    """The wall clock of the processes that are started with `variables`."""

    def __init__(self, folder: Path, *, seconds_of_minute: int) -> None:
        self._file = folder / "faketime.txt"
        self._base_s = seconds_of_minute - int(time.time()) % 60
        """What the right time of this clock has ahead of the machine's."""
        self.set(0)
        self.variables = {
            "LD_PRELOAD": library(),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, ahead_s: int) -> None:
        """Let the clock be ahead of the right time, or behind it if `ahead_s` is negative."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{self._base_s + ahead_s:+d}\n")
        fresh.replace(self._file)
        self.ahead_s = ahead_s

    def now_ms(self) -> int:
        """The time that the processes see."""
        return int((time.time() + self._base_s + self.ahead_s) * 1000)
