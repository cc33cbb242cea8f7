"""A revision of qtasks as a candidate: its broker and its dispatcher, one process each."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks import machine, mixed_app, processes, waiting
from benchmarks.bench import MAX_TASKS, Bench
from benchmarks.comparison import candidate, nginx
from benchmarks.comparison.candidate import Candidate, Produced, Session
from benchmarks.comparison.measures import Sample
from benchmarks.comparison.produce import How, Order
from benchmarks.comparison.trees import Tree
from benchmarks.peers.apps import settings
from benchmarks.processes import HOST, Program
from benchmarks.servers import QTasksServers
from benchmarks.task_times import TaskTimes
from benchmarks.waiting import Say

_WARM_UP: Final = 8
_NEVER: Final = "1d"
"""A delay longer than any measurement."""

_TESTS: Final = Path(__file__).with_name("fixture_tests.py")
_TESTS_S: Final = 600


class LateError(Exception):
    """The backlog was due before it was complete: no drain could be measured."""


@dataclass(slots=True)
class TreeSession:
    """Broker and dispatcher of one revision. Close it with `stop`."""

    tree: Tree
    servers: QTasksServers
    say: Say
    naps: int = sys.maxsize
    _endpoint: Program | None = None
    _running: list[Program] = field(default_factory=list)

    @property
    def task_times(self) -> TaskTimes:
        """When each task was sent, started and done."""
        return self.servers.task_times

    def start(self, work: str) -> None:
        """Start the dispatcher, which runs every kind of task, and run a few first tasks."""
        self._start_dispatcher()
        self.wait(self._produce("one by one", work, _WARM_UP).tasks)

    def release(self, work: str, count: int) -> range:
        """Store tasks that are all due at one moment, and return at that moment.

        The producer's first call, which is due at once, has warmed both processes by then.
        """
        self._start_dispatcher()
        return self._due(self._produce("backlog", work, count))

    def declare_def_task(self) -> None:
        """Have the application declare a ``def`` task as well. To be called before the dispatcher starts."""
        self.servers.app = mixed_app.__name__

    def release_plain(self, count: int) -> range:
        """As `release`, for messages to a bare endpoint that is not ours."""
        port = processes.free_port()
        command = (sys.executable, "-m", "benchmarks.comparison.endpoint", str(port))
        endpoint = Program("the endpoint", command, self.servers.environment, log=self.servers.folder / "endpoint.log")
        self._endpoint = endpoint
        waiting.until(lambda: processes.listens(port), processes.START_S, "the endpoint started")
        url = f"http://{HOST}:{port}/"
        return self._due(
            self._produce("plain backlog", "noop", count, {settings.ENDPOINT: url, settings.DELAY: _NEVER})
        )

    def produce(self, how: How, work: str, count: int, *, per_s: float = 0) -> Produced:
        """Call from one process; without a dispatcher the calls are stored with a delay, and none is delivered."""
        extra = {} if self._running else {settings.DELAY: _NEVER}
        return self._produce(how, work, count, extra, per_s)

    def wait(self, tasks: range) -> None:
        """Return when all of `tasks` are done."""
        waiting.done(self.task_times, tasks, self.say, check=self.check)

    def check(self) -> None:
        """Raise ProgramError when broker, dispatcher or endpoint has ended."""
        for program in self._programs():
            program.check()

    def cpu_s(self) -> float:
        """Processor time of broker and dispatcher."""
        return sum(machine.cpu_s(program.pid) for program in (self.servers.broker, *self._running))

    def memory_mb(self) -> float:
        """Memory of broker and dispatcher."""
        return machine.shared_out_mb([program.pid for program in (self.servers.broker, *self._running)])

    def run_tests(self, count: int) -> Sample:
        """Seconds that one run of `count` tests of jobs takes. Raises ProgramError if one fails."""
        folder = self.servers.folder / "tests"
        folder.mkdir()
        (folder / "pytest.ini").write_text("[pytest]\n")
        (folder / "test_jobs.py").write_bytes(_TESTS.read_bytes())
        command = (sys.executable, "-m", "pytest", "-q", "-p", "qtasks.testing.plugin", "-p", "no:cacheprovider", ".")
        variables = {**self.tree.environment(), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", settings.TESTS: str(count)}
        log = self.servers.folder / "tests.log"
        began_s, before_s = time.perf_counter(), machine.children_cpu_s()
        with processes.running(
            Program("pytest", command, processes.environment(**variables), log=log, folder=folder)
        ) as run:
            run.finish(_TESTS_S)
        return Sample(time.perf_counter() - began_s, (machine.children_cpu_s() - before_s) * 1e6 / count)

    def stop(self) -> None:
        """Stop what runs. Idempotent."""
        if self._endpoint is not None:
            self._endpoint.stop()
        self.servers.stop()

    def _start_dispatcher(self) -> None:
        if self._running:
            return
        self.servers.start_dispatcher()
        self._running.append(self.servers.dispatcher)

    def _programs(self) -> Iterator[Program]:
        yield self.servers.broker
        yield from self._running
        if self._endpoint is not None:
            yield self._endpoint

    def _produce(
        self, how: How, work: str, count: int, extra: dict[str, str] | None = None, per_s: float = 0
    ) -> Produced:
        numbers = self.task_times.reserve(count + 1)
        order = Order("qtasks_app", how, work, numbers.start, len(numbers), per_s)
        variables = {**self.servers.environment, **(extra or {})}
        return candidate.produce(Path(sys.executable), order, variables, self.servers.folder)

    def _due(self, produced: Produced) -> range:
        assert produced.due_s is not None, "a backlog of ours has a due time"
        if (late_s := time.time() - produced.due_s) > 0:
            raise LateError(f"storing {len(produced.tasks):,} messages took {late_s:.1f} s longer than estimated")
        waiting.pause(-late_s)
        return produced.tasks


def of(tree: Tree, bench: Bench, *, behind_nginx: bool = False) -> Candidate:
    """A revision of qtasks; with `behind_nginx` its dispatcher stands behind nginx with its default settings."""

    @contextlib.contextmanager
    def open_session(kept: bool) -> Iterator[Session]:
        with (
            TaskTimes.fresh(MAX_TASKS) as task_times,
            TemporaryDirectory(prefix="servers-", dir=bench.folder) as name,
            contextlib.ExitStack() as stack,
        ):
            folder = Path(name)
            variables = tree.environment()
            if kept:
                variables["QTASKS_RESULTS"] = f"sqlite:///{folder / 'results.db'}"
            servers = QTasksServers(folder, task_times, variables)
            if behind_nginx:
                servers.front = stack.enter_context(nginx.before(servers.app_port, folder))
            session = TreeSession(tree, servers, bench.say)
            stack.callback(session.stop)
            servers.start_broker()
            yield session

    how = "broker and dispatcher, one process each; SQLite, fsync before a call is answered; signed; async tasks"
    if behind_nginx:
        return Candidate("nginx", nginx.version(), "the same; nginx before the dispatcher", open_session, True)
    return Candidate(tree.name, tree.version, how, open_session, True)
