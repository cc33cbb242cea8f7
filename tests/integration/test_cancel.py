"""Cancel across processes, and in the embedded home: a call that runs learns that it is not needed any more."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qtasks import QTasks, TaskContext, injected
from qtasks.embedded import Embedded
from qtasks.errors import TaskCancelled
from qtasks.tasks.results import redis
from tests.support.results import place_for_results
from tests.unit.tasks.manual_broker import ManualBroker

ROOT = Path(__file__).parents[2]

RUNS_BOTH = """
import asyncio, sys, threading
from qtasks import TaskContext, injected
from qtasks.tasks.results import redis
from qtasks.tasks.run import lease
from tests.unit.tasks.manual_broker import ManualBroker

results, redis.PREFIX = sys.argv[1:]
lease.RENEW_S = 0.02
broker = ManualBroker(results=results)

@broker.tasks.task
async def coroutine(*, ctx: TaskContext = injected):
    ctx.progress(1, 1)
    try:
        await asyncio.Event().wait()
    finally:
        print("closed", flush=True)

@broker.tasks.task
def thread(*, ctx: TaskContext = injected):
    ctx.progress(1, 1)
    pause = threading.Event()
    while not ctx.should_stop:
        pause.wait(0.005)

async def main():
    handles = [coroutine.delay(), thread.delay()]
    deliveries = [asyncio.create_task(broker.deliver(message)) for message in broker.messages]
    while [await handle.astatus() for handle in handles] != ["running", "running"]:
        await asyncio.sleep(0.005)
    print(*(handle.id for handle in handles), flush=True)
    for delivery in deliveries:
        print((await delivery).body.decode(), flush=True)

asyncio.run(main())
broker.close()
"""


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def results(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with place_for_results(request.param, tmp_path, monkeypatch) as url:
        yield url


def test_a_cancel_from_another_process_reaches_what_runs(results: str) -> None:
    broker = ManualBroker(results=results)

    @broker.tasks.task
    async def coroutine() -> None: ...

    @broker.tasks.task
    def thread() -> None: ...

    command = [sys.executable, "-c", RUNS_BOTH, results, redis.PREFIX]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            coroutine_id, thread_id = process.stdout.readline().split()
            stored = [coroutine.result(coroutine_id), thread.result(thread_id)]
            assert [handle.cancel() for handle in stored] == [True, True]
            for handle in stored:
                with pytest.raises(TaskCancelled, match="by its caller"):
                    handle.get(timeout=20)
            cancelled = '{"cancelled":"cancelled by its caller","code":"QT411"}'
            assert process.stdout.read().splitlines() == ["closed", cancelled, cancelled]
            assert process.wait(20) == 0
        finally:
            process.kill()
            broker.close()


@pytest.mark.parametrize("path", [":memory:", "tasks.db"])
def test_a_cancel_in_the_embedded_home_needs_no_renewal(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qtasks.tasks.run.lease.RENEW_S", 3600.0)
    begun, threads = threading.Event(), threading.Event()
    tasks = QTasks(embedded=Embedded(path if path == ":memory:" else tmp_path / path))

    @tasks.task
    async def coroutine() -> None:
        begun.set()
        await asyncio.Event().wait()

    @tasks.task
    def thread(*, ctx: TaskContext = injected) -> None:
        threads.set()
        pause = threading.Event()
        while not ctx.is_cancelled:
            pause.wait(0.005)

    with tasks:
        handles = [coroutine.delay(), thread.delay()]
        assert begun.wait(10)
        assert threads.wait(10)
        for handle in handles:
            assert tasks.tasks[handle.task].result(handle.id).cancel() is True
            with pytest.raises(TaskCancelled):
                handle.get(timeout=20)
        waiting = thread.using(delay="1h").delay()
        assert thread.result(waiting.id).cancel() is True
        assert waiting.status == "cancelled"
