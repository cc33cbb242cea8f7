"""Programs that a measurement starts, and ends again by their process ids."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks import waiting

ROOT: Final = Path(__file__).resolve().parent.parent
"""The folder that holds this package: programs started from here can import it."""

HOST: Final = "127.0.0.1"
START_S: Final = 30.0
STOP_S: Final = 20.0
_TAIL_LINES: Final = 12


class ProgramError(Exception):
    """A program did not start, ended early, or ended with an error."""


class Program:
    """A started program. Its output goes to a file, whose end is shown when something goes wrong."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        environment: Mapping[str, str],
        *,
        log: Path,
        folder: Path = ROOT,
    ) -> None:
        self.name = name
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                env=dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own: what it starts can be ended with it
            )

    @property
    def pid(self) -> int:
        """Its process id, which is that of its group as well."""
        return self._process.pid

    def wait_until(self, ready: Callable[[], bool], timeout_s: float = START_S) -> None:
        """Return once `ready`. Raises ProgramError when the program ends before, or takes longer."""

        def answered() -> bool:
            self.check()
            return ready()

        try:
            waiting.until(answered, timeout_s, f"{self.name} started")
        except TimeoutError as error:
            raise ProgramError(f"{error}\n{self.tail()}") from None

    def check(self) -> None:
        """Raises ProgramError when it has ended."""
        if (status := self._process.poll()) is not None:
            raise ProgramError(f"{self.name} has ended with status {status}\n{self.tail()}")

    def finish(self, timeout_s: float) -> None:
        """Wait for it to end by itself. Raises ProgramError when it fails or takes longer."""
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ProgramError(f"{self.name} still ran after {timeout_s:.0f} s\n{self.tail()}") from None
        if status != 0:
            raise ProgramError(f"{self.name} ended with status {status}\n{self.tail()}")

    def stop(self) -> None:
        """End it and what it started: politely, and after `STOP_S` not. Idempotent."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
        self.kill()

    def kill(self) -> None:
        """End it and what it started at once, as by `kill -9`. Idempotent."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def tail(self) -> str:
        """The last lines it wrote."""
        lines = self._log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        return "\n".join(f"    {line}" for line in lines)


@contextlib.contextmanager
def running(program: Program) -> Iterator[Program]:
    """A program that is stopped at the end in any case."""
    try:
        yield program
    finally:
        program.stop()


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without settings of qtasks, with this package importable, and with `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("QSTASH_", "QTASKS_"))}
    return {**kept, "PYTHONPATH": str(ROOT), **extra}
