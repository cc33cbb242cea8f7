"""Everything the README shows is run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.dev import Dev, environment
from tests.support.process import QTASKS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
CONSOLE = [text.strip() for language, text in BLOCKS if language == "console"]


def named(name: str) -> str:
    """The Python block that begins with ``# name``."""
    [block] = [block for block in PYTHON if block.startswith(f"# {name}\n")]
    return block


def finished(
    *command: str, timeout_s: float, folder: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The output and the exit status of a command that ends by itself."""
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("tasks.py", "main.py", "jobs.py", "test_tasks.py"):
        (tmp_path / name).write_text(named(name), encoding="utf-8")
    return tmp_path


def test_the_two_commands_do_all_set_up_in_one_line_each() -> None:
    see, pass_ = CONSOLE[:2]
    assert see == (
        'python3 -m venv .venv && .venv/bin/pip install -e ".[broker]" && .venv/bin/python examples/quickstart.py'
    )
    assert pass_ == 'python3 -m venv .venv && .venv/bin/pip install -e ".[dev]" && .venv/bin/pytest'
    assert (ROOT / "examples" / "quickstart.py").is_file()


def test_the_continuous_integration_calls_the_readmes_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for step in CONSOLE[1].split(" && "):
        assert step.split()[0] in script
        assert step.split()[-1] in script


def test_tasks_and_the_script_beside_them(folder: Path) -> None:
    [script] = [block for block in PYTHON if block.startswith("from tasks import")]
    command = next(line for line in CONSOLE if line.startswith("qtasks dev"))
    with Dev(folder, *command.split()[2:]) as dev:
        dev.started()
        assert dev.run(script) == "5\n"
        dev.wait_for("in 10m")


def test_the_fastapi_application(folder: Path) -> None:
    with Dev(folder, "main.py") as dev:
        root = dev.started()["base_url"].removesuffix("/qtasks")
        request = f"urllib.request.Request('{root}/users/7/report', method='POST')"
        assert "call_" in dev.run(f"import urllib.request; print(urllib.request.urlopen({request}).read().decode())")
        dev.wait_for("'report 7, attempt 1, example'")


def test_the_broker_inside(tmp_path: Path) -> None:
    [block] = [block for block in PYTHON if block.startswith("from qtasks import Embedded")]
    program = (
        block
        + "@tasks.task\ndef add(a: int, b: int) -> int:\n    return a + b\n"
        + "print(add.delay(2, 3).get(timeout=10))\ntasks.close()\n"
    )
    done = finished(sys.executable, "-c", program, timeout_s=20, folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr
    assert (tmp_path / "tasks.db").is_file()


def test_schedules_and_flows(folder: Path) -> None:
    with Dev(folder, "jobs.py") as dev:
        assert "3 tasks, 1 schedule" in dev.wait_for("qtasks ")
        dev.started()
        assert dev.run("from jobs import order; print(order(['tea', 'milk']).get(timeout=10))") == "7\n"


def test_the_language_model(tmp_path: Path) -> None:
    done = finished(sys.executable, "-c", named("summaries.py"), timeout_s=30, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    stored, title = done.stdout.splitlines()
    assert stored.startswith("11 characters became 'This is the built-in echo")
    assert "a long text" in title


def test_the_tests(folder: Path) -> None:
    done = finished(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_tasks.py", timeout_s=60, folder=folder
    )
    assert "2 passed" in done.stdout, done.stdout


def test_the_client(folder: Path) -> None:
    [block] = [block for block in PYTHON if block.startswith("from qtasks.qstash import")]
    with Dev(folder, "tasks.py", "--memory") as dev:
        facts = dev.started()
        done = finished(
            sys.executable, "-c", block, timeout_s=20, QSTASH_URL=facts["broker"], QSTASH_TOKEN=facts["token"]
        )
    assert (done.returncode, done.stdout) == (0, "mails\n"), done.stderr


def test_the_database_is_copied_and_checked(tmp_path: Path) -> None:
    commands = [line for line in CONSOLE if line.startswith(("qtasks broker init", "qtasks broker backup"))]
    commands += [line for line in CONSOLE if line.startswith("qtasks broker check")]
    output = ""
    for line in commands:
        done = finished(QTASKS, *line.split()[1:], timeout_s=30, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        output += done.stdout
    assert len(commands) == 3
    assert "sound" in output
    assert (tmp_path / "qtasks-backup.db").is_file()


def test_every_python_block_is_run_by_one_of_these_tests() -> None:
    assert len(PYTHON) == 8
