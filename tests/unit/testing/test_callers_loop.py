"""The event loop of brokers in virtual time: it runs where a caller waits for it, on one thread at a time."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from qtasks.errors import BrokerUnreachable
from qtasks.testing.brokers.callers_loop import CallersLoop

PATIENCE_S = 10.0


@pytest.fixture
def loop() -> Iterator[CallersLoop]:
    made = CallersLoop("pool")
    yield made
    made.stop()


@pytest.fixture
def others() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(thread_name_prefix="other") as pool:
        yield pool


async def here() -> str:
    return threading.current_thread().name.partition("_")[0]


async def opened(gate: asyncio.Event) -> str:
    await gate.wait()
    return await here()


def test_work_runs_on_the_thread_of_its_caller(loop: CallersLoop, others: ThreadPoolExecutor) -> None:
    assert loop.call(here()) == "MainThread"
    assert others.submit(lambda: loop.call(here())).result(PATIENCE_S) == "other"
    assert loop.call(here()) == "MainThread"


def test_work_that_raises_leaves_the_loop_free(loop: CallersLoop) -> None:
    async def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.call(fail())
    assert loop.call(here()) == "MainThread"


def test_work_of_a_second_caller_joins_that_of_the_first(loop: CallersLoop, others: ThreadPoolExecutor) -> None:
    async def wait_for_another() -> str:
        return await asyncio.wrap_future(others.submit(lambda: loop.call(here())))

    assert loop.call(wait_for_another()) == "MainThread"


def test_work_goes_on_when_the_caller_who_ran_the_loop_has_its_result(
    loop: CallersLoop, others: ThreadPoolExecutor
) -> None:
    joined, may_end = asyncio.Event(), Future[None]()
    second: list[Future[str]] = []

    async def join() -> str:
        joined.set()
        await asyncio.wrap_future(may_end)
        return await here()

    async def first() -> None:
        second.append(others.submit(lambda: loop.call(join())))
        await joined.wait()

    loop.call(first())
    may_end.set_result(None)
    assert second[0].result(PATIENCE_S) == "pool"


def test_a_caller_on_another_event_loop_waits_without_blocking_it(loop: CallersLoop) -> None:
    async def test() -> tuple[str, str, str]:
        gate = asyncio.Event()

        async def open_gate() -> None:
            gate.set()

        waiting = asyncio.wrap_future(loop.submit(opened(gate)))
        await asyncio.wrap_future(loop.submit(open_gate()))
        blocking = loop.call(here())
        return await waiting, await asyncio.wrap_future(loop.submit(here())), blocking

    assert asyncio.run(test()) == ("pool",) * 3


def test_what_has_not_ended_is_cancelled_at_the_end() -> None:
    loop, tasks = CallersLoop("pool"), list[asyncio.Task[bool]]()

    async def start() -> None:
        tasks.append(asyncio.create_task(asyncio.Event().wait()))

    loop.call(start())
    assert not tasks[0].done()
    loop.stop()
    assert tasks[0].cancelled()


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_is_told_where_the_broker_runs(loop: CallersLoop) -> None:
    child = os.fork()
    if child == 0:
        gc.disable()
        status = 1
        try:
            loop.call(here())
        except BrokerUnreachable as error:
            status = 0 if str(os.getppid()) in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
