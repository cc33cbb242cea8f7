"""Time from the call to the start of a task on an idle system."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Final

from benchmarks import load, waiting
from benchmarks.bench import Bench
from benchmarks.figure import Aim, Row, percentile
from benchmarks.servers import QTasksServers

PER_S: Final = 50.0
_P50, _P99 = Aim(3, most=True), Aim(15, most=True)


def latency(bench: Bench) -> Iterator[Row]:
    """Through `.delay()`, as in an application, and from a bare socket, which shows the part of the client."""
    count = int(bench.sizes.paced_s * PER_S)
    with bench.servers() as servers:
        bench.say(f"sending {count:,} jobs at {PER_S:.0f} a second with task.delay()")
        yield from _rows("task.delay()", _by_delay(servers, count, bench), _P50, _P99)
        bench.say(f"sending {count:,} jobs at {PER_S:.0f} a second from a bare socket")
        yield from _rows("a bare socket", _by_socket(servers, count, bench), None, None)


def _by_delay(servers: QTasksServers, count: int, bench: Bench) -> list[float]:
    tasks = servers.task_times.reserve(count)
    with servers.producer() as producer:
        task = producer.tasks["noop"]
        task.delay(servers.task_times.reserve(1)[0])  # opens the connection
        began = time.monotonic()
        for place, number in enumerate(tasks):
            waiting.pause(began + place / PER_S - time.monotonic())
            servers.task_times.record_sent(number)
            task.delay(number)
    return _spans_ms(servers, tasks, bench)


def _by_socket(servers: QTasksServers, count: int, bench: Bench) -> list[float]:
    tasks = servers.task_times.reserve(count)
    requests = load.requests(servers.target, "noop", tasks)
    load.paced(servers.target, requests, PER_S, lambda place: servers.task_times.record_sent(tasks[place]))
    return _spans_ms(servers, tasks, bench)


def _spans_ms(servers: QTasksServers, tasks: range, bench: Bench) -> list[float]:
    servers.wait(tasks, bench.say)
    times_ns = zip(servers.task_times.sent_ns(tasks), servers.task_times.started_ns(tasks), strict=True)
    return [(started - sent) / 1e6 for sent, started in times_ns]


def _rows(how: str, spans_ms: Sequence[float], p50: Aim | None, p99: Aim | None) -> Iterator[Row]:
    for percent, aim in ((50, p50), (95, None), (99, p99)):
        yield Row(
            name=f"enqueue to start by {how}, p{percent}",
            value=percentile(spans_ms, percent),
            unit="ms",
            aim=aim,
            method=f"{len(spans_ms):,} jobs at {PER_S:.0f}/s; from just before the call to the task's first line",
            note=f"longest {max(spans_ms):.1f} ms" if percent == 99 else "",
        )
