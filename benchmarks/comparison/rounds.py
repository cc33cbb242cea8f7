"""The same steps on every candidate, in turns: each candidate does a step before the next step begins."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

from benchmarks.bench import Bench
from benchmarks.comparison.candidate import Candidate, NotOfferedError
from benchmarks.comparison.measures import Measure, MeasureResults, Samples
from benchmarks.comparison.steps import STEPS, Step

_ATTEMPTS: Final = 2
"""A machine with other load may be too slow for one; a step that fails again has failed."""

Kept = tuple[bool, ...]
"""Whether results of tasks are kept: in no step, in all, or first in none and then in all."""


def run(
    bench: Bench,
    candidates: Sequence[Candidate],
    rounds: int,
    *,
    names: Sequence[str],
    kept: Kept,
    into: list[MeasureResults],
) -> None:
    """Measure every candidate, `rounds` times. A step that fails twice loses its samples only.

    `into` holds what is measured so far, also when this is interrupted.
    """
    results: dict[tuple[Measure, bool, str], MeasureResults] = {}
    for round_, name in itertools.product(range(1, rounds + 1), names):
        step = STEPS[name]
        for keeps, candidate in itertools.product(kept if step.with_results else kept[:1], candidates):
            if step.trees_only and not candidate.is_tree:
                continue
            bench.say(f"round {round_} of {rounds}: {name}{', results kept' if keeps else ''}: {candidate.name}")
            samples, failure = _attempts(bench, step, candidate, keeps=keeps)
            for measure in step.gives:
                if not failure and measure not in samples:
                    continue  # not offered
                key = (measure, keeps, candidate.name)
                if key not in results:
                    results[key] = MeasureResults(measure, keeps, candidate.name, candidate.version)
                    into.append(results[key])
                if failure:
                    results[key].failures.append(failure)
                else:
                    results[key].samples[round_] = samples[measure]


def _attempts(bench: Bench, step: Step, candidate: Candidate, *, keeps: bool) -> tuple[Samples, str]:
    """The samples of a step, or why there are none."""
    failure = ""
    for _ in range(_ATTEMPTS):
        try:
            with candidate.session(keeps) as session:
                return step.run(bench.sizes, session), ""
        except NotOfferedError:
            return {}, ""
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
            bench.say(f"  failed: {failure}")
    return {}, failure
