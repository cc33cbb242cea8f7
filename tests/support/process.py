"""The commands of the package as processes, whose output is read line by line."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

QTASKS = str(Path(sys.executable).with_name("qtasks"))
PATIENCE_S = 20.0


def environment(**variables: str) -> dict[str, str]:
    """The environment of this process without settings of QStash and qtasks, plus `variables`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("QSTASH_", "QTASKS_"))}
    return {**inherited, "PYTHONUNBUFFERED": "1", **variables}


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str


def qtasks(*arguments: str, folder: Path, **variables: str) -> Done:
    """Run a command to its end."""
    done = subprocess.run(
        [QTASKS, *arguments],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


class Process:
    """A running command; a thread collects its output, both streams together."""

    program: tuple[str, ...] = (QTASKS,)

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [*self.program, *arguments],
            cwd=folder,
            env=environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._fresh: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._collect, daemon=True).start()

    def _collect(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self._fresh.put(line.rstrip("\n"))
        self._fresh.put(None)

    def wait_for(self, text: str) -> str:
        """The next line that contains `text`."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                line = self._fresh.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                raise AssertionError(f"{text!r} did not appear; this did:\n" + "\n".join(self.lines))
            self.lines.append(line)
            if text in line:
                return line

    def stop(self, how: signal.Signals = signal.SIGINT) -> int:
        """Send the signal `how` if it runs, and wait for the end; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.finish()

    def finish(self) -> int:
        """Wait for the end; the exit status. Afterwards `lines` contains the complete output."""
        status = self.process.wait(PATIENCE_S)
        while (line := self._fresh.get(timeout=PATIENCE_S)) is not None:
            self.lines.append(line)
        return status

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def soon(check: Callable[[], bool], what: str, within_s: float = PATIENCE_S) -> float:
    """Call `check` again and again until it returns True; the seconds until then."""
    began = time.monotonic()
    while not check():
        assert time.monotonic() - began < within_s, f"{what}: not within {within_s:g} s"
    return time.monotonic() - began


@dataclass(frozen=True)
class Answer:
    """The answer of an HTTP server."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    """The header lines; their names are lower-case."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    method: str,
    url: str,
    *,
    token: str | None = None,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send one request; an answer with an error status is returned, too."""
    lines = {**({} if token is None else {"Authorization": f"Bearer {token}"}), **(headers or {})}
    request = urllib.request.Request(url, method=method, data=body, headers=lines)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return Answer(answer.status, answer.read(), _lower(answer.headers.items()))
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read(), _lower(error.headers.items()))


def _lower(lines: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name.lower(): value for name, value in lines}
