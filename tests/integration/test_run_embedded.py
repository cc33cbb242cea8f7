"""`qtasks run --embedded`: application, dispatcher and broker in one process, with nothing else configured."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.process import Process, ask, qtasks
from tests.support.servers import free_port

MAIN = """
from fastapi import FastAPI

from qtasks import QTasks

tasks = QTasks()
app = FastAPI()
app.include_router(tasks.router, prefix="/jobs")


@tasks.task
def add(a: int, b: int) -> int:
    return a + b


@tasks.task
def speak(word: str) -> None:
    print(f"the word is {word}", flush=True)


@app.post("/add/{a}/{b}")
async def added(a: int, b: int) -> int:
    return await (await add.adelay(a, b))


@app.post("/later")
async def later(word: str) -> None:
    await speak.using(delay="1s").adelay(word)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "main.py").write_text(MAIN)
    return tmp_path


def run(folder: Path, port: int) -> Process:
    running = Process(folder, "run", "main:app", "--port", str(port), "--embedded", "jobs.db")
    assert running.wait_for("qtasks run main:app").endswith("reached by the embedded broker, jobs.db")
    return running


def test_a_call_comes_back_with_nothing_configured(folder: Path) -> None:
    with run(folder, port := free_port()) as running:
        assert ask("POST", f"http://127.0.0.1:{port}/add/2/3").json == 5
        assert running.stop(signal.SIGTERM) == 0


def test_what_was_accepted_before_a_kill_runs_after_it(folder: Path) -> None:
    with run(folder, port := free_port()) as running:
        assert ask("POST", f"http://127.0.0.1:{port}/later?word=abc").status == 200
        running.process.kill()
        running.finish()
    assert "the word is" not in running.output
    with run(folder, port) as running:
        if "the word is abc" not in running.lines:  # on a slow machine the call runs before the start is reported
            running.wait_for("the word is abc")


def test_a_second_process_on_the_file_is_told_of_the_first(folder: Path) -> None:
    with run(folder, free_port()) as running:
        second = qtasks("run", "main:app", "--port", str(free_port()), "--embedded", "jobs.db", folder=folder)
        assert second.status == 2
        assert f"jobs.db is in use by process {running.process.pid}" in second.err


def test_several_processes_cannot_share_a_broker_inside(folder: Path) -> None:
    refused = qtasks("run", "main:app", "--embedded", "jobs.db", "--workers", "2", folder=folder)
    assert refused.status == 2
    assert "--embedded supports one process only" in refused.err


def test_an_application_with_a_broker_inside_is_told_of_it(folder: Path) -> None:
    inside = MAIN.replace("QTasks()", 'QTasks(embedded=Embedded("own.db"))').replace("import QTasks", "import *")
    (folder / "main.py").write_text(inside)
    refused = qtasks("run", "main:app", "--embedded", "jobs.db", folder=folder)
    assert refused.status == 3
    assert "the tasks have an embedded broker already: Embedded('own.db')" in refused.err


def test_middleware_around_the_application_is_passed_by_tasks_too(folder: Path) -> None:
    around = """
import contextvars

TENANT = contextvars.ContextVar("tenant", default="nobody")


class Tenant:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        TENANT.set("acme")
        await self.app(scope, receive, send)


@tasks.task
async def tenant() -> str:
    return TENANT.get()


@app.post("/tenant")
async def told() -> str:
    return await (await tenant.adelay())


app = Tenant(app)
"""
    (folder / "main.py").write_text(MAIN + around)
    with run(folder, port := free_port()) as running:
        assert ask("POST", f"http://127.0.0.1:{port}/tenant").json == "acme"
        assert running.stop(signal.SIGTERM) == 0
