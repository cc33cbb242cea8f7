"""The steps of a comparison. Each begins with a fresh session and gives samples of some measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from benchmarks import waiting
from benchmarks.bench import Sizes
from benchmarks.comparison import measures
from benchmarks.comparison.candidate import NotOfferedError, Session
from benchmarks.comparison.measures import PER_S, Measure, Sample, Samples
from benchmarks.comparison.produce import How
from benchmarks.comparison.tree_session import TreeSession
from benchmarks.figure import percentile

_HEAD: Final = 0.1
"""The part of a backlog whose processor time is not counted: some workers are still starting."""
_QUIET_S: Final = 0.5
"""What follows the last task, such as storing that it is done, is counted."""


@dataclass(frozen=True, slots=True)
class Step:
    """What is done in one session."""

    run: Callable[[Sizes, Session], Samples]
    gives: tuple[Measure, ...]
    with_results: bool = False
    """Whether it makes a difference that results are kept."""
    trees_only: bool = False


def _call(sizes: Sizes, session: Session) -> Samples:
    """Calls, no worker."""
    ways: tuple[tuple[Measure, How, int], ...] = (
        (measures.CALLED, "one by one", sizes.calls),
        (measures.AT_ONCE_CALLED, "at once", sizes.calls),
        (measures.MAPPED, "in bulk", sizes.backlogs[0]),
    )
    samples: Samples = {}
    for measure, how, count in ways:
        try:
            produced = session.produce(how, "noop", count)
        except NotOfferedError:
            continue
        samples[measure] = Sample(produced.per_s, produced.cpu_us)
    return samples


def _drain(sizes: Sizes, session: Session) -> Samples:
    sample = _drained(sizes.backlogs[0], session)
    assert sample.cpu_us is not None, "processor time is measured"
    return {measures.DRAINED: sample, measures.CPU: Sample(sample.cpu_us)}


def _flat(sizes: Sizes, session: Session) -> Samples:
    session.produce("in bulk", "noop", sizes.asleep)
    return {
        measures.FLAT: _drained(sizes.backlogs[0], session),
        measures.FLAT_MEMORY: Sample(session.memory_mb()),
    }


def _mixed(sizes: Sizes, session: Session) -> Samples:
    assert isinstance(session, TreeSession), "an application of a peer has tasks of one kind"
    session.declare_def_task()
    count = sizes.backlogs[0] // 2
    return {
        measures.MIXED: _drained(count, session),
        measures.THREADED: _drained(count, session, "plain"),
    }


def _drained(count: int, session: Session, work: str = "noop") -> Sample:
    tasks = session.release(work, count)

    def begun() -> bool:
        session.check()
        return session.task_times.count(tasks) >= count * _HEAD

    waiting.until(begun, waiting.limit_s(count), "a tenth of the backlog was done", poll_s=0.002)
    before_s, done = session.cpu_s(), session.task_times.count(tasks)
    session.wait(tasks)
    waiting.pause(_QUIET_S)
    return Sample(_rate(session, tasks), (session.cpu_s() - before_s) * 1e6 / max(1, count - done))


def _nap(sizes: Sizes, session: Session) -> Samples:
    tasks = session.release("nap", min(sizes.naps, session.naps))
    session.wait(tasks)
    return {measures.NAPS: Sample(_rate(session, tasks))}


def _rate(session: Session, tasks: range) -> float:
    """Tasks a second from the first start to the last end."""
    span_ns = max(session.task_times.done_ns(tasks)) - min(session.task_times.started_ns(tasks))
    return len(tasks) / span_ns * 1e9


def _live(sizes: Sizes, session: Session) -> Samples:
    """A producer and running workers at the same time, at full speed and at a fixed pace; then nothing."""
    session.start("noop")
    before_s = session.cpu_s()
    tasks = session.produce("one by one", "noop", sizes.calls).tasks
    session.wait(tasks)
    waiting.pause(_QUIET_S)
    cpu_us = (session.cpu_s() - before_s) * 1e6 / len(tasks)
    span_ns = max(session.task_times.done_ns(tasks)) - min(session.task_times.sent_ns(tasks))
    paced = session.produce("one by one", "noop", int(sizes.paced_s * PER_S), per_s=PER_S).tasks
    session.wait(paced)
    times_ns = zip(session.task_times.sent_ns(paced), session.task_times.started_ns(paced), strict=True)
    spans_ms = [(started - sent) / 1e6 for sent, started in times_ns]
    memory_mb = session.memory_mb()
    waiting.pause(_QUIET_S)
    before_s = session.cpu_s()
    waiting.pause(sizes.idle_s)
    return {
        measures.TOGETHER: Sample(len(tasks) / span_ns * 1e9, cpu_us),
        measures.P50: Sample(percentile(spans_ms, 50)),
        measures.P99: Sample(percentile(spans_ms, 99)),
        measures.MEMORY: Sample(memory_mb),
        measures.IDLE: Sample((session.cpu_s() - before_s) / sizes.idle_s * 100),
    }


def _plain(sizes: Sizes, session: Session) -> Samples:
    assert isinstance(session, TreeSession), "only qtasks delivers to any URL"
    tasks = session.release_plain(sizes.plain)
    before_s = session.cpu_s()
    session.wait(tasks)
    waiting.pause(_QUIET_S)
    cpu_us = (session.cpu_s() - before_s) * 1e6 / len(tasks)
    return {measures.PLAIN: Sample(_rate(session, tasks), cpu_us)}


def _tests(sizes: Sizes, session: Session) -> Samples:
    assert isinstance(session, TreeSession), "only qtasks has the fixture"
    return {measures.TESTS: session.run_tests(sizes.tests)}


STEPS: Final[Mapping[str, Step]] = {
    "drain": Step(_drain, (measures.DRAINED, measures.CPU), with_results=True),
    "mixed": Step(_mixed, (measures.MIXED, measures.THREADED), trees_only=True),
    "call": Step(_call, (measures.CALLED, measures.AT_ONCE_CALLED, measures.MAPPED)),
    "live": Step(
        _live, (measures.TOGETHER, measures.P50, measures.P99, measures.MEMORY, measures.IDLE), with_results=True
    ),
    "nap": Step(_nap, (measures.NAPS,)),
    "flat": Step(_flat, (measures.FLAT, measures.FLAT_MEMORY), trees_only=True),
    "plain": Step(_plain, (measures.PLAIN,), trees_only=True),
    "tests": Step(_tests, (measures.TESTS,), trees_only=True),
}
"""By the name that ``--only`` takes."""
