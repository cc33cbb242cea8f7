"""Everything the README shows is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import page_code
from tests.support.dev import Dev

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONSOLE = [text.strip() for text in page_code.blocks(README, "console")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    page_code.write_files(README, tmp_path)
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
    command = next(line for line in CONSOLE if line.startswith("qtasks dev"))
    with Dev(folder, *command.split()[2:]) as dev:
        dev.started()
        assert dev.run(page_code.script(README)).splitlines() == page_code.printed(page_code.script(README))
        dev.wait_for("in 10m")


def test_the_fastapi_application(folder: Path) -> None:
    with Dev(folder, "main.py") as dev:
        assert "1 task, 1 schedule" in dev.wait_for("qtasks ")
        root = dev.started()["base_url"].removesuffix("/qtasks")
        request = f"urllib.request.Request('{root}/reports/monday', method='POST')"
        assert "call_" in dev.run(f"import urllib.request; print(urllib.request.urlopen({request}).read().decode())")
        dev.wait_for("'the report of monday'")


def test_the_tests(folder: Path) -> None:
    done = page_code.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_tasks.py", folder=folder, timeout_s=60)
    assert "1 passed" in done.stdout, done.stdout


def test_every_python_block_is_run_by_one_of_these_tests() -> None:
    assert set(page_code.files(README)) == {"tasks.py", "main.py", "test_tasks.py"}
    assert page_code.script(README).startswith("from tasks import charge")
