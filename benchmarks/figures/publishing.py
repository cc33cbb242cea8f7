"""Publishes a second as the broker takes them: a load so cheap that the broker is what is measured."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import load, machine
from benchmarks.bench import FAR_MS, IN_FLIGHT, Bench
from benchmarks.figure import Aim, Row, number
from benchmarks.own import Own


def publishing(bench: Bench) -> Iterator[Row]:
    """One at a time, which shows the commit, and many at once, which shows what commits in company cost."""
    count = bench.sizes.publishes
    with bench.own(dispatcher=False) as own:
        yield _publishes(bench, own, count // 4, in_flight=1)
        yield _publishes(bench, own, count, in_flight=IN_FLIGHT, aim=Aim(5_000))


def _publishes(bench: Bench, own: Own, count: int, *, in_flight: int, aim: Aim | None = None) -> Row:
    bench.say(f"publishing {count:,} from bare sockets, {in_flight} in flight")
    requests = load.requests(own.target, "noop", own.times.take(count), delay_ms=FAR_MS)
    before_s = machine.cpu_s(own.broker.pid)
    sent = load.publish(own.target, requests, in_flight=in_flight, say=bench.say)
    used_us = (machine.cpu_s(own.broker.pid) - before_s) * 1e6 / count
    return Row(
        name=f"publishes, bare sockets, {in_flight} in flight",
        value=sent.per_s,
        unit="/s",
        aim=aim,
        method=f"{count:,} requests made beforehand over {in_flight} kept connections; none is due before a day",
        note=f"broker {number(used_us)} µs of processor each",
    )
