"""What mypy and pyright see: right calls have the right types, and every wrong call is found, by both."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RIGHT, WRONG = HERE / "right.py", HERE / "wrong" / "calls.py"
GENEROUS_S = 240


def marked(path: Path) -> set[int]:
    """Lines that a checker has to report."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {number for number, line in enumerate(lines, start=1) if line.endswith("# wrong")}


def run(command: list[str]) -> str:
    ran = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=GENEROUS_S, check=False
    )
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    return ran.stdout


def by_mypy() -> dict[Path, dict[int, str]]:
    output = run([sys.executable, "-m", "mypy", "--strict", "--no-pretty", str(RIGHT), str(WRONG)])
    found: dict[Path, dict[int, str]] = {RIGHT: {}, WRONG: {}}
    for path, line, text in re.findall(r"^(.+?):(\d+): error: (.*)$", output, re.MULTILINE):
        found.setdefault((ROOT / path).resolve(), {})[int(line)] = text
    return found


def by_pyright() -> dict[Path, dict[int, str]]:
    output = run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(RIGHT), str(WRONG)]
    )
    found: dict[Path, dict[int, str]] = {RIGHT: {}, WRONG: {}}
    for entry in json.loads(output)["generalDiagnostics"]:
        if entry["severity"] == "error":
            found.setdefault(Path(entry["file"]), {})[entry["range"]["start"]["line"] + 1] = entry["message"]
    return found


@pytest.mark.parametrize("check", [by_mypy, by_pyright], ids=["mypy", "pyright"])
def test_right_calls_pass_and_exactly_the_wrong_ones_are_reported(check: object) -> None:
    assert callable(check)
    found = check()
    assert found[RIGHT] == {}
    assert len(marked(WRONG)) > 20
    assert set(found[WRONG]) == marked(WRONG), found[WRONG]
