"""Seconds for a thousand tests of jobs under the fixture: `python -m benchmarks.fixture_tests [TESTS]`.

Each test sends a call, runs it and reads its result; every tenth fails at first and is retried an hour later. The tests
run in a process of their own, so that its processor time is theirs alone. The seconds are those that pytest reports,
the imports of the first test included, so a small number of tests says little.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

TESTS: Final = 1000

MODULE: Final = """
import pytest

from qtasks import QTasks

tasks = QTasks()
failed = set()


@pytest.fixture(scope="session")
def qtasks_app():
    return tasks


@tasks.task
def double(number: int) -> int:
    return 2 * number


@tasks.task(retries=3)
def flaky(number: int) -> int:
    if number not in failed:
        failed.add(number)
        raise ConnectionError("the first attempt fails")
    return 2 * number


@pytest.mark.parametrize("number", range({count}))
def test_job(qtasks, number):
    call = (double if number % 10 else flaky).delay(number)
    qtasks.drain()
    if number % 10 == 0:
        qtasks.advance("1h")
    assert call.return_value == 2 * number
"""


def main() -> int:
    """Run the tests and print what they took; 1 if one failed."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else TESTS
    with TemporaryDirectory(prefix="qtasks-fixture-") as folder:
        Path(folder, "test_jobs.py").write_text(MODULE.format(count=count))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    passed = re.search(rf"{count} passed in ([0-9.]+)s", done.stdout)
    if passed is None:
        print(done.stdout, done.stderr, file=sys.stderr)
        return 1
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{float(passed[1]) * TESTS / count:.1f} s for {TESTS} tests "
        f"({count} run; processor {used.ru_utime + used.ru_stime:.1f} s with all imports)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
