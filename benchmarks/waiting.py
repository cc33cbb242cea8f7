"""Waiting with a time limit: for a condition, and for tasks to be done."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from benchmarks.task_times import TaskTimes

Say = Callable[[str], None]
"""Reports progress to the person who watches."""

_REPORT_S: Final = 5.0
"""Seconds between two reports of progress."""


def until(condition: Callable[[], bool], timeout_s: float, what: str, *, poll_s: float = 0.005) -> None:
    """Return once `condition` is true. Raises TimeoutError, which names `what`, after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:.0f} s")
        pause(poll_s)


def pause(span_s: float) -> None:
    """Sleep."""
    time.sleep(max(0.0, span_s))  # noqa: TID251 - a measurement looks from outside: there is no event to wait for


def done(task_times: TaskTimes, tasks: range, say: Say, *, check: Callable[[], None], poll_s: float = 0.02) -> None:
    """Return once all of `tasks` are done, and report progress every few seconds.

    `check` is called again and again; it raises if no process is left that could do them. Raises TimeoutError after
    `limit_s`.
    """
    timeout_s = limit_s(len(tasks))
    deadline = time.monotonic() + timeout_s
    report = time.monotonic() + _REPORT_S
    unfinished = tasks
    while (first := task_times.first_unfinished(unfinished)) is not None:
        unfinished = range(first, tasks.stop)
        check()
        now = time.monotonic()
        if now > deadline:
            raise TimeoutError(f"{task_times.count(tasks):,} of {len(tasks):,} tasks were done after {timeout_s:.0f} s")
        if now > report:
            say(f"  {task_times.count(tasks):,} of {len(tasks):,} done")
            report = now + _REPORT_S
        pause(poll_s)


def limit_s(tasks: int) -> float:
    """Seconds that so many tasks may take before a measurement fails: at 50 tasks a second, plus a minute."""
    return 60 + tasks / 50
