"""The pool of daemon threads: what it shares with the pool that it replaces, apart from the end of the process."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator

import pytest

from qtasks.threads import DaemonThreadPool

PATIENCE_S = 10.0


@pytest.fixture
def pool() -> Iterator[DaemonThreadPool]:
    with DaemonThreadPool(2, "pool") as made:
        yield made


def test_it_returns_what_a_call_returns_and_raises_what_it_raises(pool: DaemonThreadPool) -> None:
    def fail() -> None:
        raise SystemExit("no")

    assert pool.submit(divmod, 7, 2).result(PATIENCE_S) == (3, 1)
    assert pool.submit(int, "11", base=2).result(PATIENCE_S) == 3
    with pytest.raises(SystemExit, match="no"):
        pool.submit(fail).result(PATIENCE_S)
    assert pool.submit(int).result(PATIENCE_S) == 0, "the thread has survived it"


def test_it_runs_as_many_calls_at_once_as_it_has_threads_and_the_others_in_order(pool: DaemonThreadPool) -> None:
    both, may_end, order = threading.Barrier(3), threading.Event(), list[int]()

    def occupy() -> str:
        both.wait(PATIENCE_S)
        may_end.wait(PATIENCE_S)
        return threading.current_thread().name

    busy = [pool.submit(occupy) for _ in range(2)]
    both.wait(PATIENCE_S)
    waiting = [pool.submit(order.append, number) for number in range(3)]
    assert not any(future.running() or future.done() for future in waiting)
    may_end.set()
    assert {future.result(PATIENCE_S) for future in busy} == {"pool_0", "pool_1"}
    for future in waiting:
        future.result(PATIENCE_S)
    assert sorted(order) == [0, 1, 2]


def until_idle(pool: DaemonThreadPool, threads: int) -> None:
    """Return when so many threads wait for a call."""
    deadline_s = time.monotonic() + PATIENCE_S
    while pool._idle < threads:
        assert time.monotonic() < deadline_s
        os.sched_yield()


def test_a_thread_that_waits_takes_the_next_call_instead_of_a_new_thread() -> None:
    with DaemonThreadPool(8, "pool") as pool:
        pool.submit(int).result(PATIENCE_S)
        until_idle(pool, 1)
        assert pool.submit(lambda: threading.current_thread().name).result(PATIENCE_S) == "pool_0"


@pytest.mark.parametrize("are_started", [False, True])
def test_a_long_call_holds_up_no_other_while_threads_are_free(are_started: bool) -> None:
    with DaemonThreadPool(3, "pool") as pool:
        all_run = threading.Barrier(3)
        for _ in range(1 + are_started):
            with pool._lock:  # all are there before the first thread arrives
                futures = [pool.submit(all_run.wait, PATIENCE_S) for _ in range(3)]
            assert sorted(future.result(PATIENCE_S) for future in futures) == [0, 1, 2]
            until_idle(pool, 3)


def test_one_thread_is_called_at_a_time() -> None:
    with DaemonThreadPool(3, "pool") as pool:
        all_run = threading.Barrier(3)
        for future in [pool.submit(all_run.wait, PATIENCE_S) for _ in range(3)]:
            future.result(PATIENCE_S)
        until_idle(pool, 3)
        with pool._lock:  # no thread can arrive
            futures = [pool.submit(int) for _ in range(10)]
            assert pool._idle == 2
        assert [future.result(PATIENCE_S) for future in futures] == [0] * 10


def test_where_no_more_threads_can_be_started_those_that_run_make_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    with DaemonThreadPool(2, "pool") as pool:
        may_end = threading.Event()
        first = pool.submit(may_end.wait, PATIENCE_S)
        monkeypatch.setattr(threading.Thread, "start", _refuse)
        second = pool.submit(int)
        with DaemonThreadPool(2, "empty") as empty, pytest.raises(RuntimeError, match="no more threads"):
            empty.submit(int)
        may_end.set()
        assert (first.result(PATIENCE_S), second.result(PATIENCE_S)) == (True, 0)


def _refuse(_: threading.Thread) -> None:
    raise RuntimeError("no more threads")


def test_calls_without_a_future_are_made_as_well(pool: DaemonThreadPool) -> None:
    made = threading.Event()
    pool.start([made.set])
    assert made.wait(PATIENCE_S)


def test_it_holds_no_process_up(pool: DaemonThreadPool) -> None:
    assert pool.submit(lambda: threading.current_thread().daemon).result(PATIENCE_S)


def test_after_its_shutdown_it_takes_nothing_more_and_has_ended_what_it_had() -> None:
    pool = DaemonThreadPool(1, "pool")
    futures = [pool.submit(int) for _ in range(3)]
    pool.shutdown()
    assert [future.done() for future in futures] == [True] * 3
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(int)


def test_a_shutdown_may_cancel_what_has_not_begun() -> None:
    pool = DaemonThreadPool(1, "pool")
    begun, may_end = threading.Event(), threading.Event()

    def occupy() -> bool:
        begun.set()
        return may_end.wait(PATIENCE_S)

    running = pool.submit(occupy)
    assert begun.wait(PATIENCE_S)
    waiting = pool.submit(int)
    pool.shutdown(wait=False, cancel_futures=True)
    assert waiting.cancelled()
    may_end.set()
    assert running.result(PATIENCE_S) is True


def test_an_event_loop_takes_it_as_its_default() -> None:
    async def name() -> str:
        asyncio.get_running_loop().set_default_executor(DaemonThreadPool(1, "mine"))
        return await asyncio.to_thread(lambda: threading.current_thread().name)

    assert asyncio.run(name()) == "mine_0"
