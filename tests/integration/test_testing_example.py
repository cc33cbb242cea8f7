"""The example of tests is run as its reader runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.process import environment

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "testing"


def test_the_tests_of_the_example_pass() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:schemathesis"],
        cwd=EXAMPLE,
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 passed" in done.stdout
