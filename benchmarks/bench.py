"""What every figure receives: how much to do, where to store it, and how to report progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import app
from benchmarks.figure import Row
from benchmarks.servers import QTasksServers, run_servers
from benchmarks.task_times import TaskTimes
from benchmarks.waiting import Say

IN_FLIGHT: Final = 50
"""Publishes under way at once, where many are."""

FAR_MS: Final = 24 * 60 * 60 * 1000
"""A delay longer than any measurement: such a message is never due."""

MAX_TASKS: Final = 1_200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much each figure, and each step of a comparison, does."""

    publishes: int
    """Publishes of the load generator; our clients, which are slower, send a fifth of that."""
    backlogs: tuple[int, ...]
    """Comparisons drain the first, and call as many in bulk."""
    streamed: int
    naps: int
    paced_s: float
    """How long jobs are sent at a fixed pace."""
    waiting: int
    """Messages stored to measure the size of the store."""
    idle_s: float
    starts: int
    """How often each timed program is started; interpreters ten times as often."""
    calls: int = 2_000
    """Calls of a comparison one by one, at once, and while they run."""
    asleep: int = 50_000
    """Messages that are not due, behind which a comparison drains."""
    plain: int = 5_000
    tests: int = 1_000


USUAL: Final = Sizes(
    publishes=5_000, backlogs=(10_000,), streamed=5_000, naps=2_000, paced_s=10, waiting=20_000, idle_s=10, starts=3
)
FULL: Final = Sizes(
    publishes=20_000,
    backlogs=(10_000, 200_000),
    streamed=20_000,
    naps=2_000,
    paced_s=30,
    waiting=100_000,
    idle_s=10,
    starts=5,
    asleep=1_000_000,
)
QUICK: Final = Sizes(
    publishes=100,
    backlogs=(2_000,),
    streamed=100,
    naps=20,
    paced_s=1,
    waiting=200,
    idle_s=1,
    starts=1,
    calls=100,
    asleep=1_000,
    plain=100,
    tests=20,
)
"""To see that everything works, and roughly how fast."""


@dataclass(frozen=True, slots=True)
class Bench:
    """One run of the benchmarks."""

    sizes: Sizes
    folder: Path
    """Where the stores are kept: the disk that is measured."""
    say: Say

    @contextmanager
    def servers(self, *, dispatcher: bool = True, application: str = app.__name__) -> Iterator[QTasksServers]:
        """A fresh broker and, with `dispatcher`, a warm dispatcher, with a file of task times of their own."""
        with (
            TaskTimes.fresh(MAX_TASKS) as task_times,
            run_servers(self.folder, task_times, dispatcher=dispatcher, application=application) as servers,
        ):
            yield servers


Figure = Callable[[Bench], Iterator[Row]]
"""Measures something and yields the rows of the table."""
