"""The qtasks broker and dispatcher, as separate processes with durable settings, started by the command line."""

from __future__ import annotations

import contextlib
import http.client
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks import app, load, processes, waiting
from benchmarks.load import Target
from benchmarks.processes import HOST, Program
from benchmarks.task_times import PATH_VARIABLE, TaskTimes
from benchmarks.waiting import Say
from qtasks.tasks.app import DEFAULT_PREFIX, QTasks

QTASKS: Final = (sys.executable, "-c", "from qtasks.cli import main; main()")
"""The `qtasks` command of this interpreter, installed or not."""

_ANSWER_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Credentials:
    """A fresh token and fresh signing keys: `qtasks broker` and `qtasks run` refuse the public ones."""

    token: str = field(default_factory=lambda: f"bench_{secrets.token_hex(16)}", repr=False)
    current: str = field(default_factory=lambda: f"sig_{secrets.token_hex(16)}", repr=False)
    next: str = field(default_factory=lambda: f"sig_{secrets.token_hex(16)}", repr=False)


class QTasksServers:
    """A broker and its dispatcher. Made by `run_servers`, which stops both."""

    def __init__(self, folder: Path, task_times: TaskTimes, variables: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._variables = dict(variables or {})
        self.task_times = task_times
        self.db = folder / "broker.db"
        self.app = app.__name__
        """The module of the application."""
        self.credentials = Credentials()
        self.port = processes.free_port()
        self.app_port = processes.free_port()
        self.front = self.app_port
        """The port at which deliveries arrive: another one if a proxy stands before the dispatcher."""
        self._broker: Program | None = None
        self._dispatcher: Program | None = None

    @property
    def url(self) -> str:
        """URL of the broker."""
        return f"http://{HOST}:{self.port}"

    @property
    def base_url(self) -> str:
        """Base URL of the tasks."""
        return f"http://{HOST}:{self.front}{DEFAULT_PREFIX}"

    @property
    def target(self) -> Target:
        """Where a load goes."""
        return Target(self.port, self.credentials.token, self.base_url)

    @property
    def broker(self) -> Program:
        """The broker's process."""
        assert self._broker is not None, "the broker has not been started"
        return self._broker

    @property
    def dispatcher(self) -> Program:
        """The dispatcher's process."""
        assert self._dispatcher is not None, "the dispatcher has not been started"
        return self._dispatcher

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the broker, the dispatcher and every producer."""
        return processes.environment(
            **{PATH_VARIABLE: str(self.task_times.path), **self._variables},
            QSTASH_URL=self.url,
            QSTASH_TOKEN=self.credentials.token,
            QSTASH_CURRENT_SIGNING_KEY=self.credentials.current,
            QSTASH_NEXT_SIGNING_KEY=self.credentials.next,
            QTASKS_BASE_URL=self.base_url,
        )

    def start_broker(self) -> None:
        """Start the broker and wait until it is ready."""
        command = (*QTASKS, "broker", "--port", str(self.port), "--db", str(self.db))
        self._broker = self._program("the broker", command)
        self._broker.wait_until(lambda: answers(self.port, "/readyz") == 200)

    def start_dispatcher(self) -> None:
        """Start the dispatcher and wait until it answers."""
        command = (*QTASKS, "run", f"{self.app}:tasks", "--port", str(self.app_port))
        self._dispatcher = self._program("the dispatcher", command)
        self._dispatcher.wait_until(lambda: answers(self.app_port, f"{DEFAULT_PREFIX}/noop") is not None)

    def _program(self, name: str, command: Sequence[str]) -> Program:
        log = self.folder / f"{name.split()[-1]}.log"
        # In a folder without a `qtasks`: the variables say which one is imported.
        return Program(name, command, self.environment, log=log, folder=self.folder)

    def stop(self) -> None:
        """Stop both. Idempotent."""
        for program in (self._dispatcher, self._broker):
            if program is not None:
                program.stop()

    def producer(self) -> QTasks:
        """The same tasks, configured to publish to this broker from this process. The caller closes it."""
        return app.declare(QTasks(url=self.url, token=self.credentials.token, base_url=self.base_url))

    def warm(self) -> None:
        """Run one task through everything, so that first connections and imports are not measured."""
        tasks = self.task_times.reserve(1)
        load.publish(self.target, load.requests(self.target, "noop", tasks), in_flight=1)
        self.wait(tasks, lambda _: None)

    def wait(self, tasks: range, say: Say, *, poll_s: float = 0.02) -> None:
        """Return when all of `tasks` are done. Raises TimeoutError, or ProgramError if a server has ended."""

        def check() -> None:
            self.broker.check()
            self.dispatcher.check()

        waiting.done(self.task_times, tasks, say, check=check, poll_s=poll_s)


@contextlib.contextmanager
def run_servers(
    parent: Path, task_times: TaskTimes, *, dispatcher: bool = True, application: str = app.__name__
) -> Iterator[QTasksServers]:
    """A fresh broker and, with `dispatcher`, a warm dispatcher of a module, in a new folder below `parent`."""
    with TemporaryDirectory(prefix="servers-", dir=parent) as folder:
        servers = QTasksServers(Path(folder), task_times)
        servers.app = application
        try:
            servers.start_broker()
            if dispatcher:
                servers.start_dispatcher()
                servers.warm()
            yield servers
        finally:
            servers.stop()


def answers(port: int, path: str) -> int | None:
    """Status of the answer to a GET request to a server on this machine; None if there is no answer."""
    connection = http.client.HTTPConnection(HOST, port, timeout=_ANSWER_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
