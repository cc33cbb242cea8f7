"""`qtasks new`: the project runs and its tests pass, as it was made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.dev import Dev
from tests.support.process import environment, qtasks

FILES = {"tasks.py", "tests/test_tasks.py", "pyproject.toml", "README.md", ".gitignore"}


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def python(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )


def test_a_new_project_passes_its_tests_and_runs_its_first_task(tmp_path: Path) -> None:
    made = qtasks("new", "hello", folder=tmp_path)
    assert made.status == 0, made.err
    assert made.out == f"created hello: {', '.join(sorted(FILES, key=made.out.index))}\n"
    assert made.err == "next: cd hello && qtasks dev\n"
    project = tmp_path / "hello"
    assert files_in(project) == FILES

    for check in (("ruff", "check", "--isolated", "."), ("ruff", "format", "--isolated", "--check", ".")):
        checked = python(*check, "--no-cache", folder=project)
        assert checked.returncode == 0, checked.stdout
    # pytest-asyncio, which these tests have installed, warns about a setting of its own.
    tested = python("pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", folder=project)
    assert tested.returncode == 0, tested.stdout
    assert "3 passed" in tested.stdout

    with Dev(project, "--memory") as dev:
        assert "named in pyproject.toml" in dev.wait_for("app tasks:tasks")
        dev.started()
        sent = qtasks("send", "greet", "Ada", "--wait", folder=project)
        assert (sent.status, sent.out) == (0, '"Hello, Ada!"\n')
        dev.wait_for("'Hello, Ada!'")
        assert dev.stop() == 0


def test_the_folder_may_be_a_path_and_the_answer_json(tmp_path: Path) -> None:
    made = qtasks("new", f"{tmp_path}/shop.v2", "--json", folder=tmp_path)
    assert made.status == 0, made.err
    facts = json.loads(made.out)
    assert (facts["name"], facts["path"], set(facts["files"])) == ("shop.v2", str(tmp_path / "shop.v2"), FILES)
    assert 'name = "shop.v2"' in (tmp_path / "shop.v2" / "pyproject.toml").read_text()


def test_an_existing_folder_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "hello").mkdir()
    (tmp_path / "hello" / "tasks.py").write_text("mine")
    made = qtasks("new", "hello", folder=tmp_path)
    assert (made.status, made.out) == (2, "")
    assert "hello exists already, and nothing in it was changed" in made.err
    assert files_in(tmp_path) == {"hello/tasks.py"}
    assert (tmp_path / "hello" / "tasks.py").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("My Shop!", "qtasks new my-shop"),
        ("x" * 70, f"qtasks new {'x' * 64}"),
        ("qtasks", "qtasks new my-qtasks"),
        ("Qstash_Tasks", "qtasks new my-qstash_tasks"),
        ("..", "qtasks new my-tasks"),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_the_nearest_one(tmp_path: Path, name: str, nearest: str) -> None:
    made = qtasks("new", name, folder=tmp_path)
    assert (made.status, made.out) == (2, "")
    assert made.err.splitlines()[-1] == f"  fix         {nearest}"
    assert files_in(tmp_path) == set()


def test_a_path_without_its_folder_is_a_sentence(tmp_path: Path) -> None:
    made = qtasks("new", "none/hello", folder=tmp_path)
    assert (made.status, made.out) == (2, "")
    assert "there is no folder none" in made.err
