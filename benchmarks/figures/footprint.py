"""Resources of broker and dispatcher: memory, disk, and processor time while idle."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import load, machine, waiting
from benchmarks.bench import FAR_MS, IN_FLIGHT, Bench
from benchmarks.figure import Aim, Row, number
from benchmarks.processes import Program
from benchmarks.servers import QTasksServers

_MEMORY = Aim(80, most=True)
_IDLE = Aim(1, most=True)


def memory(bench: Bench) -> Iterator[Row]:
    """Resident memory after the first task and after many."""
    count = bench.sizes.streamed
    with bench.servers() as servers:
        programs = {"broker": servers.broker, "dispatcher": servers.dispatcher}
        yield from (_resident(name, program, "idle", "after its first task") for name, program in programs.items())
        bench.say(f"running {count:,} tasks to measure the memory afterwards")
        tasks = servers.task_times.reserve(count)
        load.publish(servers.target, load.requests(servers.target, "noop", tasks), in_flight=IN_FLIGHT, say=bench.say)
        servers.wait(tasks, bench.say)
        how = f"after {count:,} no-op tasks published over {IN_FLIGHT} connections"
        yield from (_resident(name, program, "after the load", how) for name, program in programs.items())


def _resident(name: str, program: Program, when: str, how: str) -> Row:
    usage = machine.usage(program.pid)
    return Row(
        name=f"memory of the {name}, {when}",
        value=usage.resident_mb,
        unit="MB",
        aim=_MEMORY,
        method=f"resident set {how}, in millions of bytes",
        note=f"never more than {number(usage.peak_mb)} MB",
    )


def idling(bench: Bench) -> Iterator[Row]:
    """Processor time of both while idle."""
    span_s = bench.sizes.idle_s
    with bench.servers() as servers:
        bench.say(f"watching both idle for {span_s:.0f} s")
        programs = {"broker": servers.broker.pid, "dispatcher": servers.dispatcher.pid}
        before = {name: machine.cpu_s(pid) for name, pid in programs.items()}
        waiting.pause(span_s)
        for name, pid in programs.items():
            yield Row(
                name=f"idle processor time of the {name}",
                value=(machine.cpu_s(pid) - before[name]) / span_s * 100,
                unit="%",
                aim=_IDLE,
                method=f"of one core over {span_s:.0f} s after a first task (the clock has steps of 10 ms)",
            )


def store(bench: Bench) -> Iterator[Row]:
    """Disk and memory of waiting messages."""
    count = bench.sizes.waiting
    with bench.servers(dispatcher=False) as servers:
        before_mb = machine.usage(servers.broker.pid).resident_mb
        bench.say(f"storing {count:,} messages")
        requests = load.requests(servers.target, "noop", range(count), delay_ms=FAR_MS)
        load.publish(servers.target, requests, in_flight=IN_FLIGHT, say=bench.say)
        grown_mb = machine.usage(servers.broker.pid).resident_mb - before_mb
        running_mb = _files_mb(servers)
        servers.broker.stop()
        size_mb = servers.db.stat().st_size / 1e6
        yield Row(
            name=f"store with {count:,} waiting",
            value=size_mb,
            unit="MB",
            method="the database file after the broker has stopped; each message a small task call",
            note=f"{number(size_mb * 1e6 / count)} bytes each; {number(running_mb)} MB with the log while it ran; "
            f"the broker's memory grew by {number(grown_mb)} MB",
        )


def _files_mb(servers: QTasksServers) -> float:
    return sum(path.stat().st_size for path in servers.folder.glob(f"{servers.db.name}*")) / 1e6
