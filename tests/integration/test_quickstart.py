"""The first thing a person runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.dev import environment

ROOT = Path(__file__).resolve().parents[2]


def test_the_quickstart_shows_the_main_job_and_ends_by_itself(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "quickstart.py")],
        cwd=tmp_path,
        env=environment(PYTHONIOENCODING="utf-8"),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=10,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    output = done.stdout
    assert "results  [5, 'hello Ada', 42, 'sent on attempt 3']" in output
    assert "charge   failed" in output
    assert "4 done, 2 retried, 1 failed" in output
    marks = [line.split()[1] for line in output.splitlines() if line[2:3] == ":"]
    assert sorted(marks) == sorted(["→"] * 5 + ["✓"] * 4 + ["↻"] * 2 + ["✗"])
    assert list(tmp_path.iterdir()) == []


def test_the_quickstart_prints_on_a_terminal_that_knows_no_more_than_latin_letters(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "quickstart.py")],
        cwd=tmp_path,
        env=environment(PYTHONIOENCODING="cp1252"),
        capture_output=True,
        timeout=10,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"+  add" in done.stdout
