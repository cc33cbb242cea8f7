"""What every candidate offers to the steps of a comparison."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from benchmarks import processes, waiting
from benchmarks.comparison.produce import How, Order
from benchmarks.processes import Program
from benchmarks.task_times import TaskTimes


class NotOfferedError(Exception):
    """The candidate has nothing of this kind."""


@dataclass(frozen=True, slots=True)
class Produced:
    """What a producer did, without its first call, which opens the connection."""

    tasks: range
    span_s: float
    cpu_s: float
    due_s: float | None
    """Unix time at which the tasks may start, if they may not start at once."""

    @property
    def per_s(self) -> float:
        """Calls a second."""
        return len(self.tasks) / self.span_s

    @property
    def cpu_us(self) -> float:
        """Processor time of the producer for each call, in microseconds."""
        return self.cpu_s * 1e6 / len(self.tasks)


class Session(Protocol):
    """A candidate at work, from a clean start to its end."""

    naps: int
    """Highest number of sleeping tasks in one measurement."""

    @property
    def task_times(self) -> TaskTimes:
        """When each task was sent, started and done."""
        ...

    def start(self, work: str) -> None:
        """Start the workers for tasks of the kind `work` and run a few first tasks."""

    def release(self, work: str, count: int) -> range:
        """Store a backlog that does not run yet, then let it run; returns when it begins."""
        ...

    def produce(self, how: How, work: str, count: int, *, per_s: float = 0) -> Produced:
        """Call from one process and return when all is sent. Raises NotOfferedError."""
        ...

    def wait(self, tasks: range) -> None:
        """Return when all of `tasks` are done. Raises TimeoutError, or ProgramError when a worker has ended."""

    def check(self) -> None:
        """Raise ProgramError when a worker has ended."""

    def cpu_s(self) -> float:
        """Processor time of its workers so far, and of their Redis."""
        ...

    def memory_mb(self) -> float:
        """Memory of its workers together."""
        ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """One participant of the comparison."""

    name: str
    version: str
    how: str
    """Its settings in words."""
    session: Callable[[bool], AbstractContextManager[Session]]
    """Opens a session; true keeps the results of tasks. Raises NotOfferedError if it has no results."""
    is_tree: bool = False
    """Whether it is a revision of qtasks."""


def produce(python: Path, order: Order, environment: Mapping[str, str], folder: Path) -> Produced:
    """Run a producer to its end in a process of its own. Raises ProgramError, NotOfferedError."""
    report = folder / "produced.json"
    command = (python, "-m", "benchmarks.comparison.produce", json.dumps(asdict(order)), report)
    log = folder / "producer.log"
    with processes.running(Program(f"the producer of {order.app}", command, environment, log=log)) as producer:
        producer.finish(waiting.limit_s(order.count))
    found = json.loads(report.read_text())
    if not found["offered"]:
        raise NotOfferedError(f"{order.app} has no {order.how}")
    tasks = range(order.first + 1, order.first + order.count)
    return Produced(tasks, found["span_s"], found["cpu_s"], found["due_s"])
