"""How long a job waits for its start when there is nothing to wait for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Final

from benchmarks import load, waiting
from benchmarks.bench import Bench
from benchmarks.figure import Aim, Row, percentile
from benchmarks.own import Own

PER_S: Final = 50.0
_P50, _P99 = Aim(3, most=True), Aim(15, most=True)


def latency(bench: Bench) -> Iterator[Row]:
    """Through `.delay()` as an application has it, and from a bare socket to show what the client adds."""
    count = int(bench.sizes.paced_s * PER_S)
    with bench.own() as own:
        bench.say(f"sending {count:,} jobs at {PER_S:.0f} a second with task.delay()")
        yield from _rows("task.delay()", _by_delay(own, count, bench), _P50, _P99)
        bench.say(f"sending {count:,} jobs at {PER_S:.0f} a second from a bare socket")
        yield from _rows("a bare socket", _by_socket(own, count, bench), None, None)


def _by_delay(own: Own, count: int, bench: Bench) -> list[float]:
    tasks = own.times.take(count)
    with own.producer() as producer:
        task = producer.tasks["noop"]
        task.delay(own.times.take(1)[0])  # opens the connection
        began = time.monotonic()
        for place, number in enumerate(tasks):
            waiting.pause(began + place / PER_S - time.monotonic())
            own.times.send(number)
            task.delay(number)
    return _spans_ms(own, tasks, bench)


def _by_socket(own: Own, count: int, bench: Bench) -> list[float]:
    tasks = own.times.take(count)
    requests = load.requests(own.target, "noop", tasks)
    load.paced(own.target, requests, PER_S, lambda place: own.times.send(tasks[place]))
    return _spans_ms(own, tasks, bench)


def _spans_ms(own: Own, tasks: range, bench: Bench) -> list[float]:
    own.wait(tasks, bench.say)
    both = zip(own.times.sent_ns(tasks), own.times.started_ns(tasks), strict=True)
    return [(started - sent) / 1e6 for sent, started in both]


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
