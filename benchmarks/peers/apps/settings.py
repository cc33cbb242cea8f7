"""Where the services are, from the environment that the comparison sets."""

from __future__ import annotations

import os
from typing import Final

REDIS: Final = "QTASKS_BENCHMARK_REDIS"
POSTGRES: Final = "QTASKS_BENCHMARK_POSTGRES"
QUEUE: Final = "benchmarks"
AT_ONCE: Final = 100
"""Tasks that run in one process at the same time, for queues that ask for a number."""


def redis_url() -> str:
    """The Redis database of the comparison."""
    return os.environ[REDIS]


def postgres_url() -> str:
    """The PostgreSQL database of the comparison."""
    return os.environ[POSTGRES]
