"""What is compared: this tree and each peer, behind one interface."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Protocol

from benchmarks import backlog, machine, processes, waiting
from benchmarks.bench import Bench
from benchmarks.peers import environments
from benchmarks.peers.apps import settings
from benchmarks.peers.catalogue import MANY_NAPS, PEERS, Command, Peer
from benchmarks.peers.environments import Environment, UnavailableError
from benchmarks.peers.services import Services
from benchmarks.processes import Program
from benchmarks.servers import QTasksServers
from benchmarks.task_times import PATH_VARIABLE, TaskTimes
from benchmarks.waiting import Say

THIS_TREE: Final = "qtasks"
_MAX_TASKS: Final = 500_000
_WARM_UP: Final = 8
_SETTLE_S: Final = 1.0
"""Pause after the first tasks: the second worker process may still be starting."""


class Session(Protocol):
    """A candidate at work, from a clean start to its end."""

    task_times: TaskTimes
    naps: int
    """Highest number of sleeping tasks in one measurement."""

    def start(self, work: str) -> None:
        """Start the workers for tasks of the kind `work` and run a few first tasks."""

    def release(self, work: str, count: int) -> range:
        """Store a backlog while no worker runs, then start it; returns when it starts."""
        ...

    def produce(self, work: str, count: int, pace: str = "0") -> range:
        """Enqueue from one process, one after the other; returns when all are sent. See `produce` for `pace`."""
        ...

    def wait(self, tasks: range) -> None:
        """Return when all of `tasks` are done. Raises TimeoutError, or ProgramError when a worker has ended."""

    def memory_mb(self) -> float:
        """Memory of its processes together, without the services of the peers."""
        ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """One participant of the comparison."""

    name: str
    version: str
    how: str
    """Its settings in words."""
    session: Callable[[], AbstractContextManager[Session]]


def this_tree(bench: Bench) -> Candidate:
    """This tree."""

    @contextlib.contextmanager
    def open_session() -> Iterator[Session]:
        with bench.servers() as servers:
            yield _QTasksSession(servers, bench.say)

    how = "broker and dispatcher, one process each; SQLite with fsync; async tasks; every delivery signed"
    return Candidate(THIS_TREE, "this tree", how, open_session)


def _of(peer: Peer, environment: Environment, services: Services, bench: Bench) -> Candidate:
    """A peer."""

    @contextlib.contextmanager
    def open_session() -> Iterator[Session]:
        with (
            TaskTimes.fresh(_MAX_TASKS) as task_times,
            TemporaryDirectory(prefix=f"{peer.name}-", dir=bench.folder) as folder,
            contextlib.ExitStack() as stack,
        ):
            session = _PeerSession(peer, environment, services, task_times, Path(folder), bench.say)
            stack.callback(session.end)
            session.begin()
            yield session

    return Candidate(peer.name, environment.version, peer.how, open_session)


class _QTasksSession:
    def __init__(self, servers: QTasksServers, say: Say) -> None:
        self.task_times = servers.task_times
        self.naps = MANY_NAPS
        self._servers = servers
        self._say = say

    def start(self, work: str) -> None:
        """Nothing to do: broker and dispatcher run already, and one dispatcher runs every kind of task."""

    def release(self, work: str, count: int) -> range:
        stored = backlog.fill(self._servers, work, count, self._say)
        stored.wait()
        return stored.tasks

    def produce(self, work: str, count: int, pace: str = "0") -> range:
        return _produce(
            Path(sys.executable),
            "qtasks_app",
            self._servers.environment,
            self.task_times,
            self._servers.folder,
            work,
            count,
            pace,
        )

    def wait(self, tasks: range) -> None:
        self._servers.wait(tasks, self._say)

    def memory_mb(self) -> float:
        return machine.shared_out_mb([self._servers.broker.pid, self._servers.dispatcher.pid])


class _PeerSession:
    def __init__(
        self, peer: Peer, environment: Environment, services: Services, task_times: TaskTimes, folder: Path, say: Say
    ) -> None:
        self.task_times = task_times
        self.naps = peer.naps
        self._peer = peer
        self._environment = environment
        self._services = services
        self._folder = folder
        self._say = say
        self._workers: list[Program] = []
        self._variables = processes.environment(
            **{
                PATH_VARIABLE: str(task_times.path),
                settings.REDIS: services.redis,
                settings.POSTGRES: services.postgres,
                "PGQUEUER_SCHEMA": "qtasks_benchmarks",
            }
        )

    def begin(self) -> None:
        """Create what the peer needs in its service."""
        for command in self._peer.prepare:
            self._program(command, "prepare").finish(processes.START_S)

    def end(self) -> None:
        """Stop the workers and remove everything from the service."""
        for worker in self._workers:
            worker.stop()
        for command in self._peer.clean:
            self._program(command, "clean").finish(processes.START_S)
        if self._peer.service == "redis":
            self._services.empty_redis()

    def wait(self, tasks: range) -> None:
        try:
            waiting.done(self.task_times, tasks, self._say, check=self._check)
        except TimeoutError as error:
            tails = (f"  {worker.name}:\n{worker.tail()}" for worker in self._workers)
            raise TimeoutError("\n".join((str(error), *tails))) from None

    def start(self, work: str) -> None:
        self._start_workers(work)
        tasks = self.produce("noop", _WARM_UP)
        self.wait(tasks)
        waiting.pause(_SETTLE_S)

    def release(self, work: str, count: int) -> range:
        tasks = self.produce(work, count, "fill")
        self._start_workers(work)
        return tasks

    def produce(self, work: str, count: int, pace: str = "0") -> range:
        python = self._environment.program("python")
        return _produce(python, self._peer.module, self._variables, self.task_times, self._folder, work, count, pace)

    def memory_mb(self) -> float:
        return machine.shared_out_mb([pid for worker in self._workers for pid in machine.family(worker.pid)])

    def _check(self) -> None:
        for worker in self._workers:
            worker.check()

    def _start_workers(self, work: str) -> None:
        napping = self._peer.napping if work == "nap" else None
        for place, command in enumerate(napping or self._peer.workers):
            self._workers.append(self._program(command, f"worker {place + 1}"))

    def _program(self, command: Command, what: str) -> Program:
        services = {"redis": self._services.redis, "postgres": self._services.postgres}
        name, *arguments = (part.format(**services) for part in command)
        return Program(
            f"{self._peer.name}, {what}",
            [self._environment.program(name), *arguments],
            self._variables,
            log=self._folder / f"{what.replace(' ', '-')}.log",
        )


def _produce(
    python: Path,
    module: str,
    variables: Mapping[str, str],
    task_times: TaskTimes,
    folder: Path,
    work: str,
    count: int,
    pace: str,
) -> range:
    """Run a producer to its end. Its first task, which opens the connection, is not returned."""
    first, *_ = tasks = task_times.reserve(count + 1)
    command = (python, "-m", "benchmarks.peers.produce", module, work, str(first), str(len(tasks)), pace)
    with processes.running(
        Program(f"the producer of {module}", command, variables, log=folder / "producer.log")
    ) as producer:
        producer.finish(waiting.limit_s(count))
    return tasks[1:]


@contextlib.contextmanager
def available(names: Sequence[str], services: Services, folder: Path, bench: Bench) -> Iterator[list[Candidate]]:
    """Those of `names` that can run here; prints the reason for each other one. Services are left as they were."""
    runnable: list[Candidate] = []
    with contextlib.ExitStack() as stack:
        for name in names:
            peer = PEERS[name]
            try:
                services.claim(peer.service)
                stack.callback(services.release, peer.service)
                environment = environments.prepare(peer, folder, bench.say)
            except UnavailableError as error:
                print(f"{name} is left out: {error}", flush=True)
                continue
            runnable.append(_of(peer, environment, services, bench))
        yield runnable
