"""A backlog for our broker: tasks stored ahead of time that all fall due at one moment."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Final

from benchmarks import load, waiting
from benchmarks.bench import FAR_MS, IN_FLIGHT
from benchmarks.servers import QTasksServers
from benchmarks.waiting import Say

_PROBE: Final = 1_000
"""Publishes that measure the rate of filling; for a small backlog a fifth of its size."""
_SLACK: Final = 1.3
_MARGIN_S: Final = 2


class LateError(Exception):
    """The backlog was due before it was complete: no drain could be measured."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """Stored tasks. `due_s` is Unix time."""

    tasks: range
    due_s: int

    def wait(self) -> None:
        """Return when it is due."""
        waiting.pause(self.due_s - time.time())


def fill(servers: QTasksServers, name: str, count: int, say: Say) -> Backlog:
    """Store `count` calls of the task `name`, all due at one time. Raises LateError if that takes too long.

    The due time is estimated from the rate of a few publishes that are never due, plus a margin.
    """
    say(f"storing a backlog of {count:,} {name}")
    probe = load.requests(
        servers.target, name, servers.task_times.reserve(min(_PROBE, max(1, count // 5))), delay_ms=FAR_MS
    )
    pace = load.publish(servers.target, probe, in_flight=IN_FLIGHT).per_s
    tasks = servers.task_times.reserve(count)
    due_s = math.ceil(time.time() + count / pace * _SLACK) + _MARGIN_S + math.ceil(count / 50_000)
    requests = load.requests(servers.target, name, tasks, not_before_s=due_s)
    load.publish(servers.target, requests, in_flight=IN_FLIGHT, say=say)
    if time.time() > due_s:
        raise LateError(f"storing {count:,} tasks took {time.time() - due_s:.1f} s longer than estimated")
    return Backlog(tasks, due_s)
