"""A deployment during a task that takes longer than the drain, and that has no retries: it has not failed."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support.dev import Dev
from tests.support.process import Process, ask, soon
from tests.support.servers import SECRETS, BrokerServer, Dispatcher, free_port

TASKS = """
import asyncio
import time
from pathlib import Path

from fastapi import FastAPI
from qtasks import QTasks, TaskContext, injected

tasks = QTasks()
app = FastAPI()
app.include_router(tasks.router, prefix="/qtasks")


def mark(text: object) -> None:
    with open("marks", "a") as marks:
        marks.write(f"{text}\\n")


@tasks.task(retries=0)
async def coroutine(ctx: TaskContext = injected) -> str:
    mark(ctx.attempt)
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    return "done"


@tasks.task(retries=0)
def thread(ctx: TaskContext = injected) -> str:
    mark(ctx.attempt)
    while not Path("go").exists():
        time.sleep(0.01)
    return "done"


@tasks.on_failure
async def failed(event: object) -> None:
    mark("failed")
"""

ENVELOPE = json.dumps({"v": 1, "id": "call_1", "args": [], "kwargs": {}, "retries": 0}).encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


def marks(folder: Path) -> list[str]:
    file = folder / "marks"
    return file.read_text().splitlines() if file.exists() else []


class Uvicorn(Process):
    """The application under plain uvicorn, which cancels requests that run when it stops."""

    program = (sys.executable, "-m", "uvicorn")

    def __init__(self, folder: Path, *, broker: BrokerServer, port: int) -> None:
        variables = {
            **SECRETS,
            "QSTASH_URL": broker.url,
            "QTASKS_BASE_URL": f"http://127.0.0.1:{port}/qtasks",
            "QTASKS_RESULTS": f"sqlite:///{folder / 'results.db'}",
        }
        super().__init__(folder, "tasks:app", "--port", str(port), "--timeout-graceful-shutdown", "0", **variables)

    def started(self) -> Uvicorn:
        self.wait_for("Application startup complete")
        return self


Start = Callable[[Path, BrokerServer, int], Dispatcher | Uvicorn]
SERVERS: dict[str, Start] = {
    "qtasks run": lambda folder, broker, port: Dispatcher(folder, "--drain", "0.2", broker=broker, port=port),
    "qtasks run --workers 2": lambda folder, broker, port: Dispatcher(
        folder, "--drain", "0.2", "--workers", "2", broker=broker, port=port
    ),
    "uvicorn": lambda folder, broker, port: Uvicorn(folder, broker=broker, port=port),
}


@pytest.mark.parametrize(
    ("server", "task"),
    [
        ("qtasks run --workers 2", "thread"),
        ("uvicorn", "coroutine"),
        pytest.param("qtasks run", "coroutine", marks=pytest.mark.release),
        pytest.param("qtasks run", "thread", marks=pytest.mark.release),
        pytest.param("qtasks run --workers 2", "coroutine", marks=pytest.mark.release),
        pytest.param("uvicorn", "thread", marks=pytest.mark.release),
    ],
)
def test_a_call_without_retries_is_handed_back_and_run_by_the_next_process(
    folder: Path, server: str, task: str
) -> None:
    port = free_port()
    with BrokerServer(folder) as broker:
        broker.started()
        with SERVERS[server](folder, broker, port) as old:
            old.started()
            message_id = broker.publish(
                f"http://127.0.0.1:{port}/qtasks/{task}",
                ENVELOPE,
                Upstash_Retries="0",
                Qtasks_Interrupted_For="1h",
            )
            soon(lambda: marks(folder) == ["1"], "the task runs")
            old.process.send_signal(signal.SIGTERM)
            soon(lambda: len(broker.log(message_id)) > 2, "the broker has the answer")
            (folder / "go").touch()
            old.finish()
            assert "Traceback" not in old.output
        answer = broker.log(message_id)[2]
        assert (answer["state"], answer["responseStatus"]) == ("ERROR", 503), answer
        with SERVERS[server](folder, broker, port):
            soon(partial(is_delivered, broker, message_id), "it is run by the next process")
        assert broker.ask("GET", "/v2/dlq").json["messages"] == []
    assert marks(folder) == ["1", "1"], "the same attempt, and no hook"


@pytest.mark.release  # the drain of `qtasks dev` takes ten seconds
def test_a_reload_during_a_task_that_outlasts_the_drain_hands_it_to_the_new_code(folder: Path) -> None:
    with Dev(folder, "tasks.py") as dev:
        facts = dev.started()
        url = f"{facts['broker']}/v2/publish/{facts['base_url']}/coroutine"
        options = {"Upstash-Retries": "0", "Qtasks-Interrupted-For": "1h"}
        assert ask("POST", url, token=facts["token"], body=ENVELOPE, headers=options).status == 201
        soon(lambda: marks(folder) == ["1"], "the task runs")
        (folder / "tasks.py").write_text(TASKS.replace('return "done"', 'return "newly done"'))
        dev.wait_for("reloaded tasks")
        soon(lambda: marks(folder) == ["1", "1"], "the new code runs it")
        (folder / "go").touch()
        dev.wait_for("newly done")
        dev.stop()
        assert "0 failed" in dev.lines[-1]


def is_delivered(broker: BrokerServer, message_id: str) -> bool:
    return broker.states(message_id)[-1] == "DELIVERED"
