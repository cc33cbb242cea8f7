"""The same work on every candidate, in turns: each round measures all of them before the next round begins."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks.bench import Bench, Sizes
from benchmarks.figure import number, percentile
from benchmarks.peers.candidates import THIS_TREE, Candidate, Session

PER_S: Final = 50
_HEAD: Final = 0.1
"""The part of a backlog that is not timed: the workers of some candidates are still starting."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One property that is compared."""

    name: str
    unit: str
    method: str
    less_is_better: bool = False


ENQUEUED: Final = Measure(
    "enqueued one by one",
    "/s",
    "one producer process with the queue's own client, after a first that connects",
)
RUN: Final = Measure("end to end", "tasks/s", "no-op tasks, first sent to last done, that producer running")
DRAINED: Final = Measure("drained", "tasks/s", "no-op tasks from a backlog, from a tenth done to all done")
NAPS: Final = Measure("tasks that sleep 50 ms", "tasks/s", DRAINED.method.replace("no-op ", ""))
P50: Final = Measure("enqueue to start, p50", "ms", f"{PER_S} jobs a second from one producer", less_is_better=True)
P95: Final = Measure("enqueue to start, p95", "ms", P50.method, less_is_better=True)
P99: Final = Measure("enqueue to start, p99", "ms", P50.method, less_is_better=True)
MEMORY: Final = Measure(
    "memory", "MB", "workers (ours: broker and dispatcher) after that; Redis and PostgreSQL not counted", True
)
MEASURES: Final = (ENQUEUED, RUN, DRAINED, NAPS, P50, P95, P99, MEMORY)

Values = dict[Measure, float]


@dataclass(frozen=True, slots=True)
class MeasureResults:
    """The values of one candidate for one measure, one for each round."""

    measure: Measure
    candidate: str
    version: str
    values: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Reasons why a round has no value."""

    @property
    def median(self) -> float | None:
        """Median of the rounds; None if every round failed."""
        return statistics.median(self.values) if self.values else None


def run(bench: Bench, candidates: Sequence[Candidate], rounds: int) -> list[MeasureResults]:
    """Measure every candidate, `rounds` times."""
    results = {
        (measure, candidate.name): MeasureResults(measure, candidate.name, candidate.version)
        for measure in MEASURES
        for candidate in candidates
    }
    for round_ in range(1, rounds + 1):
        for step, measures in _STEPS.items():
            for candidate in candidates:
                names = ", ".join(measure.name for measure in measures)
                bench.say(f"round {round_} of {rounds}: {candidate.name}: {names}")
                try:
                    with candidate.session() as session:
                        values = step(bench.sizes, session)
                except Exception as error:
                    bench.say(f"  failed: {type(error).__name__}: {error}")
                    for measure in measures:
                        results[measure, candidate.name].failures.append(f"{type(error).__name__}: {error}")
                    continue
                for measure, value in values.items():
                    results[measure, candidate.name].values.append(value)
    return list(results.values())


def _live(sizes: Sizes, session: Session) -> Values:
    """A producer and running workers at the same time."""
    session.start("noop")
    tasks = session.produce("noop", sizes.streamed)
    session.wait(tasks)
    sent, done = session.task_times.sent_ns(tasks), session.task_times.done_ns(tasks)
    paced = session.produce("noop", int(sizes.paced_s * PER_S), str(PER_S))
    session.wait(paced)
    times_ns = zip(session.task_times.sent_ns(paced), session.task_times.started_ns(paced), strict=True)
    spans_ms = [(started - sent) / 1e6 for sent, started in times_ns]
    return {
        ENQUEUED: (len(tasks) - 1) / (max(sent) - min(sent)) * 1e9,
        RUN: len(tasks) / (max(done) - min(sent)) * 1e9,
        P50: percentile(spans_ms, 50),
        P95: percentile(spans_ms, 95),
        P99: percentile(spans_ms, 99),
        MEMORY: session.memory_mb(),
    }


def _drain(sizes: Sizes, session: Session) -> Values:
    return {DRAINED: _rate(session, "noop", sizes.backlogs[0])}


def _nap(sizes: Sizes, session: Session) -> Values:
    return {NAPS: _rate(session, "nap", min(sizes.naps, session.naps))}


def _rate(session: Session, work: str, count: int) -> float:
    tasks = session.release(work, count)
    session.wait(tasks)
    done = sorted(session.task_times.done_ns(tasks))
    head = int(count * _HEAD)
    return (count - 1 - head) / (done[-1] - done[head]) * 1e9


_STEPS: Final[dict[Callable[[Sizes, Session], Values], tuple[Measure, ...]]] = {
    _drain: (DRAINED,),
    _nap: (NAPS,),
    _live: (ENQUEUED, RUN, P50, P95, P99, MEMORY),
}


def table(results: Sequence[MeasureResults]) -> Iterator[str]:
    """The table as lines: by measure, with the ratio of each peer's median to that of this tree."""
    for measure in MEASURES:
        better = "less is better" if measure.less_is_better else "more is better"
        yield f"{measure.name}, {measure.unit} ({better}): {measure.method}"
        rows = [row for row in results if row.measure is measure]
        reference = next((row.median for row in rows if row.candidate == THIS_TREE), None)
        yield from (f"    {_line(row, reference)}" for row in rows)


def _line(row: MeasureResults, reference: float | None) -> str:
    name = f"{row.candidate} {row.version}"
    if row.median is None:
        return f"{name:<22} not measured: {row.failures[-1].splitlines()[0] if row.failures else 'no round ended'}"
    spread = f"{number(min(row.values))} to {number(max(row.values))}" if len(row.values) > 1 else ""
    ratio = "" if reference is None or row.candidate == THIS_TREE else f"{row.median / reference:6.2f} times ours"
    return f"{name:<22} {number(row.median):>9}  {ratio:<20} {spread}".rstrip()
