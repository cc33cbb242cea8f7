"""The work on qtasks, for its producer. Uses only what revisions since 53e0575 offer."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from benchmarks.mixed_app import tasks
from benchmarks.peers.apps import settings
from qtasks.qstash import QStash

_PROBE = 10
"""The part of a backlog with which the rate of storing is measured."""
_SLACK = 2
_MARGIN_S = 1.0
_NEVER_S = 86_400
_BATCH = 100
_PART = 10_000


@functools.cache
def _task(work: str) -> Any:
    delay = os.environ.get(settings.DELAY)
    return tasks.tasks[work].using(delay=delay) if delay else tasks.tasks[work]


def send(work: str, task: int) -> None:
    """Publish one call."""
    _task(work).delay(task)


async def asend(work: str, task: int) -> None:
    """Publish one call, on an event loop."""
    await _task(work).adelay(task)


def bulk(work: str, numbers: Sequence[int]) -> None:
    """Publish many calls."""
    for start in range(0, len(numbers), _PART):
        _task(work).map(numbers[start : start + _PART])


def backlog(work: str, numbers: Sequence[int]) -> float:
    """Publish calls that are all due at one Unix time, which is returned."""

    def store(part: Sequence[int], due_s: int) -> None:
        tasks.tasks[work].using(eta=datetime.fromtimestamp(due_s, UTC)).map(part)

    return _by_one_time(store, numbers)


def plain_backlog(numbers: Sequence[int]) -> float:
    """As `backlog`, messages to a URL that is not ours."""
    url = os.environ[settings.ENDPOINT]

    def store(part: Sequence[int], due_s: int) -> None:
        with QStash(os.environ["QSTASH_TOKEN"], base_url=os.environ["QSTASH_URL"]) as client:
            for start in range(0, len(part), _BATCH):
                messages: Any = [
                    {"url": url, "body": str(number), "not_before": due_s} for number in part[start : start + _BATCH]
                ]
                client.message.batch(messages)

    return _by_one_time(store, numbers)


def _by_one_time(store: Callable[[Sequence[int], int], None], numbers: Sequence[int]) -> float:
    """Store all of `numbers`, due at a time that is estimated from a few messages that are never due."""
    few = max(1, len(numbers) // _PROBE)
    began_s = time.time()
    store([numbers[0]] * few, int(began_s) + _NEVER_S)
    spent_s = time.time() - began_s
    due_s = math.ceil(time.time() + spent_s / few * len(numbers) * _SLACK + _MARGIN_S)
    store(numbers, due_s)
    return due_s
