"""A peer as a candidate: its worker, and its part of a service of this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks import machine, processes, waiting
from benchmarks.bench import MAX_TASKS, Bench
from benchmarks.comparison import candidate
from benchmarks.comparison.candidate import Candidate, NotOfferedError, Produced, Session
from benchmarks.comparison.produce import How, Order
from benchmarks.peers import environments
from benchmarks.peers.apps import settings
from benchmarks.peers.catalogue import PEERS, Command, Peer
from benchmarks.peers.environments import Environment, UnavailableError
from benchmarks.peers.services import Services
from benchmarks.processes import Program
from benchmarks.task_times import PATH_VARIABLE, TaskTimes
from benchmarks.waiting import Say

_WARM_UP: Final = 8
_SETTLE_S: Final = 1.0
"""Pause after the first tasks: a second process of the worker may still be starting."""


class PeerSession:
    """One peer at work. `begin` it, and `end` it."""

    def __init__(
        self,
        peer: Peer,
        environment: Environment,
        services: Services,
        task_times: TaskTimes,
        folder: Path,
        say: Say,
        *,
        kept: bool,
    ) -> None:
        self.task_times = task_times
        self.naps = peer.naps
        self._peer = peer
        self._environment = environment
        self._services = services
        self._folder = folder
        self._say = say
        self._workers: list[Program] = []
        results = {settings.RESULTS: "1"} if kept else {}
        self._variables = processes.environment(
            **{
                PATH_VARIABLE: str(task_times.path),
                settings.REDIS: services.redis,
                settings.POSTGRES: services.postgres,
                "PGQUEUER_SCHEMA": "qtasks_benchmarks",
                **results,
            }
        )

    def begin(self) -> None:
        """Create what the peer needs in its service."""
        for command in self._peer.prepare:
            self._program(command, "prepare").finish(processes.START_S)

    def end(self) -> None:
        """Stop the worker and remove everything from the service."""
        for worker in self._workers:
            worker.stop()
        for command in self._peer.clean:
            self._program(command, "clean").finish(processes.START_S)
        if self._peer.service == "redis":
            self._services.empty_redis()

    def start(self, work: str) -> None:
        """Start the worker and run a few first tasks."""
        self._start_worker(work)
        self.wait(self.produce("one by one", "noop", _WARM_UP).tasks)
        waiting.pause(_SETTLE_S)

    def release(self, work: str, count: int) -> range:
        """Store a backlog, then start the worker."""
        produced = self.produce("backlog", work, count)
        self._start_worker(work)
        return produced.tasks

    def produce(self, how: How, work: str, count: int, *, per_s: float = 0) -> Produced:
        """Call from one process of the peer's own interpreter."""
        numbers = self.task_times.reserve(count + 1)
        order = Order(self._peer.module, how, work, numbers.start, len(numbers), per_s)
        python = self._environment.program("python")
        return candidate.produce(python, order, self._variables, self._folder)

    def wait(self, tasks: range) -> None:
        """Return when all of `tasks` are done."""
        try:
            waiting.done(self.task_times, tasks, self._say, check=self.check)
        except TimeoutError as error:
            tails = (f"  {worker.name}:\n{worker.tail()}" for worker in self._workers)
            raise TimeoutError("\n".join((str(error), *tails))) from None

    def check(self) -> None:
        """Raise ProgramError when the worker has ended."""
        for worker in self._workers:
            worker.check()

    def cpu_s(self) -> float:
        """Processor time of the worker's processes, and of Redis; that of PostgreSQL is not known."""
        served_s = self._services.redis_cpu_s() if self._peer.service == "redis" else 0.0
        return served_s + sum(machine.cpu_s(pid) for pid in self._pids())

    def memory_mb(self) -> float:
        """Memory of the worker's processes."""
        return machine.shared_out_mb(self._pids())

    def _pids(self) -> list[int]:
        return [pid for worker in self._workers for pid in machine.family(worker.pid)]

    def _start_worker(self, work: str) -> None:
        napping = self._peer.napping if work == "nap" else None
        self._workers.append(self._program(napping or self._peer.worker, "worker"))

    def _program(self, command: Command, what: str) -> Program:
        services = {"redis": self._services.redis, "postgres": self._services.postgres}
        name, *arguments = (part.format(**services) for part in command)
        return Program(
            f"{self._peer.name}, {what}",
            [self._environment.program(name), *arguments],
            self._variables,
            log=self._folder / f"{what}.log",
        )


def _of(peer: Peer, environment: Environment, services: Services, bench: Bench) -> Candidate:
    @contextlib.contextmanager
    def open_session(kept: bool) -> Iterator[Session]:
        if kept and not peer.keeps_results:
            raise NotOfferedError(f"{peer.name} keeps no results")
        with (
            TaskTimes.fresh(MAX_TASKS) as task_times,
            TemporaryDirectory(prefix=f"{peer.name}-", dir=bench.folder) as folder,
            contextlib.ExitStack() as stack,
        ):
            session = PeerSession(peer, environment, services, task_times, Path(folder), bench.say, kept=kept)
            stack.callback(session.end)
            session.begin()
            yield session

    service = services.redis_how if peer.service == "redis" else services.postgres_how
    return Candidate(peer.name, environment.version, f"{service}; {peer.how}", open_session)


@contextlib.contextmanager
def available(
    names: Sequence[str], services: Services, folder: Path, bench: Bench, *, python: str
) -> Iterator[list[Candidate]]:
    """Those of `names` that can run here; prints the reason for each other one. Services are left as they were.

    `python` is the interpreter for peers that need a newer one than this.
    """
    runnable: list[Candidate] = []
    with contextlib.ExitStack() as stack:
        for name in names:
            peer = PEERS[name]
            try:
                services.claim(peer.service)
                stack.callback(services.release, peer.service)
                environment = environments.prepare(peer, folder, bench.say, python)
            except UnavailableError as error:
                print(f"{name} is left out: {error}", flush=True)
                continue
            runnable.append(_of(peer, environment, services, bench))
        yield runnable
