"""The other versions of Python that are supported, where this machine has them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLASSIFIER = "Programming Language :: Python :: 3."
PACKAGES = ("anyio", "httpx2", "hypothesis", "pytest", "pytest-asyncio")
"""What the unit tests of the tasks need besides the package."""
CORE = (
    "tests/unit/tasks/test_arguments.py",
    "tests/unit/tasks/test_cancel.py",
    "tests/unit/tasks/test_task.py",
    "tests/unit/testing/test_environment.py",
)
"""A part of the suite that meets the whole of Python that we use: threads, event loops, annotations, SQLite."""


def supported() -> list[int]:
    """The minor versions of Python 3 in the classifiers of the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [int(text.removeprefix(CLASSIFIER)) for text in project["classifiers"] if text.startswith(CLASSIFIER)]


def found() -> dict[int, str]:
    """The interpreters of other supported versions, on the path or of pyenv, by their minor version."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    here = sys.version_info.minor
    interpreters: dict[int, str] = {}
    for minor in supported():
        places = [shutil.which(f"python3.{minor}"), *map(str, sorted(pyenv.glob(f"3.{minor}.*/bin/python")))]
        answers = (place for place in places if place is not None and works(place, minor))
        if minor != here and (place := next(answers, None)) is not None:
            interpreters[minor] = place
    return interpreters


def works(interpreter: str, minor: int) -> bool:
    asked = subprocess.run([interpreter, "--version"], capture_output=True, text=True, timeout=30)
    return asked.returncode == 0 and re.search(rf"\b3\.{minor}\.", asked.stdout) is not None


def run_suite(interpreter: str, folder: Path, *tests: str, packages: tuple[str, ...]) -> str:
    """Run tests under another Python, in an environment of its own. Returns the output."""
    python = folder / "venv/bin/python"
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    commands = (
        [interpreter, "-m", "venv", str(folder / "venv")],
        [str(python), *install, *packages],
        [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    for command in commands:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_every_supported_version_has_a_classifier() -> None:
    assert supported() == [11, 12, 13, 14]
    assert sys.version_info.minor in supported()


def test_the_newest_python_here_runs_the_core_of_the_suite(tmp_path: Path) -> None:
    if not (interpreters := found()):
        pytest.skip("there is no other supported Python here")
    packages = (f"{ROOT}[broker,pickle,postgres,redis]", *PACKAGES)
    output = run_suite(interpreters[max(interpreters)], tmp_path, *CORE, packages=packages)
    assert re.search(r"\d{3} passed", output)


@pytest.mark.release
@pytest.mark.parametrize("minor", [12, 13, 14])
def test_every_python_here_runs_all_unit_tests(tmp_path: Path, minor: int) -> None:
    if (interpreter := found().get(minor)) is None:
        pytest.skip(f"there is no Python 3.{minor} here")
    assert re.search(r"\d{4} passed", run_suite(interpreter, tmp_path, "tests/unit", packages=(f"{ROOT}[dev]",)))
