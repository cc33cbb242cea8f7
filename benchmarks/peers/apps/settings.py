"""Where the services are, from the environment that the contest sets."""

from __future__ import annotations

import os
from typing import Final

REDIS: Final = "QTASKS_BENCHMARK_REDIS"
POSTGRES: Final = "QTASKS_BENCHMARK_POSTGRES"
QUEUE: Final = "benchmarks"
AT_ONCE: Final = 100
"""Tasks a process may have under way, where a queue asks for a number."""


def redis_url() -> str:
    """The Redis database of the contest."""
    return os.environ[REDIS]


def postgres_url() -> str:
    """The PostgreSQL database of the contest."""
    return os.environ[POSTGRES]
