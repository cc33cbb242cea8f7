"""What a forked process makes anew, and what it does not touch."""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from qtasks import forks
from qtasks.counted_log import CountedLog
from qtasks.lazy import lazy_property
from qtasks.tasks.results.backend import ResultWatchers
from qtasks.tasks.results.sqlite import SQLiteResults
from qtasks.threads import DaemonThreadPool

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

PATIENCE_S = 10.0


def in_child(works: Callable[[], bool]) -> bool:
    """Whether `works` returns True in a forked process. It is killed if it hangs."""
    child = os.fork()
    if child == 0:
        import signal

        signal.alarm(int(PATIENCE_S))
        status = 1
        try:
            status = 0 if works() else 1
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


class Owner:
    """Counts how often it has begun."""

    def __init__(self) -> None:
        self.begun = 0
        forks.per_process(self._begin)

    def _begin(self) -> None:
        self.begun += 1


def test_an_object_begins_at_once_and_in_each_child() -> None:
    owner = Owner()
    assert in_child(lambda: owner.begun == 2 and in_child(lambda: owner.begun == 3))
    assert owner.begun == 1


def test_an_object_that_is_gone_is_not_remembered() -> None:
    gc.collect()
    before = len(forks._begins)
    owner = Owner()
    assert len(forks._begins) == before + 1
    del owner
    assert len(forks._begins) == before


def test_what_rests_goes_on_in_the_parent_only() -> None:
    class Resting:
        def __init__(self) -> None:
            self.states: list[str] = []
            forks.rest_before_forks(self.hold)

        def hold(self) -> Callable[[], None]:
            self.states.append("held")
            return lambda: self.states.append("released")

    resting = Resting()
    assert in_child(lambda: resting.states == ["held"])
    assert resting.states == ["held", "released"]


def test_inherited_parts_live_as_long_as_the_process() -> None:
    class Part:
        pass

    part = Part()
    forks.keep_inherited(part, None)
    assert forks._inherited.pop() is part


def test_a_child_runs_calls_in_threads_of_its_own_and_none_of_those_that_waited() -> None:
    may_end, ran = threading.Event(), [0]

    def count() -> None:
        may_end.wait()
        ran[0] += 1

    with DaemonThreadPool(1, "test") as pool:
        pool.submit(count)
        waiting = pool.submit(count)
        try:
            assert in_child(lambda: pool.submit(lambda: 7).result(PATIENCE_S / 2) == 7 and ran == [0])
        finally:
            may_end.set()
        waiting.result(PATIENCE_S)
    assert ran == [2]


def test_a_wait_that_began_before_a_fork_ends_quietly_in_the_child() -> None:
    watchers = ResultWatchers()
    with watchers.watching("key", lambda: None):
        waiting = watchers.watching("key", lambda: None)
        waiting.__enter__()
        assert in_child(lambda: waiting.__exit__(None, None, None) is None or True)
        waiting.__exit__(None, None, None)


def test_lines_that_the_parent_has_counted_are_not_counted_again(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    counted = CountedLog(logging.getLogger("qtasks.test_forks"), lambda: now_s)
    for _ in range(3):
        counted.warning("of a kind", "a line")

    def writes_one_line() -> bool:
        nonlocal now_s
        now_s = 100.0
        caplog.clear()
        counted.warning("of a kind", "a line")
        return [record.getMessage() for record in caplog.records] == ["a line"]

    assert in_child(writes_one_line)


def test_a_fork_waits_for_the_end_of_a_transaction_in_sqlite(tmp_path: Path) -> None:
    inside, written = threading.Event(), [False]

    class Forking:
        def __init__(self) -> None:
            self.begun = threading.Event()
            forks.rest_before_forks(self.hold)

        def hold(self) -> Callable[[], None]:
            self.begun.set()
            return lambda: None

    def write() -> None:
        with backend._write_lock:
            inside.set()
            forking.begun.wait(PATIENCE_S)
            written[0] = True

    forking = Forking()  # it is asked before the backend
    backend = SQLiteResults(tmp_path / "r.db", ttl_ms=1000)
    thread = threading.Thread(target=write)
    thread.start()
    inside.wait(PATIENCE_S)
    assert in_child(lambda: written[0] and backend.read("k") is None)
    thread.join()
    backend.close()


def test_threads_compute_a_lazy_property_at_the_same_time_and_agree() -> None:
    both = threading.Barrier(2)

    class Thing:
        @lazy_property
        def part(self) -> object:
            """A part."""
            both.wait(PATIENCE_S)
            return object()

    thing = Thing()
    seen: list[object] = []
    threads = [threading.Thread(target=lambda: seen.append(thing.part)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 2
    assert seen[0] is seen[1] is thing.part
    assert isinstance(Thing.part, lazy_property)
    assert Thing.part.__doc__ == "A part."
