"""A dispatcher killed during a task: time until the broker notices, and until the task is done again."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from benchmarks import processes, waiting
from benchmarks.bench import Bench
from benchmarks.figure import Row
from benchmarks.servers import QTasksServers
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
    """From the moment when the new dispatcher answered."""


def recovering(bench: Bench) -> Iterator[Row]:
    """Kill -9, once for each start in `Sizes.starts`; the new dispatcher is started at once."""
    rounds = bench.sizes.starts
    with bench.servers() as servers:
        recoveries = []
        for round_ in range(rounds):
            bench.say(f"killing the dispatcher during a task ({round_ + 1} of {rounds})")
            recoveries.append(_recover(bench, servers))
    after_start_s = statistics.median(recovery.done_after_start_s for recovery in recoveries)
    how = f"median of {rounds}; retry_delay 100 ms, the attempt's own deadline is 15 minutes away"
    yield Row(
        name="killed dispatcher, noticed by the broker",
        value=statistics.median(recovery.noticed_ms for recovery in recoveries),
        unit="ms",
        method=f"kill -9 to the broker's log entry of the broken attempt; {how}",
    )
    yield Row(
        name="killed dispatcher, its task done again",
        value=statistics.median(recovery.done_s for recovery in recoveries),
        unit="s",
        method=f"kill -9 to the task done by a new dispatcher that is started at once; {how}",
        note=f"{after_start_s * 1000:.0f} ms after that one served",
    )


def _recover(bench: Bench, servers: QTasksServers) -> _Recovery:
    tasks = servers.task_times.reserve(1)
    with servers.producer() as producer, QStash(servers.credentials.token, base_url=servers.url) as client:
        sent = producer.tasks["hang"].delay(tasks[0])
        waiting.until(lambda: servers.task_times.has_started(tasks[0]), processes.START_S, "the task started")
        killed_ns, killed_ms = time.monotonic_ns(), time.time_ns() / 1e6
        servers.dispatcher.kill()
        noticed_ms = _noticed_ms(client, str(sent.message_id)) - killed_ms
        servers.start_dispatcher()
        serves_ns = time.monotonic_ns()
        servers.wait(tasks, bench.say, poll_s=0.002)
        done_ns = servers.task_times.done_ns(tasks)[0]
    return _Recovery(max(0.0, noticed_ms), (done_ns - killed_ns) / 1e9, max(0, done_ns - serves_ns) / 1e9)


def _noticed_ms(client: QStash, message_id: str) -> float:
    """When the broker logged the broken attempt, Unix milliseconds."""
    times: list[int] = []

    def written() -> bool:
        entries = client.log.list(filter={"message_id": message_id}).logs
        times.extend(entry.time for entry in entries if entry.state in _NOTICED)
        return bool(times)

    waiting.until(written, _NOTICE_S, "the broker noticed that the dispatcher was gone")
    return min(times)
