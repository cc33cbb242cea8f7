"""The same work on every contestant, in turns: each round takes all of them before the next begins."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks.bench import Bench, Sizes
from benchmarks.figure import number, percentile
from benchmarks.peers.contestants import OURS, Contestant, Session

PER_S: Final = 50
_HEAD: Final = 0.1
"""The part of a backlog that is not timed: while it runs, the workers of some are still starting."""


@dataclass(frozen=True, slots=True)
class Discipline:
    """One thing that is compared."""

    name: str
    unit: str
    method: str
    less_is_better: bool = False


ENQUEUED: Final = Discipline(
    "enqueued one by one",
    "/s",
    "one producer process with the queue's own client, after a first that connects",
)
RUN: Final = Discipline("end to end", "tasks/s", "no-op tasks, first sent to last done, that producer running")
DRAINED: Final = Discipline("drained", "tasks/s", "no-op tasks from a backlog, from a tenth done to all done")
NAPS: Final = Discipline("tasks that sleep 50 ms", "tasks/s", DRAINED.method.replace("no-op ", ""))
P50: Final = Discipline("enqueue to start, p50", "ms", f"{PER_S} jobs a second from one producer", less_is_better=True)
P95: Final = Discipline("enqueue to start, p95", "ms", P50.method, less_is_better=True)
P99: Final = Discipline("enqueue to start, p99", "ms", P50.method, less_is_better=True)
MEMORY: Final = Discipline(
    "memory", "MB", "workers (ours: broker and dispatcher) after that; Redis and PostgreSQL not counted", True
)
DISCIPLINES: Final = (ENQUEUED, RUN, DRAINED, NAPS, P50, P95, P99, MEMORY)

Results = dict[Discipline, float]


@dataclass(frozen=True, slots=True)
class Standing:
    """What one contestant reached in one discipline, a value each round."""

    discipline: Discipline
    contestant: str
    version: str
    values: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Why a round gave no value."""

    @property
    def median(self) -> float | None:
        """Of the rounds; None when every one failed."""
        return statistics.median(self.values) if self.values else None


def run(bench: Bench, contestants: Sequence[Contestant], rounds: int) -> list[Standing]:
    """Let all of them do everything, `rounds` times."""
    standings = {
        (discipline, contestant.name): Standing(discipline, contestant.name, contestant.version)
        for discipline in DISCIPLINES
        for contestant in contestants
    }
    for round_ in range(1, rounds + 1):
        for event, disciplines in _EVENTS.items():
            for contestant in contestants:
                names = ", ".join(discipline.name for discipline in disciplines)
                bench.say(f"round {round_} of {rounds}: {contestant.name}: {names}")
                try:
                    with contestant.session() as session:
                        results = event(bench.sizes, session)
                except Exception as error:
                    bench.say(f"  failed: {type(error).__name__}: {error}")
                    for discipline in disciplines:
                        standings[discipline, contestant.name].failures.append(f"{type(error).__name__}: {error}")
                    continue
                for discipline, value in results.items():
                    standings[discipline, contestant.name].values.append(value)
    return list(standings.values())


def _live(sizes: Sizes, session: Session) -> Results:
    """What a producer and running workers do together."""
    session.start("noop")
    tasks = session.produce("noop", sizes.streamed)
    session.wait(tasks)
    sent, done = session.times.sent_ns(tasks), session.times.done_ns(tasks)
    paced = session.produce("noop", int(sizes.paced_s * PER_S), str(PER_S))
    session.wait(paced)
    both = zip(session.times.sent_ns(paced), session.times.started_ns(paced), strict=True)
    spans_ms = [(started - sent) / 1e6 for sent, started in both]
    return {
        ENQUEUED: (len(tasks) - 1) / (max(sent) - min(sent)) * 1e9,
        RUN: len(tasks) / (max(done) - min(sent)) * 1e9,
        P50: percentile(spans_ms, 50),
        P95: percentile(spans_ms, 95),
        P99: percentile(spans_ms, 99),
        MEMORY: session.memory_mb(),
    }


def _drain(sizes: Sizes, session: Session) -> Results:
    return {DRAINED: _rate(session, "noop", sizes.backlogs[0])}


def _nap(sizes: Sizes, session: Session) -> Results:
    return {NAPS: _rate(session, "nap", min(sizes.naps, session.naps))}


def _rate(session: Session, work: str, count: int) -> float:
    tasks = session.release(work, count)
    session.wait(tasks)
    done = sorted(session.times.done_ns(tasks))
    head = int(count * _HEAD)
    return (count - 1 - head) / (done[-1] - done[head]) * 1e9


_EVENTS: Final[dict[Callable[[Sizes, Session], Results], tuple[Discipline, ...]]] = {
    _drain: (DRAINED,),
    _nap: (NAPS,),
    _live: (ENQUEUED, RUN, P50, P95, P99, MEMORY),
}


def table(standings: Sequence[Standing]) -> Iterator[str]:
    """The lines for people: by discipline, with each peer's median over ours."""
    for discipline in DISCIPLINES:
        better = "less is better" if discipline.less_is_better else "more is better"
        yield f"{discipline.name}, {discipline.unit} ({better}): {discipline.method}"
        group = [standing for standing in standings if standing.discipline is discipline]
        own = next((standing.median for standing in group if standing.contestant == OURS), None)
        yield from (f"    {_line(standing, own)}" for standing in group)


def _line(standing: Standing, own: float | None) -> str:
    name = f"{standing.contestant} {standing.version}"
    if standing.median is None:
        reason = standing.failures[-1].splitlines()[0] if standing.failures else "no round ended"
        return f"{name:<22} not measured: {reason}"
    spread = f"{number(min(standing.values))} to {number(max(standing.values))}" if len(standing.values) > 1 else ""
    ratio = "" if own is None or standing.contestant == OURS else f"{standing.median / own:6.2f} times ours"
    return f"{name:<22} {number(standing.median):>9}  {ratio:<20} {spread}".rstrip()
