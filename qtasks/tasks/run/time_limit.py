"""The end of an attempt's time, and the request to stop: both cancel the asyncio task that runs the attempt."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from qtasks.rare_timers import Deadline
from qtasks.tasks.context import StopReason
from qtasks.tasks.run.run import Run

THREAD_GRACE_S = 0.1
"""At the end of the process, a ``def`` may see `TaskContext.should_stop` and end by itself for so long."""


class TimeLimit(Deadline):
    """Cancels the asyncio task in which it is made after `limit_s`, or when `run` is asked to stop."""

    __slots__ = ("_has_ended", "_loop", "_run")

    def __init__(self, run: Run, limit_s: float, running: asyncio.Task[Any]) -> None:
        super().__init__(limit_s, running)
        self._has_ended = False
        self._run = run
        self._loop = running.get_loop()
        link = run.context.link
        link.on_stop = self.stop_run
        if link.stop_reason is not None:
            self.stop_run(link.stop_reason)

    def stop_run(self, reason: StopReason) -> None:
        """Let the limit end the run soon, if it can be stopped for this reason. May be called from any thread."""
        if self._run.task.is_async or self._run.context.link.thread.is_left or reason is StopReason.DRAIN:
            with suppress(RuntimeError):  # the loop has closed
                self._loop.call_soon_threadsafe(self._expire_soon)

    def has_caused(self, error: BaseException | None) -> bool:
        """See `Deadline.has_caused`; the run can be asked to stop no more."""
        self._has_ended = True
        self._run.context.link.on_stop = None
        return super().has_caused(error)

    def _expire_soon(self) -> None:
        if not self._has_ended and not self.is_expired:
            self.stop()
            self.start(0 if self._run.task.is_async else THREAD_GRACE_S)
