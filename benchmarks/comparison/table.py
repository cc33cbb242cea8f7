"""The comparison as text and as data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.comparison import goals, measures
from benchmarks.comparison.measures import MEASURES, Measure, MeasureResults, ratio
from benchmarks.figure import number


def table(results: Sequence[MeasureResults], ours: str, *, judged: bool = True) -> Iterator[str]:
    """The table as lines, by measure. Each other candidate's line ends with ours as a multiple of it.

    `judged` adds the goals, which hold for usual counts.
    """
    for measure in MEASURES:
        for kept in (False, True):
            rows = [row for row in results if row.measure is measure and row.kept == kept]
            if not rows:
                continue
            better = "less is better" if measure.less_is_better else "more is better"
            title = f"{measure.name}{', results kept' if kept else ''}"
            yield f"{title}, {measure.unit} ({better}): {measure.method}"
            own = measures.find(results, measure, kept=kept, candidate=ours)
            yield from (f"    {_line(row, own)}" for row in rows)
            if judged:
                yield from (f"    {line}" for line in goals.judge(results, measure, kept=kept, ours=ours))


def _line(row: MeasureResults, own: MeasureResults | None) -> str:
    name = f"{row.candidate} {row.version}"
    if row.median is None:
        return f"{name:<22} not measured: {row.failures[-1].splitlines()[0] if row.failures else 'no round ended'}"
    low, high = number(min(row.values)), number(max(row.values))
    spread = f"{low} to {high}" if low != high else ""
    cpu = "" if row.cpu_us is None else f"{number(row.cpu_us)} µs of {row.measure.cpu_of}"
    multiple = "" if own is None or own is row else _multiple(own, row)
    failed = f"{len(row.failures)} rounds failed" if row.failures else ""
    return f"{name:<22} {number(row.median):>9}  {spread:<18} {cpu:<24} {multiple} {failed}".rstrip()


def _multiple(own: MeasureResults, row: MeasureResults) -> str:
    found = ratio(own, row)
    if found is None:
        return ""
    low, high = number(found.lowest), number(found.highest)
    rounds = f" (rounds {low} to {high})" if low != high else ""
    processor = f", processor {number(own.cpu_us / row.cpu_us)}" if own.cpu_us and row.cpu_us else ""
    return f"ours {number(found.medians)} times{rounds}{processor}"


def as_data(results: Sequence[MeasureResults], ours: str) -> list[dict[str, Any]]:
    """The rows for JSON."""
    return [_row(results, row, ours) for row in results]


def _row(results: Sequence[MeasureResults], row: MeasureResults, ours: str) -> dict[str, Any]:
    own = measures.find(results, row.measure, kept=row.kept, candidate=ours)
    found = None if own is None or own is row else ratio(own, row)
    measure: Measure = row.measure
    return {
        "measure": measure.name,
        "unit": measure.unit,
        "method": measure.method,
        "less_is_better": measure.less_is_better,
        "results_kept": row.kept,
        "candidate": row.candidate,
        "version": row.version,
        "median": row.median,
        "values": row.values,
        "cpu_us": row.cpu_us,
        "cpu_of": measure.cpu_of,
        "ours_over_this": None if found is None else found.medians,
        "ours_over_this_by_round": None if found is None else [found.lowest, found.highest],
        "goals": list(goals.judge(results, measure, kept=row.kept, ours=ours)) if own is row else [],
        "failures": row.failures,
    }
