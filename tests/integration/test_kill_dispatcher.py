"""`kill -9` of a dispatcher with calls in flight: they are done as soon as it is back, and no attempt is spent."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.support.process import environment, soon
from tests.support.servers import BrokerServer, Dispatcher

CALLS = 400
WITHIN_S = 8.0
"""On an idle machine it takes less than two seconds. A retry that was spent would take twelve."""

TASKS = f"""
import asyncio
import os
from qtasks import QTasks, TaskContext, injected

tasks = QTasks()

@tasks.task
async def work(number: int, *, ctx: TaskContext = injected) -> None:
    name = "done" if os.path.exists("back") else "started"
    with open(name, "a") as file:
        file.write(f"{{number}} {{ctx.attempt}}\\n")
    if name == "started":
        await asyncio.sleep(600)

if __name__ == "__main__":
    for number in range({CALLS}):
        work.delay(number)
"""


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def test_every_call_that_a_kill_cut_is_done_again_at_once_with_no_attempt_spent(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    limits = ("--in-flight", str(3 * CALLS), "--per-host", str(CALLS))
    with BrokerServer(tmp_path, "--db", "broker.db", *limits).started() as broker:
        with Dispatcher(tmp_path, broker=broker, QTASKS_RESULTS="").started() as dispatcher:
            variables = environment(**dispatcher.variables)
            subprocess.run([sys.executable, "tasks.py"], cwd=tmp_path, env=variables, check=True)
            soon(lambda: len(lines(tmp_path / "started")) == CALLS, "every call is in flight")
            dispatcher.process.kill()
            dispatcher.process.wait()
        (tmp_path / "back").touch()
        with Dispatcher(tmp_path, broker=broker, port=dispatcher.port, QTASKS_RESULTS="").started():
            soon(lambda: len(set(lines(tmp_path / "done"))) >= CALLS, "every call is done", WITHIN_S)
    assert Counter(line.split()[1] for line in lines(tmp_path / "done")) == {"1": CALLS}
