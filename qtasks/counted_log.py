"""Log lines that strangers can cause: the first ones of a kind are written, the next ones are counted.

Otherwise a client without any credential could fill the disk, and hide what matters between its own lines.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from qtasks.forks import per_process

PERIOD_S: Final = 60.0
"""Seconds for which the lines of a kind are counted after one was written."""


class CountedLog:
    """Writes to `log` at most `lines` a minute for each kind as they are, and one more with the number of the others.

    `monotonic` is the clock, in seconds. May be used from any thread; without a running event loop the number is
    written with the next line of the kind.
    """

    def __init__(
        self,
        log: logging.Logger,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        period_s: float = PERIOD_S,
        lines: int = 1,
    ) -> None:
        self._log = log
        self._monotonic = monotonic
        self._period_s = period_s
        self._lines = lines
        per_process(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._periods: dict[str, _Period] = {}

    def warning(self, kind: str, text: str, *arguments: object, extra: Mapping[str, Any] | None = None) -> None:
        """Log a warning, or count it; see `write`."""
        self.write(logging.WARNING, kind, text, *arguments, extra=extra)

    def write(
        self,
        level: int,
        kind: str,
        text: str,
        *arguments: object,
        extra: Mapping[str, Any] | None = None,
        with_traceback: bool | BaseException = False,
    ) -> None:
        """Log a line, or count it if enough of its kind were written within the period.

        `kind` completes the sentence "37 more ... in the last 60 s". It is a text of the code, never one that a
        stranger chooses: each kind is remembered.
        """
        now_s = self._monotonic()
        with self._lock:
            ended, period = None, self._periods.get(kind)
            is_new = period is None or now_s - period.began_s >= self._period_s
            if period is None or is_new:
                ended, period = period, _Period(level, now_s)
                self._periods[kind] = period
            elif period.written >= self._lines:
                period.count += 1
                return
            else:
                period.written += 1
        if ended is not None:
            self._sum_up(kind, ended, now_s)
        self._log.log(level, text, *arguments, extra=extra, exc_info=with_traceback)
        if is_new:
            self._sum_up_later(kind, period)

    def _sum_up_later(self, kind: str, period: _Period) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        loop.call_later(self._period_s, self._end, kind, period)

    def _end(self, kind: str, period: _Period) -> None:
        """End a period; while lines of its kind arrive, the next one begins."""
        now_s = self._monotonic()
        with self._lock:
            if self._periods.get(kind) is not period:
                return
            if not period.count:
                del self._periods[kind]
                return
            following = self._periods[kind] = _Period(period.level, now_s)
        self._sum_up(kind, period, now_s)
        self._sum_up_later(kind, following)

    def _sum_up(self, kind: str, period: _Period, now_s: float) -> None:
        if period.count:
            self._log.log(
                period.level, "%d more %s in the last %d s", period.count, kind, round(now_s - period.began_s)
            )


class _Period:
    """The time since the first line was written, and the numbers of lines since."""

    __slots__ = ("began_s", "count", "level", "written")

    def __init__(self, level: int, began_s: float) -> None:
        self.level = level
        self.began_s = began_s
        self.written = 1
        """Lines that were written as they are."""
        self.count = 0
        """Lines that were only counted."""
