"""A backlog for our broker: tasks stored ahead of time that all fall due at one moment."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Final

from benchmarks import load, waiting
from benchmarks.bench import FAR_MS, IN_FLIGHT
from benchmarks.own import Own
from benchmarks.waiting import Say

_PROBE: Final = 1_000
"""Publishes by which the pace of filling is found; a backlog that is not much larger is probed by a fifth of it."""
_SLACK: Final = 1.3
_MARGIN_S: Final = 2


class LateError(Exception):
    """The backlog fell due while it was still being filled: what was measured is not a drain."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """Stored tasks. `due_s` is Unix time."""

    tasks: range
    due_s: int

    def wait(self) -> None:
        """Return when it falls due."""
        waiting.pause(self.due_s - time.time())


def fill(own: Own, name: str, count: int, say: Say) -> Backlog:
    """Store `count` calls of the task `name`. Raises LateError when that took longer than expected.

    The moment comes from a probe: the pace of a few publishes that will never be due, and room on top.
    """
    say(f"storing a backlog of {count:,} {name}")
    probe = load.requests(own.target, name, own.times.take(min(_PROBE, max(1, count // 5))), delay_ms=FAR_MS)
    pace = load.publish(own.target, probe, in_flight=IN_FLIGHT).per_s
    tasks = own.times.take(count)
    due_s = math.ceil(time.time() + count / pace * _SLACK) + _MARGIN_S + math.ceil(count / 50_000)
    requests = load.requests(own.target, name, tasks, not_before_s=due_s)
    load.publish(own.target, requests, in_flight=IN_FLIGHT, say=say)
    if time.time() > due_s:
        raise LateError(f"storing {count:,} tasks took {time.time() - due_s:.1f} s longer than a probe had promised")
    return Backlog(tasks, due_s)
