"""A dispatcher killed in the middle of a task: how soon the broker knows, and how soon the task is done again."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from benchmarks import processes, waiting
from benchmarks.bench import Bench
from benchmarks.figure import Row
from benchmarks.own import Own
from qtasks.qstash import QStash
from qtasks.qstash.log import LogState

_NOTICE_S: Final = 60.0
_NOTICED: Final = frozenset({LogState.ERROR, LogState.RETRY})


@dataclass(frozen=True, slots=True)
class _Recovery:
    noticed_ms: float
    done_s: float
    """From the kill."""
    done_after_start_s: float
    """From when the new dispatcher served."""


def recovering(bench: Bench) -> Iterator[Row]:
    """Kill -9, as often as something is started; the new dispatcher is started at once."""
    rounds = bench.sizes.starts
    with bench.own() as own:
        seen = []
        for round_ in range(rounds):
            bench.say(f"killing the dispatcher in the middle of a task ({round_ + 1} of {rounds})")
            seen.append(_recover(bench, own))
    how = f"median of {rounds}; retry_delay 100 ms, the attempt's own deadline is 15 minutes away"
    yield Row(
        name="killed dispatcher, noticed by the broker",
        value=statistics.median(run.noticed_ms for run in seen),
        unit="ms",
        method=f"kill -9 to the broker's log entry of the broken attempt; {how}",
    )
    yield Row(
        name="killed dispatcher, its task done again",
        value=statistics.median(run.done_s for run in seen),
        unit="s",
        method=f"kill -9 to the task done by a new dispatcher that is started at once; {how}",
        note=f"{statistics.median(run.done_after_start_s for run in seen) * 1000:.0f} ms after that one served",
    )


def _recover(bench: Bench, own: Own) -> _Recovery:
    tasks = own.times.take(1)
    with own.producer() as producer, QStash(own.secrets.token, base_url=own.url) as client:
        sent = producer.tasks["hold"].delay(tasks[0])
        waiting.until(lambda: own.times.has_started(tasks[0]), processes.START_S, "the task started")
        killed_ns, killed_ms = time.monotonic_ns(), time.time_ns() / 1e6
        own.dispatcher.kill()
        noticed_ms = _noticed_ms(client, str(sent.message_id)) - killed_ms
        own.start_dispatcher()
        serves_ns = time.monotonic_ns()
        own.wait(tasks, bench.say, poll_s=0.002)
        done_ns = own.times.done_ns(tasks)[0]
    return _Recovery(max(0.0, noticed_ms), (done_ns - killed_ns) / 1e9, max(0, done_ns - serves_ns) / 1e9)


def _noticed_ms(client: QStash, message_id: str) -> float:
    """When the broker wrote down that the attempt had broken off: Unix milliseconds, as in its log."""
    times: list[int] = []

    def written() -> bool:
        entries = client.log.list(filter={"message_id": message_id}).logs
        times.extend(entry.time for entry in entries if entry.state in _NOTICED)
        return bool(times)

    waiting.until(written, _NOTICE_S, "the broker noticed that the dispatcher was gone")
    return min(times)
