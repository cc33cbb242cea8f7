"""Tasks a second through broker and dispatcher: from a backlog, while the producer runs, and of sleeping tasks."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import app, backlog, load, machine, mixed_app, work
from benchmarks.bench import IN_FLIGHT, Bench
from benchmarks.figure import Aim, Row, number
from benchmarks.servers import QTasksServers

_AIM = Aim(5_000)


def draining(bench: Bench) -> Iterator[Row]:
    """Backlogs of no-op tasks, each in its own store; the last is compared with the first."""
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
    """Tasks that sleep, as if waiting for a slow service."""
    count = bench.sizes.naps
    yield _drain(bench, "nap", count, label=f"tasks that sleep {work.NAP_S * 1000:.0f} ms")


def streaming(bench: Bench) -> Iterator[Row]:
    """No-op tasks that run while they are published."""
    count = bench.sizes.streamed
    with bench.servers() as servers:
        tasks = servers.task_times.reserve(count)
        requests = load.requests(servers.target, "noop", tasks)
        bench.say(f"publishing and running {count:,} tasks at the same time")
        used = _Processor(servers)
        sent = load.publish(servers.target, requests, in_flight=IN_FLIGHT, say=bench.say)
        servers.wait(tasks, bench.say)
        span_s = (max(servers.task_times.done_ns(tasks)) - sent.began_ns) / 1e9
        yield Row(
            name="end to end, with the producer running",
            value=count / span_s,
            unit="tasks/s",
            method=f"{count:,} no-op tasks published over {IN_FLIGHT} connections; first publish to last task done",
            note=f"{used.since(count)}; publishes alone {number(sent.per_s)} /s",
        )


def _drain(bench: Bench, name: str, count: int, *, label: str = "no-op tasks", aim: Aim | None = None) -> Row:
    application = mixed_app if name == "plain" else app
    with bench.servers(application=application.__name__) as servers:
        stored = backlog.fill(servers, name, count, bench.say)
        stored.wait()
        bench.say(f"draining {count:,} {name}")
        used = _Processor(servers)
        servers.wait(stored.tasks, bench.say)
        started, done = servers.task_times.started_ns(stored.tasks), servers.task_times.done_ns(stored.tasks)
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
    """Processor time of both processes since this object was created."""

    def __init__(self, servers: QTasksServers) -> None:
        self._pids = {"broker": servers.broker.pid, "dispatcher": servers.dispatcher.pid}
        self._before = {name: machine.cpu_s(pid) for name, pid in self._pids.items()}

    def since(self, count: int) -> str:
        """As text, for each of `count` tasks."""
        used = {name: machine.cpu_s(pid) - self._before[name] for name, pid in self._pids.items()}
        parts = [f"{name} {number(spent * 1e6 / count)} µs" for name, spent in used.items()]
        return ", ".join(parts) + " of processor each"
