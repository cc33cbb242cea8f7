"""Waiting with an end: for a condition, and for tasks to be done."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from benchmarks.task_times import TaskTimes

Say = Callable[[str], None]
"""Prints progress for the user."""

_REPORT_S: Final = 5.0
"""How often long work says where it stands."""


def until(condition: Callable[[], bool], timeout_s: float, what: str, *, poll_s: float = 0.005) -> None:
    """Return once `condition` holds. Raises TimeoutError that names `what` when it does not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:.0f} s")
        pause(poll_s)


def pause(span_s: float) -> None:
    """Let time pass."""
    time.sleep(max(0.0, span_s))  # noqa: TID251 - a measurement looks from outside: there is no event to wait for


def done(times: TaskTimes, tasks: range, say: Say, *, check: Callable[[], None], poll_s: float = 0.02) -> None:
    """Return once all of `tasks` are done, saying now and then how many are.

    `check` is called repeatedly and raises when the processes that do them have ended. Raises TimeoutError after
    `patience_s`.
    """
    timeout_s = patience_s(len(tasks))
    deadline = time.monotonic() + timeout_s
    report = time.monotonic() + _REPORT_S
    unfinished = tasks
    while (first := times.first_unfinished(unfinished)) is not None:
        unfinished = range(first, tasks.stop)
        check()
        now = time.monotonic()
        if now > deadline:
            raise TimeoutError(f"{times.count(tasks):,} of {len(tasks):,} tasks were done after {timeout_s:.0f} s")
        if now > report:
            say(f"  {times.count(tasks):,} of {len(tasks):,} done")
            report = now + _REPORT_S
        pause(poll_s)


def patience_s(tasks: int) -> float:
    """How long so many tasks may take before a measurement gives up: fifty a second, and a minute."""
    return 60 + tasks / 50
