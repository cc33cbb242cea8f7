"""What the comparison should show, in one place. A goal is judged where its opponents were measured, too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.comparison import measures
from benchmarks.comparison.measures import Measure, MeasureResults
from benchmarks.figure import number

BASELINE: Final = "53e0575"
"""The revision that goals against an earlier qtasks refer to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A multiple of what each of `than` does; a plain limit without `than`. At most, where less is better."""

    measure: Measure
    than: tuple[str, ...] = ()
    reach: float | None = None
    """Missing this is said beside the figure."""
    aim: float | None = None
    """The next step: what is wished beyond `reach`."""
    note: str = ""
    """Why it is missed, by the latest profile (Python 3.11 on two cores), if it is known."""


_ALONE: Final = "a call that is alone: half of the broker's 435 µs is HTTP server and reading, a third sync and writes"

GOALS: Final = (
    Goal(
        measure=measures.DRAINED,
        than=(BASELINE,),
        reach=6,
        aim=15,
        note="broker 44 µs: claim, two log rows, settle, lines; dispatcher 37 µs: decoding and the run",
    ),
    Goal(measure=measures.DRAINED, than=("celery", "taskiq", "dramatiq", "saq", "huey"), reach=1),
    Goal(measure=measures.DRAINED, than=("pgqueuer", "ardiq"), aim=1),
    Goal(measure=measures.CPU, reach=150, aim=66, note="half in each process; 85 µs on a machine twice as fast"),
    Goal(measure=measures.TOGETHER, than=("celery", "taskiq", "saq", "pgqueuer"), reach=1, note=_ALONE),
    Goal(measure=measures.TOGETHER, than=("dramatiq", "huey", "ardiq"), aim=1),
    Goal(measure=measures.CALLED, than=(BASELINE,), reach=2.5, note=_ALONE),
    Goal(measure=measures.CALLED, than=("pgqueuer",), reach=1, note=_ALONE),
    Goal(measure=measures.AT_ONCE_CALLED, than=(BASELINE,), reach=10, note="broker 60 µs a call, producer 33 µs"),
    Goal(measure=measures.AT_ONCE_CALLED, than=("ardiq",), aim=1),
    Goal(
        measure=measures.MAPPED,
        than=(BASELINE,),
        reach=6,
        note="broker 37 µs an item, 20 of it the store; nothing is sent before all values are known to fit",
    ),
    Goal(measure=measures.MAPPED, than=("pgqueuer",), aim=1),
    Goal(measure=measures.P50, than=("taskiq",), reach=1.3, aim=1, note=_ALONE),
    Goal(measure=measures.NAPS, than=(BASELINE,), reach=1.8),
    Goal(measure=measures.NAPS, than=("taskiq",), reach=0.95),
    Goal(
        measure=measures.PLAIN,
        than=(BASELINE,),
        reach=2,
        note="store 35 µs, socket 16, transport 15, the rest is the loop",
    ),
    Goal(measure=measures.FLAT, than=(BASELINE,), reach=1),
    Goal(measure=measures.FLAT_MEMORY, than=(BASELINE,), reach=1.05),
    Goal(measure=measures.TESTS, reach=10, aim=5),
    Goal(measure=measures.MEMORY, than=(BASELINE,), reach=1.05),
    Goal(measure=measures.IDLE, than=(BASELINE,), reach=1.05),
)


def judge(results: Sequence[MeasureResults], measure: Measure, *, kept: bool, ours: str) -> Iterator[str]:
    """A line for every goal of `measure` that can be judged."""
    own = measures.find(results, measure, kept=kept, candidate=ours)
    if own is None or own.median is None:
        return
    for goal in GOALS:
        if goal.measure is not measure:
            continue
        if not goal.than:
            yield _line(goal, own.median, measure.unit)
        for name in goal.than:
            theirs = measures.find(results, measure, kept=kept, candidate=name)
            if theirs is not None and (found := measures.ratio(own, theirs)) is not None:
                yield _line(goal, found.medians, f"times {name}")


def _line(goal: Goal, value: float, unit: str) -> str:
    parts = [f"{number(value)} {unit}:"]
    if goal.reach is not None:
        parts.append(f"goal {_sign(goal)} {goal.reach:g} {'met' if reaches(goal, value, goal.reach) else 'MISSED'}")
    if goal.aim is not None:
        parts.append(f"aim {_sign(goal)} {goal.aim:g} {'met' if reaches(goal, value, goal.aim) else 'not yet'}")
    missed = goal.reach is not None and not reaches(goal, value, goal.reach)
    return " ".join(parts) + (f" ({goal.note})" if goal.note and missed else "")


def reaches(goal: Goal, value: float, limit: float) -> bool:
    """Whether `value` is on the good side of `limit`."""
    return value <= limit if goal.measure.less_is_better else value >= limit


def _sign(goal: Goal) -> str:
    return "≤" if goal.measure.less_is_better else "≥"
