"""Programs that a measurement starts and stops, by their process ids."""

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
_CONNECT_S: Final = 2.0
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
                start_new_session=True,  # a process group of its own, so that its children can be stopped with it
            )

    @property
    def pid(self) -> int:
        """Its process id, which is also the id of its process group."""
        return self._process.pid

    def wait_until(self, ready: Callable[[], bool], timeout_s: float = START_S) -> None:
        """Return once `ready` is true. Raises ProgramError if the program ends first or takes longer."""

        def answered() -> bool:
            self.check()
            return ready()

        try:
            waiting.until(answered, timeout_s, f"{self.name} started")
        except TimeoutError as error:
            raise ProgramError(f"{error}\n{self.tail()}") from None

    def check(self) -> None:
        """Raise ProgramError if it has ended."""
        if (status := self._process.poll()) is not None:
            raise ProgramError(f"{self.name} has ended with status {status}\n{self.tail()}")

    def finish(self, timeout_s: float) -> None:
        """Wait until it ends. Raises ProgramError if it fails or takes longer."""
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ProgramError(f"{self.name} still ran after {timeout_s:.0f} s\n{self.tail()}") from None
        if status != 0:
            raise ProgramError(f"{self.name} ended with status {status}\n{self.tail()}")

    def stop(self) -> None:
        """Stop it and its children: with SIGTERM, and with SIGKILL after `STOP_S`. Idempotent."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
        self.kill()

    def kill(self) -> None:
        """Kill it and its children at once (SIGKILL). Idempotent."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def tail(self) -> str:
        """The last lines of its output."""
        lines = self._log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        return "\n".join(f"    {line}" for line in lines)


@contextlib.contextmanager
def running(program: Program) -> Iterator[Program]:
    """A program that is stopped when the block ends, also after an exception."""
    try:
        yield program
    finally:
        program.stop()


def free_port() -> int:
    """A TCP port on which no process listens now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Whether a process of this machine accepts connections on a TCP port."""
    try:
        socket.create_connection((HOST, port), timeout=_CONNECT_S).close()
    except OSError:
        return False
    return True


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without settings of qtasks, with this package importable, and with `extra`.

    Modules are compiled once, as those of an installed package are.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("QSTASH_", "QTASKS_"))}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPATH": str(ROOT), **extra}
