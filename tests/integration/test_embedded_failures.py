"""An embedded broker whose storage fails: a server ends visibly, a script opens the file again."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qtasks import Embedded, QTasks
from qtasks.errors import StoreError
from qtasks.tasks.task import Task
from tests.support.failing_disk import FailingDisk, failing
from tests.support.process import Process, ask
from tests.support.servers import free_port

PATIENCE_S = 10.0
MAIN = """
import time

import uvicorn
from fastapi import FastAPI

from qtasks import Embedded, QTasks

tasks = QTasks(EMBEDDED)
app = FastAPI()
app.include_router(tasks.router, prefix="/jobs")

@tasks.task
def speak(word: str) -> None:
    print(f"the word is {word}", flush=True)

@tasks.task
def hang() -> None:
    print("hanging", flush=True)
    time.sleep(3600)

@app.post("/later")
async def later(word: str) -> None:
    await speak.using(delay="1s").adelay(word)

@app.post("/hang")
async def start_hanging() -> None:
    await hang.adelay()

if __name__ == "__main__":
    uvicorn.run(app, port=PORT)
"""


@pytest.fixture
def disk() -> Iterator[FailingDisk]:
    """The disk of all databases of the test."""
    with failing(default=True) as vfs:
        yield vfs


def note(text: str) -> str:
    return text


@contextlib.contextmanager
def noting(home: Embedded) -> Iterator[tuple[QTasks, Task[[str], str]]]:
    """An application with this home, and a task of it."""
    with QTasks(embedded=home) as tasks:
        yield tasks, tasks.task(note)


def critical(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]


def test_a_script_goes_on_once_its_disk_is_sound_again_and_nothing_accepted_is_lost(
    tmp_path: Path, disk: FailingDisk, caplog: pytest.LogCaptureFixture
) -> None:
    home = Embedded(tmp_path / "tasks.db")
    with noting(home) as (_, task):
        accepted = task.using(delay="1s").delay("before")
        disk.fail("sync", file="-wal")
        for _ in range(2):
            with pytest.raises(StoreError, match="the disk is gone"):
                task.delay("meanwhile")
        assert "the disk is gone" in (home.failure or "")
        disk.heal()
        assert task.delay("after").get(timeout=PATIENCE_S) == "after"
        assert home.failure is None
        assert accepted.get(timeout=PATIENCE_S) == "before"
        [message] = critical(caplog)
        assert "the storage failed" in message


def test_a_script_is_told_each_time_that_its_database_was_removed_and_begins_no_new_one(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    home = Embedded(path)
    with noting(home) as (_, task):
        accepted = task.using(delay="1s").delay("before")
        away = path.rename(tmp_path / "away.db")
        for _ in range(3):
            with pytest.raises(StoreError, match=r"tasks\.db was removed or renamed"):
                task.delay("meanwhile")
        assert not path.exists()
        away.rename(path)
        assert task.delay("after").get(timeout=PATIENCE_S) == "after"
        assert accepted.get(timeout=PATIENCE_S) == "before"


def test_a_function_is_called_once_and_every_call_of_a_task_raises_the_same_error(tmp_path: Path) -> None:
    told: list[StoreError] = []
    called = threading.Event()

    def on_failure(error: StoreError) -> None:
        told.append(error)
        called.set()

    home = Embedded(tmp_path / "tasks.db", on_failure=on_failure)
    with noting(home) as (tasks, task):
        task.delay("before")
        (tmp_path / "tasks.db.lock").unlink()
        assert called.wait(PATIENCE_S)
        for _ in range(2):
            with pytest.raises(StoreError, match=r"tasks\.db\.lock was removed"):
                task.delay("meanwhile")
        assert len(told) == 1
        tasks.close()
        assert task.delay("after").get(timeout=PATIENCE_S) == "after"


def application(folder: Path, embedded: str, port: int) -> None:
    (folder / "main.py").write_text(MAIN.replace("EMBEDDED", embedded).replace("PORT", str(port)))


class Python(Process):
    program = (sys.executable,)


def test_an_application_under_uvicorn_ends_with_the_sentence(tmp_path: Path) -> None:
    application(tmp_path, 'embedded=Embedded("jobs.db")', port := free_port())
    with Python(tmp_path, "main.py") as server:
        server.wait_for("Uvicorn running")
        assert ask("POST", f"http://127.0.0.1:{port}/later?word=abc").status == 200
        (tmp_path / "jobs.db-wal").unlink()
        assert server.finish() == -signal.SIGTERM
        assert "jobs.db-wal was removed or renamed" in server.output
    with Python(tmp_path, "main.py") as server:
        server.wait_for("the word is abc")


@pytest.mark.parametrize(
    ("embedded", "option"),
    [("", ("--embedded", "jobs.db")), pytest.param('embedded=Embedded("jobs.db")', (), marks=pytest.mark.release)],
)
def test_qtasks_run_ends_with_the_sentence_and_a_status_though_a_task_hangs(
    tmp_path: Path, embedded: str, option: tuple[str, ...]
) -> None:
    application(tmp_path, embedded, 0)
    keys = {"QSTASH_CURRENT_SIGNING_KEY": "sig_" + "c" * 28, "QSTASH_NEXT_SIGNING_KEY": "sig_" + "n" * 28}
    variables = {} if option else {**keys, "QTASKS_BASE_URL": "http://127.0.0.1:1"}
    arguments = ("run", "main:app", "--port", str(port := free_port()), "--drain", "0.2", *option)
    with Process(tmp_path, *arguments, **variables) as server:
        server.wait_for("qtasks run main:app")
        assert ask("POST", f"http://127.0.0.1:{port}/hang").status == 200
        server.wait_for("hanging")
        (tmp_path / "jobs.db-wal").unlink()
        assert server.finish() == 2
        assert "jobs.db-wal was removed or renamed" in server.output
