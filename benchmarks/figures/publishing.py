"""Publishes a second that the broker accepts, under a load generator that costs little itself."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import load, machine
from benchmarks.bench import FAR_MS, IN_FLIGHT, Bench
from benchmarks.figure import Aim, Row, number
from benchmarks.servers import QTasksServers


def publishing(bench: Bench) -> Iterator[Row]:
    """One at a time, which shows a single commit, and many at once, which share commits."""
    count = bench.sizes.publishes
    with bench.servers(dispatcher=False) as servers:
        yield _publishes(bench, servers, count // 4, in_flight=1)
        yield _publishes(bench, servers, count, in_flight=IN_FLIGHT, aim=Aim(5_000))


def _publishes(bench: Bench, servers: QTasksServers, count: int, *, in_flight: int, aim: Aim | None = None) -> Row:
    bench.say(f"publishing {count:,} from bare sockets, {in_flight} in flight")
    requests = load.requests(servers.target, "noop", servers.task_times.reserve(count), delay_ms=FAR_MS)
    before_s = machine.cpu_s(servers.broker.pid)
    sent = load.publish(servers.target, requests, in_flight=in_flight, say=bench.say)
    used_us = (machine.cpu_s(servers.broker.pid) - before_s) * 1e6 / count
    return Row(
        name=f"publishes, bare sockets, {in_flight} in flight",
        value=sent.per_s,
        unit="/s",
        aim=aim,
        method=f"{count:,} prepared requests over {in_flight} kept connections; none is due within a day",
        note=f"broker {number(used_us)} µs of processor each",
    )
