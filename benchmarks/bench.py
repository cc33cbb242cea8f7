"""What every figure is given: how much to do, where, and whom to tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.figure import Row
from benchmarks.own import Own, own
from benchmarks.task_times import TaskTimes
from benchmarks.waiting import Say

IN_FLIGHT: Final = 50
"""Publishes under way at once, where many are."""

FAR_MS: Final = 24 * 60 * 60 * 1000
"""A delay that no measurement lives to see the end of."""

_MOST_TASKS: Final = 500_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much each figure does."""

    publishes: int
    """By the load generator; our clients, which are slower, send a fifth of it."""
    backlogs: tuple[int, ...]
    streamed: int
    naps: int
    paced_s: float
    """How long jobs are sent at a fixed pace."""
    waiting: int
    """Messages in the store whose size is taken."""
    idle_s: float
    starts: int
    """How often something is started that is timed: interpreters ten times as often."""


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
)
TINY: Final = Sizes(publishes=100, backlogs=(100,), streamed=100, naps=20, paced_s=1, waiting=200, idle_s=1, starts=1)
"""Enough to see that everything works; the figures mean nothing."""


@dataclass(frozen=True, slots=True)
class Bench:
    """One run of the benchmarks."""

    sizes: Sizes
    folder: Path
    """Where the stores are kept: the disk that is measured."""
    say: Say

    @contextmanager
    def own(self, *, dispatcher: bool = True) -> Iterator[Own]:
        """A new broker and, with `dispatcher`, a warm dispatcher, with a new file of task times."""
        with TaskTimes.fresh(_MOST_TASKS) as times, own(self.folder, times, dispatcher=dispatcher) as pair:
            yield pair


Figure = Callable[[Bench], Iterator[Row]]
"""Measures something and gives the rows of the table as they come."""
