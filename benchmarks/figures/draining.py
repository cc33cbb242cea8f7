"""Tasks a second through broker and dispatcher: from a backlog, with the producer running, and waiting ones."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import backlog, load, machine, work
from benchmarks.bench import IN_FLIGHT, Bench
from benchmarks.figure import Aim, Row, number
from benchmarks.own import Own

_AIM = Aim(5_000)


def draining(bench: Bench) -> Iterator[Row]:
    """Backlogs of no-op tasks, each in a store of its own, the last compared with the first."""
    rates: list[float] = []
    for count in bench.sizes.backlogs:
        row = _drain(bench, "noop", count, aim=_AIM)
        rates.append(row.value or 0.0)
        yield row
    if len(rates) > 1:
        yield Row(
            name=f"drained, {bench.sizes.backlogs[-1]:,} against {bench.sizes.backlogs[0]:,}",
            value=rates[-1] / rates[0],
            unit="times",
            aim=Aim(0.9),
            method="the rate from the largest backlog over the rate from the smallest: flat is 1",
        )
    yield _drain(bench, "plain", bench.sizes.backlogs[0], label="def tasks, in threads")


def napping(bench: Bench) -> Iterator[Row]:
    """Tasks that wait, as for a slow service."""
    count = bench.sizes.naps
    yield _drain(bench, "nap", count, label=f"tasks that sleep {work.NAP_S * 1000:.0f} ms")


def streaming(bench: Bench) -> Iterator[Row]:
    """No-op tasks that run while they are published."""
    count = bench.sizes.streamed
    with bench.own() as own:
        tasks = own.times.take(count)
        requests = load.requests(own.target, "noop", tasks)
        bench.say(f"publishing and running {count:,} tasks at once")
        used = _Processor(own)
        sent = load.publish(own.target, requests, in_flight=IN_FLIGHT, say=bench.say)
        own.wait(tasks, bench.say)
        span_s = (max(own.times.done_ns(tasks)) - sent.began_ns) / 1e9
        yield Row(
            name="end to end, with the producer running",
            value=count / span_s,
            unit="tasks/s",
            method=f"{count:,} no-op tasks published over {IN_FLIGHT} connections; first publish to last task done",
            note=f"{used.since(count)}; publishes alone {number(sent.per_s)} /s",
        )


def _drain(bench: Bench, name: str, count: int, *, label: str = "no-op tasks", aim: Aim | None = None) -> Row:
    with bench.own() as own:
        stored = backlog.fill(own, name, count, bench.say)
        stored.wait()
        bench.say(f"draining {count:,} {name}")
        used = _Processor(own)
        own.wait(stored.tasks, bench.say)
        started, done = own.times.started_ns(stored.tasks), own.times.done_ns(stored.tasks)
        span_s = (max(done) - min(started)) / 1e9
        return Row(
            name=f"drained, {count:,} {label}",
            value=count / span_s,
            unit="tasks/s",
            aim=aim,
            method="stored beforehand, all due at one moment; first task started to last task done",
            note=used.since(count),
        )


class _Processor:
    """What both processes use from its making on."""

    def __init__(self, own: Own) -> None:
        self._pids = {"broker": own.broker.pid, "dispatcher": own.dispatcher.pid}
        self._before = {name: machine.cpu_s(pid) for name, pid in self._pids.items()}

    def since(self, count: int) -> str:
        """In words, for each of `count` tasks."""
        used = {name: machine.cpu_s(pid) - self._before[name] for name, pid in self._pids.items()}
        parts = [f"{name} {number(spent * 1e6 / count)} µs" for name, spent in used.items()]
        return ", ".join(parts) + " of processor each"
