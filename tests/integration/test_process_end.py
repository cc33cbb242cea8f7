"""The embedded home in a plain script: calls in its last lines, the end of the process, and the next start."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.process import PATIENCE_S, environment

HEAD = """
import asyncio, queue, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from qtasks import Embedded, QTasks, TaskContext, injected

PATH, START = sys.argv[1], int(sys.argv[2])
tasks = QTasks(embedded=Embedded(PATH, drain_s=float(sys.argv[3])))
begun, ended = threading.Event(), queue.SimpleQueue()

def mark(text: object) -> None:
    with open("marks", "a") as marks:
        marks.write(f"{text}\\n")
    ended.put(text)

def under_way(task) -> None:
    task.delay()
    assert begun.wait(10)
    begun.clear()

@tasks.task(retries=0)
def add(a: int, b: int) -> int:
    mark(a)
    return a + b

@tasks.on_failure
def failed(event: object) -> None:
    mark("failed")

@tasks.task(retries=0)
def thread(ctx: TaskContext = injected) -> None:
    begun.set()
    if START == 1:
        time.sleep(3600)
    mark(f"thread {ctx.attempt}")

@tasks.task(retries=0)
async def coroutine(ctx: TaskContext = injected) -> None:
    begun.set()
    if START == 1:
        await asyncio.Event().wait()
    mark(f"coroutine {ctx.attempt}")

@tasks.task(retries=0)
async def deaf(ctx: TaskContext = injected) -> None:
    begun.set()
    if START == 1:
        time.sleep(3600)
    mark(f"deaf {ctx.attempt}")

@tasks.task(retries=0)
def pool(ctx: TaskContext = injected) -> None:
    begun.set()
    if START == 1:
        threading.main_thread().join()
    with ThreadPoolExecutor() as executor:
        executor.submit(int)
    mark(f"pool {ctx.attempt}")

@tasks.task
async def to_thread(number: int) -> int:
    return await asyncio.to_thread(lambda: number)
"""


class Scripts:
    """Starts of a script in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.starts = 0

    def run(self, body: str, *, path: str = "tasks.db", drain_s: float = 10) -> float:
        """Run a script to its end, which must be silent; the seconds that it took."""
        self.starts += 1
        (self.folder / "script.py").write_text(HEAD + body)
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "script.py", path, str(self.starts), str(drain_s)],
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        self.errors = done.stderr
        return time.monotonic() - began

    @property
    def marks(self) -> list[str]:
        """What the tasks have written, sorted."""
        file = self.folder / "marks"
        return sorted(file.read_text().splitlines()) if file.exists() else []


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    return Scripts(tmp_path)


def check_starts(scripts: Scripts, count: int) -> None:
    for number in range(count):
        scripts.run(f"add.delay({number}, 2)")
        assert scripts.errors == ""
    assert scripts.marks == sorted(map(str, range(count)))


def test_a_call_in_the_last_line_runs_before_the_process_ends(scripts: Scripts) -> None:
    check_starts(scripts, 2)


@pytest.mark.release
def test_a_call_in_the_last_line_runs_at_each_of_75_starts(scripts: Scripts) -> None:
    check_starts(scripts, 75)


def test_many_calls_before_the_end_run_and_do_not_hold_it_up(scripts: Scripts) -> None:
    assert scripts.run("for number in range(20): add.delay(number, 2)", drain_s=3600) < PATIENCE_S
    assert scripts.marks == sorted(map(str, range(20)))


def test_a_close_right_after_a_call_lets_it_end(scripts: Scripts) -> None:
    scripts.run("for number in range(20): add.delay(number, 2)\ntasks.close()", path=":memory:")
    assert scripts.errors == "", "the delivery finds the dispatcher with the keys of its broker"
    assert scripts.marks == sorted(map(str, range(20)))


def test_a_process_ends_within_its_drain_time_and_the_next_start_makes_the_same_attempts(scripts: Scripts) -> None:
    took_s = scripts.run("for task in (thread, coroutine, pool): under_way(task)", drain_s=0.5)
    assert took_s < PATIENCE_S
    assert "pool interrupted" in scripts.errors, "Python refuses calls in pools of its own, which is no failure"
    assert scripts.marks == [], "nothing has ended, and no hook was called"
    scripts.run("add.delay(0, 0)\nfor _ in range(4): ended.get(timeout=10)")
    assert scripts.marks == ["0", "coroutine 1", "pool 1", "thread 1"]


@pytest.mark.release
def test_a_task_that_blocks_its_event_loop_does_not_hold_up_the_end(scripts: Scripts) -> None:
    assert scripts.run("under_way(deaf)", drain_s=0.1) < PATIENCE_S
    scripts.run("add.delay(0, 0)\nfor _ in range(2): ended.get(timeout=10)")
    assert scripts.marks == ["0", "deaf 1"]


def test_a_process_goes_on_to_run_calls_while_a_thread_of_its_own_needs_them(scripts: Scripts) -> None:
    scripts.run(
        """
def work() -> None:
    threading.main_thread().join()
    for number in range(3):
        mark(to_thread.delay(number).get(timeout=10))

threading.Thread(target=work).start()
"""
    )
    assert scripts.marks == ["0", "1", "2"]
