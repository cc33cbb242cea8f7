"""What the comparison tells the applications, through the environment."""

from __future__ import annotations

import os
from typing import Final

REDIS: Final = "QTASKS_BENCHMARK_REDIS"
POSTGRES: Final = "QTASKS_BENCHMARK_POSTGRES"
RESULTS: Final = "QTASKS_BENCHMARK_RESULTS"
DELAY: Final = "QTASKS_BENCHMARK_DELAY"
"""Delay of every call of qtasks."""
ENDPOINT: Final = "QTASKS_BENCHMARK_ENDPOINT"
TESTS: Final = "QTASKS_BENCHMARK_TESTS"
"""How many tests there are."""

QUEUE: Final = "benchmarks"
AT_ONCE: Final = 100
"""Tasks that run in one process at the same time, for queues that ask for a number."""


def redis_url() -> str:
    """The Redis database of the comparison."""
    return os.environ[REDIS]


def postgres_url() -> str:
    """The PostgreSQL database of the comparison."""
    return os.environ[POSTGRES]


def keeps_results() -> bool:
    """Whether results of tasks are kept."""
    return RESULTS in os.environ
