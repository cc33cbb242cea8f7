"""The comparison of the benchmarks: medians, ratios by round, goals, and the table."""

from contextlib import nullcontext, suppress
from pathlib import Path
from typing import cast

import pytest

from benchmarks.bench import QUICK, Bench, Sizes
from benchmarks.comparison import goals, measures, rounds
from benchmarks.comparison.candidate import Candidate, Session
from benchmarks.comparison.goals import BASELINE, GOALS
from benchmarks.comparison.measures import CALLED, DRAINED, P50, Measure, MeasureResults, Sample, Samples, ratio
from benchmarks.comparison.steps import STEPS, Step
from benchmarks.comparison.table import as_data, table

OURS = "this tree"


def results(measure: Measure, candidate: str, *values: float, cpu_us: float | None = None) -> MeasureResults:
    samples = {round_: Sample(value, cpu_us) for round_, value in enumerate(values, 1)}
    return MeasureResults(measure, False, candidate, "1.0", samples)


def words(line: str) -> str:
    return " ".join(line.split())


def test_the_ratio_is_of_the_medians_and_its_spread_of_the_rounds() -> None:
    found = ratio(results(DRAINED, OURS, 600, 500, 900), results(DRAINED, BASELINE, 100, 250, 200))
    assert found == measures.Ratio(medians=3.0, lowest=2.0, highest=6.0)


def test_only_rounds_that_both_have_are_compared() -> None:
    ours, theirs = results(DRAINED, OURS, 600, 500), results(DRAINED, BASELINE, 100, 250)
    del theirs.samples[2]
    assert ratio(ours, theirs) == measures.Ratio(medians=5.5, lowest=6.0, highest=6.0)


@pytest.mark.parametrize("theirs", [(), (0.0,)])
def test_there_is_no_ratio_to_nothing(theirs: tuple[float, ...]) -> None:
    assert ratio(results(DRAINED, OURS, 1), results(DRAINED, BASELINE, *theirs)) is None


def test_a_goal_against_another_is_a_multiple_of_its_median() -> None:
    rows = [results(DRAINED, OURS, 700), results(DRAINED, BASELINE, 100), results(DRAINED, "celery", 1400)]
    assert list(goals.judge(rows, DRAINED, kept=False, ours=OURS)) == [
        f"7.00 times {BASELINE}: goal ≥ 6 met aim ≥ 15 not yet",
        "0.50 times celery: goal ≥ 1 MISSED",
    ]


def test_less_is_better_for_times() -> None:
    rows = [results(P50, OURS, 1.2), results(P50, "taskiq", 1.0)]
    assert list(goals.judge(rows, P50, kept=False, ours=OURS)) == ["1.20 times taskiq: goal ≤ 1.3 met aim ≤ 1 not yet"]


def test_a_goal_is_not_judged_without_its_opponent() -> None:
    rows = [results(CALLED, OURS, 700), results(CALLED, "another", 100)]
    assert list(goals.judge(rows, CALLED, kept=False, ours=OURS)) == []


def test_a_note_stands_beside_what_is_missed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    goal = goals.Goal(measure=CALLED, reach=100, note="the fsync is the rest")
    monkeypatch.setattr(goals, "GOALS", (goal,))
    (missed,) = goals.judge([results(CALLED, OURS, 99)], CALLED, kept=False, ours=OURS)
    (met,) = goals.judge([results(CALLED, OURS, 100)], CALLED, kept=False, ours=OURS)
    assert missed == "99.0 /s: goal ≥ 100 MISSED (the fsync is the rest)"
    assert met == "100 /s: goal ≥ 100 met"


def test_a_line_has_median_spread_processor_time_and_our_multiple() -> None:
    another = results(DRAINED, "another", 100, 120, 90, cpu_us=1050.0)
    title, other, ours = table([another, results(DRAINED, OURS, 300, 240, 450, cpu_us=105.0)], OURS)
    assert title == f"drain, tasks/s (more is better): {DRAINED.method}"
    multiple = "ours 3.00 times (rounds 2.00 to 5.00), processor 0.10"
    assert words(other) == f"another 1.0 100 90.0 to 120 1,050 µs of workers {multiple}"
    assert words(ours) == "this tree 1.0 300 240 to 450 105 µs of workers"


def test_a_candidate_without_a_sample_says_why() -> None:
    row = MeasureResults(DRAINED, False, "another", "1.0", failures=["TimeoutError: nothing ran\nlog"])
    assert words(list(table([row], OURS))[1]) == "another 1.0 not measured: TimeoutError: nothing ran"


def test_kept_results_have_rows_of_their_own() -> None:
    kept = MeasureResults(DRAINED, True, OURS, "1.0", {1: Sample(2)})
    assert [line for line in table([results(DRAINED, OURS, 1), kept], OURS) if "results kept" in line]
    assert [(row["results_kept"], row["median"]) for row in as_data([kept], OURS)] == [(True, 2)]


def test_every_measure_is_given_by_one_step_and_every_goal_has_a_measure() -> None:
    given = [measure for step in STEPS.values() for measure in step.gives]
    assert sorted(given, key=measures.MEASURES.index) == list(measures.MEASURES)
    assert {goal.measure for goal in GOALS} <= set(given)


def turns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *outcomes: Sample | BaseException) -> list[MeasureResults]:
    """The results of one candidate whose steps end with `outcomes`, one after the other."""
    remaining = iter(outcomes)

    def step(sizes: Sizes, session: Session) -> Samples:
        outcome = next(remaining)
        if isinstance(outcome, Sample):
            return {DRAINED: outcome}
        raise outcome

    monkeypatch.setattr(rounds, "STEPS", {"drain": Step(step, (DRAINED,))})
    candidate = Candidate(OURS, "1.0", "", lambda _: nullcontext(cast("Session", None)))
    into: list[MeasureResults] = []
    with suppress(KeyboardInterrupt):
        bench = Bench(QUICK, tmp_path, lambda text: None)
        rounds.run(bench, [candidate], 2, names=["drain"], kept=(False,), into=into)
    return into


def test_what_was_measured_before_an_interruption_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (row,) = turns(monkeypatch, tmp_path, Sample(100), KeyboardInterrupt())
    assert row.values == [100]


def test_a_step_that_fails_is_tried_once_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (row,) = turns(monkeypatch, tmp_path, TimeoutError(), Sample(100), TimeoutError(), TimeoutError("late"))
    assert (row.samples, row.failures) == ({1: Sample(100)}, ["TimeoutError: late"])
