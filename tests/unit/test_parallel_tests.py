"""`pytest -n 2` runs this suite: a worker can send the report of a test that logged bad text."""

from __future__ import annotations

from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"


def test_a_lone_surrogate_in_a_log_does_not_end_a_parallel_run(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makepyfile(
        r"""
        import logging

        def test_that_passes():
            logging.getLogger().error("half \ud800")

        def test_that_fails():
            assert "half \ud800" == ""
        """
    )
    result = pytester.runpytest_subprocess("-n", "1", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*half \\ud800*"])
