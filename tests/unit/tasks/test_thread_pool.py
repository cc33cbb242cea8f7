"""The pool for functions that block: what an event loop gets back from it, and how often it is woken for that."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from qtasks.tasks.run.thread_pool import ThreadPool

pytestmark = pytest.mark.anyio

PATIENCE_S = 20.0
SEEN: contextvars.ContextVar[int] = contextvars.ContextVar("SEEN", default=0)


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    made = ThreadPool(1)
    yield made
    made.close()


async def test_a_call_returns_or_raises_and_has_a_copy_of_the_context_variables(pool: ThreadPool) -> None:
    def count() -> int:
        SEEN.set(SEEN.get() + 1)
        return SEEN.get()

    def fail() -> None:
        raise SystemExit("no")

    SEEN.set(7)
    assert [await pool.run(count) for _ in range(2)] == [8, 8]
    with pytest.raises(SystemExit, match="no"):
        await pool.run(fail)
    assert pool.calls == 0


async def test_calls_that_end_while_the_loop_is_at_work_wake_it_once(
    pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, woken = asyncio.get_running_loop(), threading.Semaphore(0)
    wake = loop.call_soon_threadsafe

    def count_and_wake(*call: Any) -> asyncio.Handle:
        woken.release()
        return wake(*call)

    monkeypatch.setattr(loop, "call_soon_threadsafe", count_and_wake)
    for _ in range(2):
        ended, all_ended = [pool.start(int) for _ in range(20)], threading.Event()
        last = pool.start(all_ended.set)
        await asyncio.sleep(0)  # they begin at the end of this turn
        assert all_ended.wait(PATIENCE_S)
        assert (woken.acquire(blocking=False), woken.acquire(blocking=False)) == (True, False)
        assert [await each for each in (*ended, last)] == [0] * 20 + [None]
        woken.acquire(blocking=False)  # the last call may have ended after the loop had read the others


async def test_calls_of_one_turn_of_the_loop_are_handed_over_together(pool: ThreadPool) -> None:
    may_end = threading.Event()
    calls = [pool.start(lambda: may_end.wait(PATIENCE_S)) for _ in range(3)]
    assert pool.calls == 0
    await asyncio.sleep(0)
    assert pool.calls == 3
    may_end.set()
    assert await asyncio.gather(*calls) == [True] * 3


async def test_a_result_that_is_not_awaited_any_more_is_dropped(pool: ThreadPool) -> None:
    may_end = threading.Event()
    for _ in range(2):
        pool.start(lambda: may_end.wait(PATIENCE_S)).cancel()
        await asyncio.sleep(0)
    may_end.set()
    assert await pool.run(lambda: 3) == 3


async def test_a_call_for_which_no_thread_can_be_started_raises(
    pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    cancelled = pool.start(int)
    cancelled.cancel()
    with pytest.raises(RuntimeError, match="can't start new thread"):
        await pool.run(int)
    assert (cancelled.cancelled(), pool.calls) == (True, 0)


def test_a_call_may_outlive_its_loop(pool: ThreadPool) -> None:
    may_end, has_begun = threading.Event(), threading.Event()

    def long() -> None:
        has_begun.set()
        may_end.wait(PATIENCE_S)

    async def begin() -> None:
        pool.start(long)
        await asyncio.sleep(0)
        assert has_begun.wait(PATIENCE_S)

    async def another() -> int:
        may_end.set()
        return int(await pool.run(lambda: 3))

    asyncio.run(begin())
    assert asyncio.run(another()) == 3
    assert pool.calls == 0
