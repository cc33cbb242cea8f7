"""`qtasks dev`: what a developer types, sees, and has after a restart."""

from __future__ import annotations

import signal
import socket
import sqlite3
from pathlib import Path

import httpx
import pytest

from tests.support.dev import Dev
from tests.support.process import soon

TASKS = """
from qtasks import NonRetryable, task

@task
def add(a: int, b: int) -> int:
    return a + b

@task
def refuse(password: str) -> None:
    raise NonRetryable("never")

@task
def later() -> str:
    return "done"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


def test_a_script_beside_it_needs_no_configuration(folder: Path) -> None:
    with Dev(folder, "tasks.py") as dev:
        dev.started()
        assert dev.run("from tasks import add; print(add.delay(2, b=3).get(timeout=10))") == "5\n"
        dev.wait_for("2, b=3")
        line = dev.wait_for("ms  5")
        assert line.split()[2] == "add"
        assert dev.stop() == 0
        assert dev.lines[-1] == "1 done, 0 retried, 0 failed"
    assert not (folder / ".qtasks" / "dev.json").exists()


def test_the_console_knows_the_application_before_its_first_message(folder: Path) -> None:
    with Dev(folder, "tasks.py") as dev:
        url = dev.started()["broker"]
        overview = httpx.get(f"{url}/console/api/overview").json()
        assert overview["checklist"] == {"broker": True, "dispatcher": True, "message": False, "run": False}
        [application] = httpx.get(f"{url}/console/api/tasks").json()["dispatchers"]
        assert application["error"] is None


def test_deliveries_stay_here_whatever_address_the_environment_names(folder: Path) -> None:
    with Dev(folder, "tasks.py", QTASKS_BASE_URL="https://app.example.com/qtasks") as dev:
        assert dev.started()["base_url"].startswith("http://127.0.0.1:")
        assert dev.run("from tasks import add; print(add.delay(2, 3).get(timeout=10))") == "5\n"


def test_the_application_is_found_without_being_named(folder: Path) -> None:
    with Dev(folder) as dev:
        assert "found tasks.py" in dev.wait_for("app tasks")
        dev.started()


def test_a_failure_shows_the_users_words_and_frames_and_no_secret(folder: Path) -> None:
    with Dev(folder, "tasks") as dev:
        dev.started()
        dev.run("from tasks import refuse; refuse.delay(password='hunter2')")
        assert "NonRetryable: never" in dev.wait_for("kept in the dead letters")
        dev.stop()
        output = "\n".join(dev.lines)
    assert "hunter2" not in output
    assert "site-packages" not in output


def test_what_waits_is_kept_across_restarts(folder: Path) -> None:
    with Dev(folder, "tasks.py", "--app-port", "0") as dev:
        port = dev.started()["base_url"].split(":")[2].split("/")[0]
        dev.run("from tasks import later; later.using(delay='1500ms').delay()")
        assert dev.stop(signal.SIGTERM) == 0
    with Dev(folder, "tasks.py", "--app-port", port) as dev:
        assert "1 waiting" in dev.wait_for("found ")
        assert "later" in dev.wait_for("'done'")


def test_with_memory_nothing_is_kept(folder: Path) -> None:
    with Dev(folder, "tasks.py", "--memory") as dev:
        dev.wait_for("in memory")
        dev.run("from tasks import add; print(add.delay(1, 1).get(timeout=10))")
        dev.stop()
    assert sorted(path.name for path in (folder / ".qtasks").iterdir()) == [".gitignore"]


def test_the_database_is_for_its_owner_alone(folder: Path) -> None:
    with Dev(folder, "tasks.py", "--db", "own.db") as dev:
        dev.started()
        assert (folder / "own.db").stat().st_mode & 0o077 == 0
        assert (folder / ".qtasks" / "dev.json").stat().st_mode & 0o077 == 0


def test_the_application_ends_with_its_supervisor(folder: Path) -> None:
    with Dev(folder, "tasks.py") as dev:
        port = int(dev.started()["base_url"].split(":")[2].split("/")[0])
        dev.process.kill()
        dev.finish()  # the child holds the other end of the output, which ends with it
        # A process that ends closes its output first and its socket a moment later.
        soon(lambda: is_free(port), "the port is free again")


def is_free(port: int) -> bool:
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def test_a_fastapi_application_is_served_as_it_is(folder: Path) -> None:
    (folder / "main.py").write_text(
        "from fastapi import FastAPI\n"
        "from qtasks import QTasks\n"
        "app = FastAPI()\n"
        "tasks = QTasks()\n"
        "app.include_router(tasks.router, prefix='/jobs')\n"
        "@tasks.task\n"
        "def double(n: int) -> int:\n"
        "    return 2 * n\n"
        "@app.get('/double/{n}')\n"
        "async def start(n: int) -> int:\n"
        "    return await (await double.adelay(n)).aget(timeout=10)\n"
    )
    with Dev(folder, "main:app") as dev:
        base_url = dev.started()["base_url"]
        assert base_url.endswith("/jobs")
        root = base_url.removesuffix("/jobs")
        script = f"import urllib.request; print(urllib.request.urlopen('{root}/double/21').read().decode())"
        assert dev.run(script) == "42\n"


def refused(folder: Path, *arguments: str) -> str:
    with Dev(folder, *arguments) as dev:
        assert dev.finish() in (2, 3)
        output = "\n".join(dev.lines)
    assert len(dev.lines) <= 6, output
    assert "Traceback" not in output
    return output


def test_a_taken_port_is_a_sentence_and_exit_code_2(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"port {port} on 127.0.0.1 is in use" in refused(folder, "tasks.py", "--port", port)
        assert f"port {port} on 127.0.0.1 is in use" in refused(folder, "tasks.py", "--app-port", port)


def test_a_misspelt_file_is_met_with_the_nearest_name(folder: Path) -> None:
    assert "did you mean 'tasks.py'?" in refused(folder, "taks.py")
    assert "did you mean 'tasks'?" in refused(folder, "taskss")
    assert "did you mean 'add'?" in refused(folder, "tasks:ad")


def test_a_file_without_tasks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text("x = 1\n")
    assert "no tasks found in tasks" in refused(tmp_path)


def test_an_import_that_fails_is_explained_by_the_users_own_line(folder: Path) -> None:
    (folder / "tasks.py").write_text("import json\n\njson.loads('{')\n")
    output = refused(folder, "tasks.py")
    assert "JSONDecodeError" in output
    assert "tasks.py:3  json.loads('{')" in output
    (folder / "tasks.py").write_text("def broken(:\n")
    assert "tasks.py:1" in refused(folder, "tasks.py")
    (folder / "tasks.py").write_text("import no_such_module\n")
    assert "No module named 'no_such_module'" in refused(folder, "tasks.py")


def test_a_second_one_on_the_same_file_is_told_who_holds_it(folder: Path) -> None:
    with Dev(folder, "tasks.py") as dev:
        dev.started()
        assert f"in use by process {dev.process.pid}" in refused(folder, "tasks.py")


def test_a_database_from_the_future_is_left_alone(folder: Path) -> None:
    with sqlite3.connect(folder / "new.db") as db:
        db.execute("PRAGMA user_version = 999")
    db.close()
    assert "schema version 999" in refused(folder, "tasks.py", "--db", "new.db")
