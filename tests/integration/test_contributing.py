"""What a contributor is told to type exists and does what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
TOOLS = Path(sys.executable).parent


def just(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TOOLS / "just", "--justfile", ROOT / ".justfile", *arguments], capture_output=True, text=True, check=True
    )


def test_the_page_names_each_habit_once() -> None:
    named = re.findall(r"^\| `just (\w+)[^`]*`", PAGE, flags=re.MULTILINE)
    assert sorted(named) == sorted(just("--summary").stdout.split())


@pytest.mark.parametrize("habit", just("--summary").stdout.split())
def test_a_habit_runs_programs_that_the_environment_has(habit: str) -> None:
    commands = just("--dry-run", habit, *(["store"] if habit == "room" else [])).stderr.splitlines()
    words = (command.split() for command in commands)
    programs = {next(word for word in line if "=" not in word) for line in words}  # behind variables
    for program in programs - {"python3"}:
        path = Path(program)
        assert (TOOLS / path.name if ".venv" in path.parts else ROOT / path).exists(), program


def test_a_room_has_tests() -> None:
    rooms = [path for name in re.findall(r"`(tests/[\w/.]+)`", PAGE) if "NAME" not in (path := name)]
    assert len(rooms) > 10
    assert [path for path in rooms if not (ROOT / path).exists()] == []


def test_files_and_folders_that_the_page_names_exist() -> None:
    named = re.findall(r"`(qtasks/[\w/]+/)`", PAGE)
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).is_dir()] == []


def test_links_of_the_pages_beside_it_lead_to_a_file() -> None:
    pages = sorted((ROOT / ".github").glob("*.md"))
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))]
    broken = [
        link for page, link in links if not link.startswith("https://") and not (page.parent / link).resolve().exists()
    ]
    assert len(links) > 4
    assert broken == []


def test_the_hooks_before_a_commit_can_be_read() -> None:
    subprocess.run(
        [TOOLS / "pre-commit", "validate-config", ROOT / ".pre-commit-config.yaml"], check=True, capture_output=True
    )


def test_every_supported_python_is_tested_on_a_push() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    supported = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    tested = re.search(r"python: \[(.*)\]", workflow)
    assert tested is not None
    assert re.findall(r'"([\d.]+)"', tested[1]) == supported
