"""Our side: a broker and a dispatcher as separate processes with durable settings, from the command line."""

from __future__ import annotations

import contextlib
import http.client
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks import app, load, processes, task_times, waiting
from benchmarks.load import Target
from benchmarks.processes import HOST, Program
from benchmarks.task_times import TaskTimes
from benchmarks.waiting import Say
from qtasks.tasks.app import DEFAULT_PREFIX, QTasks

QTASKS: Final = (sys.executable, "-c", "from qtasks.cli import main; main()")
"""The `qtasks` command of this interpreter, installed or not."""

_ANSWER_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Secrets:
    """A token and signing keys of our own: nothing but the development servers takes the public ones."""

    token: str = field(default_factory=lambda: f"bench_{secrets.token_hex(16)}", repr=False)
    current: str = field(default_factory=lambda: f"sig_{secrets.token_hex(16)}", repr=False)
    next: str = field(default_factory=lambda: f"sig_{secrets.token_hex(16)}", repr=False)


class Own:
    """A broker and its dispatcher. Made by `own`, which ends both."""

    def __init__(self, folder: Path, times: TaskTimes) -> None:
        self.folder = folder
        self.times = times
        self.db = folder / "broker.db"
        self.secrets = Secrets()
        self.port = processes.free_port()
        self._app_port = processes.free_port()
        self.base_url = f"http://{HOST}:{self._app_port}{DEFAULT_PREFIX}"
        self._broker: Program | None = None
        self._dispatcher: Program | None = None

    @property
    def url(self) -> str:
        """Of the broker."""
        return f"http://{HOST}:{self.port}"

    @property
    def target(self) -> Target:
        """Where a load goes."""
        return Target(self.port, self.secrets.token, self.base_url)

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
        """The settings of broker, dispatcher and publishing process."""
        return processes.environment(
            **{task_times.VARIABLE: str(self.times.path)},
            QSTASH_URL=self.url,
            QSTASH_TOKEN=self.secrets.token,
            QSTASH_CURRENT_SIGNING_KEY=self.secrets.current,
            QSTASH_NEXT_SIGNING_KEY=self.secrets.next,
            QTASKS_BASE_URL=self.base_url,
        )

    def start_broker(self) -> None:
        """Start the broker; it serves on return."""
        command = (*QTASKS, "broker", "--port", str(self.port), "--db", str(self.db))
        self._broker = Program("the broker", command, self.environment, log=self.folder / "broker.log")
        self._broker.wait_until(lambda: answers(self.port, "/readyz") == 200)

    def start_dispatcher(self) -> None:
        """Start the dispatcher; it serves on return."""
        command = (*QTASKS, "run", "benchmarks.app:tasks", "--port", str(self._app_port))
        self._dispatcher = Program("the dispatcher", command, self.environment, log=self.folder / "dispatcher.log")
        self._dispatcher.wait_until(lambda: answers(self._app_port, f"{DEFAULT_PREFIX}/noop") is not None)

    def stop(self) -> None:
        """End both. Idempotent."""
        for program in (self._dispatcher, self._broker):
            if program is not None:
                program.stop()

    def producer(self) -> QTasks:
        """The same tasks, to be sent to this broker from here. Close it."""
        return app.declare(QTasks(url=self.url, token=self.secrets.token, base_url=self.base_url))

    def warm(self) -> None:
        """Run one task through everything, so that no measurement includes what happens only once."""
        tasks = self.times.take(1)
        load.publish(self.target, load.requests(self.target, "noop", tasks), in_flight=1)
        self.wait(tasks, lambda _: None)

    def wait(self, tasks: range, say: Say, *, poll_s: float = 0.02) -> None:
        """Return when all of `tasks` are done. Raises TimeoutError, or ProgramError when one of the two has ended."""

        def check() -> None:
            self.broker.check()
            self.dispatcher.check()

        waiting.done(self.times, tasks, say, check=check, poll_s=poll_s)


@contextlib.contextmanager
def own(parent: Path, times: TaskTimes, *, dispatcher: bool = True) -> Iterator[Own]:
    """A fresh broker, with `dispatcher` also a warm dispatcher, in a new folder below `parent`."""
    with TemporaryDirectory(prefix="own-", dir=parent) as folder:
        pair = Own(Path(folder), times)
        try:
            pair.start_broker()
            if dispatcher:
                pair.start_dispatcher()
                pair.warm()
            yield pair
        finally:
            pair.stop()


def answers(port: int, path: str) -> int | None:
    """The status a server on this machine answers a GET with; None when there is no answer."""
    connection = http.client.HTTPConnection(HOST, port, timeout=_ANSWER_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
