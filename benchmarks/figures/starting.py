"""The cost of starting: the import, and `qtasks dev` until the first task is done."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks import load, processes, waiting
from benchmarks.bench import Bench
from benchmarks.figure import Aim, Row
from benchmarks.load import Target
from benchmarks.processes import Program
from benchmarks.servers import QTASKS
from benchmarks.task_times import PATH_VARIABLE, TaskTimes

_DEV_FILE: Final = Path(".qtasks", "dev.json")
_IMPORTS: Final = ("pass", "import qtasks", "from qtasks import QTasks, task")
_AIMS_MS: Final = {"import qtasks": 40, "from qtasks import QTasks, task": 200}
_IMPORT_S: Final = 30


def importing(bench: Bench) -> Iterator[Row]:
    """Processor time of `import qtasks`, and of importing names from it."""
    rounds = bench.sizes.starts * 10
    bench.say(f"starting {rounds * 3} interpreters")
    for code in _IMPORTS:
        _import_ms(code)  # compiles the modules and fills the file cache
    spans = [[_import_ms(code) for code in _IMPORTS] for _ in range(rounds)]
    bare_ms, *medians_ms = (statistics.median(column) for column in zip(*spans, strict=True))
    for code, median_ms in zip(_IMPORTS[1:], medians_ms, strict=True):
        yield Row(
            name=code,
            value=median_ms - bare_ms,
            unit="ms",
            aim=Aim(_AIMS_MS[code], most=True),
            method=f"processor time of an interpreter with this line minus that of one without; medians of {rounds}",
            note=f"the bare interpreter {bare_ms:.1f} ms",
        )


def _import_ms(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], env=processes.environment(), check=True, timeout=_IMPORT_S)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000


def developing(bench: Bench) -> Iterator[Row]:
    """The time from the start of `qtasks dev` to the end of the first task."""
    rounds = bench.sizes.starts
    bench.say(f"starting qtasks dev {rounds} times")
    _first_task_s(bench)  # compiles the modules and fills the file cache
    spans_s = [_first_task_s(bench) for _ in range(rounds)]
    yield Row(
        name="start of qtasks dev to the first task done",
        value=statistics.median(spans_s),
        unit="s",
        aim=Aim(2, most=True),
        method=f"an empty folder, four tasks; published from a bare socket once dev.json is there; median of {rounds}",
        note=f"from {min(spans_s):.2f} to {max(spans_s):.2f} s",
    )


def _first_task_s(bench: Bench) -> float:
    with TemporaryDirectory(prefix="dev-", dir=bench.folder) as name, TaskTimes.fresh(1) as task_times:
        folder = Path(name)
        environment = processes.environment(**{PATH_VARIABLE: str(task_times.path)})
        command = (*QTASKS, "dev", "benchmarks.app:tasks", "--port", "0", "--app-port", "0")
        began_ns = time.monotonic_ns()
        with processes.running(
            Program("qtasks dev", command, environment, log=folder / "dev.log", folder=folder)
        ) as dev:
            dev.wait_until((folder / _DEV_FILE).exists)
            target = _target(json.loads((folder / _DEV_FILE).read_text()))
            load.publish(target, load.requests(target, "noop", range(1)), in_flight=1)
            waiting.done(task_times, range(1), bench.say, check=dev.check, poll_s=0.002)
            return (task_times.done_ns(range(1))[0] - began_ns) / 1e9


def _target(facts: dict[str, Any]) -> Target:
    port = urlsplit(facts["broker"]).port
    assert port is not None, f"a port in {facts['broker']}"
    return Target(port, facts["token"], facts["base_url"])
