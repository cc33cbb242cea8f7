"""Plants one sabotage in a copy of the project and runs the tests that must notice it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from tests.planted.sabotages import Sabotage

ROOT: Final = Path(__file__).parents[2]
LIMIT_S: Final = 120
"""Seconds that the tests of one sabotage may take."""
_NOT_COPIED: Final = shutil.ignore_patterns(".*", "__pycache__", "node_modules", "*.db", "*.db-*")


class Verdict(StrEnum):
    """What became of a sabotage."""

    CAUGHT = "caught"
    SURVIVED = "SURVIVED"
    UNPLANTED = "NOT PLANTED"
    """Its line is not in the file exactly once, or the tests could not run: the table is out of date."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict on a sabotage, and the last lines of the tests' output."""

    sabotage: Sabotage
    verdict: Verdict
    detail: str


@contextmanager
def copied_project() -> Iterator[Path]:
    """A copy of the project in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        copy = Path(folder) / "project"
        shutil.copytree(ROOT, copy, ignore=_NOT_COPIED)
        yield copy


def plant(sabotage: Sabotage, copy: Path) -> Outcome:
    """Sabotage the `copy`, run the tests, and repair it again."""
    path = copy / sabotage.file
    sound = path.read_text()
    if sound.count(sabotage.line) != 1:
        detail = f"{sabotage.file} contains {sound.count(sabotage.line)} times: {sabotage.line!r}"
        return Outcome(sabotage, Verdict.UNPLANTED, detail)
    path.write_text(sound.replace(sabotage.line, sabotage.planted))
    try:
        return _judge(sabotage, copy)
    finally:
        path.write_text(sound)


def _judge(sabotage: Sabotage, copy: Path) -> Outcome:
    # Without compiled code: Python compares it with its source by time in seconds and size, which may be equal.
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *sabotage.tests.split()]
    try:
        tests = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Outcome(sabotage, Verdict.CAUGHT, f"the tests did not end within {LIMIT_S} s")
    lines = (tests.stdout or tests.stderr).strip().splitlines()
    shown = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), "\n".join(lines[-3:]))
    match tests.returncode:
        case 0:
            return Outcome(sabotage, Verdict.SURVIVED, shown)
        case 1:
            return Outcome(sabotage, Verdict.CAUGHT, shown)
    return Outcome(sabotage, Verdict.UNPLANTED, shown)
