"""What is compared, and the values that the rounds gave."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

PER_S: Final = 50
"""Calls a second at a fixed pace."""

AT_ONCE: Final = 50
"""Calls of one producer that are under way at the same time."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One property that is compared. `method` says what was done between which moments."""

    name: str
    unit: str
    method: str
    less_is_better: bool = False
    cpu_of: str = ""
    """Whose processor time is shown beside the value, in microseconds for each call or task."""


CALLED: Final = Measure(
    "calls one by one", "/s", "one process, no worker; from after its first call to the last answer", cpu_of="producer"
)
AT_ONCE_CALLED: Final = Measure(
    f"calls, {AT_ONCE} in flight", "/s", "as before, all awaited on one event loop", cpu_of="producer"
)
MAPPED: Final = Measure("calls in bulk", "/s", "as before, one `.map` or what the queue has for it", cpu_of="producer")
DRAINED: Final = Measure(
    "drain", "tasks/s", "no-op tasks stored beforehand; first task started to last task done", cpu_of="workers"
)
CPU: Final = Measure(
    "processor time of a drained task",
    "µs",
    "workers (broker and dispatcher), from a tenth done until all is quiet",
    True,
)
MIXED: Final = Measure(
    "drain beside a def task", "tasks/s", "as the drain; the application declares a def task, too", cpu_of="workers"
)
THREADED: Final = Measure("drain of def tasks", "tasks/s", "as the drain, tasks that run in threads", cpu_of="workers")
TOGETHER: Final = Measure(
    "producer and worker together",
    "tasks/s",
    "calls one by one while they run; first call to last done",
    cpu_of="workers",
)
FLAT: Final = Measure(
    "drain behind a full store",
    "tasks/s",
    "as the drain, with 50,000 messages not due (1,000,000 with --full)",
    cpu_of="workers",
)
FLAT_MEMORY: Final = Measure("memory with a full store", "MB", "proportional set of both processes after that", True)
NAPS: Final = Measure("tasks that sleep 50 ms", "tasks/s", "as the drain", cpu_of="workers")
P50: Final = Measure(
    "call to start, p50", "ms", f"{PER_S} calls a second; just before the call to the first line", True
)
P99: Final = Measure("call to start, p99", "ms", P50.method, True)
MEMORY: Final = Measure(
    "memory", "MB", "proportional set of all worker processes after the calls at a fixed pace", True
)
IDLE: Final = Measure("idle processor time", "%", "of one core, workers, after all that", True)
PLAIN: Final = Measure(
    "plain deliveries",
    "/s",
    "to a bare HTTP endpoint that is not ours, stored beforehand; first to last arrival",
    cpu_of="broker",
)
TESTS: Final = Measure(
    "tests of jobs under the fixture",
    "s",
    "one run of pytest, its start included; every tenth job is retried",
    True,
    "pytest",
)
MEASURES: Final = (
    DRAINED, CPU, MIXED, THREADED, TOGETHER, CALLED, AT_ONCE_CALLED, MAPPED, P50, P99, NAPS, PLAIN, TESTS, MEMORY, IDLE,
    FLAT, FLAT_MEMORY,
)  # fmt: skip
"""In the order of the table."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The value of one round, with processor time in microseconds for each call or task where it is measured."""

    value: float
    cpu_us: float | None = None


Samples = dict[Measure, Sample]


@dataclass(frozen=True, slots=True)
class MeasureResults:
    """The samples of one candidate for one measure, by round."""

    measure: Measure
    kept: bool
    """Whether results of tasks were kept."""
    candidate: str
    version: str
    samples: dict[int, Sample] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    """Reasons why a round has no sample."""

    @property
    def median(self) -> float | None:
        """Median of the rounds; None if there is none."""
        return statistics.median(self.values) if self.samples else None

    @property
    def values(self) -> list[float]:
        """The values, in the order of the rounds."""
        return [sample.value for sample in self.samples.values()]

    @property
    def cpu_us(self) -> float | None:
        """Median of the processor times."""
        known = [sample.cpu_us for sample in self.samples.values() if sample.cpu_us is not None]
        return statistics.median(known) if known else None


@dataclass(frozen=True, slots=True)
class Ratio:
    """One candidate's values as a multiple of another's. Rounds are compared one by one for the spread."""

    medians: float
    lowest: float
    highest: float


def ratio(ours: MeasureResults, theirs: MeasureResults) -> Ratio | None:
    """`ours` over `theirs`; None if either has no sample, or theirs is 0."""
    if ours.median is None or not theirs.median:
        return None
    medians = ours.median / theirs.median
    rounds = [
        sample.value / theirs.samples[round_].value
        for round_, sample in ours.samples.items()
        if round_ in theirs.samples and theirs.samples[round_].value
    ]
    return Ratio(medians, min(rounds, default=medians), max(rounds, default=medians))


def find(results: Sequence[MeasureResults], measure: Measure, *, kept: bool, candidate: str) -> MeasureResults | None:
    """The results of one candidate for one measure."""
    for row in results:
        if row.measure is measure and row.kept == kept and row.candidate == candidate:
            return row
    return None
