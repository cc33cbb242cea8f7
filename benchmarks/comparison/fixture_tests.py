"""Tests of jobs, as an application has them. Copied as test_jobs.py, and run by pytest with a revision's fixture."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest

from benchmarks.peers.apps import settings
from qtasks import QTasks

RETRIED = 10
"""Every so many jobs the first attempt fails."""

tasks = QTasks()
runs: Counter[int] = Counter()


@tasks.task(retries=3, retry_delay="10s")
async def job(number: int) -> int:
    """Fail at the first attempt of some."""
    runs[number] += 1
    if number % RETRIED == 0 and runs[number] == 1:
        raise RuntimeError("the first attempt fails")
    return number * 2


@pytest.fixture(scope="session")
def qtasks_app() -> QTasks:
    """The application under test."""
    return tasks


@pytest.mark.parametrize("number", range(int(os.environ[settings.TESTS])))
def test_a_job_is_done(qtasks: Any, number: int) -> None:
    """A job that failed is done after its delay."""
    job.delay(number)
    qtasks.drain()
    if number % RETRIED == 0:
        assert runs[number] == 1
        qtasks.advance(minutes=1)
        assert runs[number] == 2
    else:
        assert runs[number] == 1
    assert not qtasks.dlq
