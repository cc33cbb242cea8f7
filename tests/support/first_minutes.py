"""The first five minutes of a person, timed: `python first_minutes.py QTASKS FOLDER NETWORK` prints them as JSON.

With NETWORK `none` this process has a network of its own with nothing but its loopback interface, which it brings up;
with `guarded` its Python programs refuse to connect to any other machine (`network_guard`). Needs nothing but Python.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

PATIENCE_S = 100.0
ELSEWHERE = ("192.0.2.1", 443)
"""An address that no machine has (RFC 5737)."""
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


def bring_loopback_up() -> None:
    with socket.socket() as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def reaches_others() -> bool:
    """True if a connection to another machine is as much as begun."""
    with socket.socket() as outside:
        outside.setblocking(False)
        try:
            return outside.connect_ex(ELSEWHERE) in (0, errno.EINPROGRESS)
        except PermissionError:  # of the guard
            return False


def answer(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
        assert response.status == 200
        content: bytes = response.read()
        return content


class FirstMinutes:
    """A folder, the commands that a person types there, and when each has done what they wait for."""

    def __init__(self, qtasks: str, folder: Path, ports: tuple[str, ...]) -> None:
        self._qtasks = qtasks
        self._folder = folder
        self._ports = ports
        self._start_s = time.monotonic()
        self.commands: list[str] = []
        self.seconds: dict[str, float] = {}

    def _note(self, what: str) -> None:
        self.seconds[what] = round(time.monotonic() - self._start_s, 3)

    def create(self) -> None:
        self.commands.append("qtasks new hello && cd hello && qtasks dev")
        subprocess.run([self._qtasks, "new", "hello"], cwd=self._folder, check=True, capture_output=True)
        self._note("project made")

    @contextlib.contextmanager
    def running(self) -> Any:
        """Run `qtasks dev`; its output, and the address of the console from its first line."""
        dev = subprocess.Popen(
            [self._qtasks, "dev", *self._ports],
            cwd=self._folder / "hello",
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        watchdog = threading.Timer(PATIENCE_S, dev.kill)
        watchdog.start()
        try:
            assert dev.stdout is not None
            console = dev.stdout.readline().split()[-1]
            self._note("console printed")
            yield dev.stdout, console
            dev.send_signal(signal.SIGINT)
            dev.stdout.read()
            assert dev.wait() == 0
        finally:
            watchdog.cancel()
            dev.kill()

    def send(self) -> str:
        command = ["send", "greet", "Ada", "--wait"]
        self.commands.append(f"qtasks {' '.join(command)}")
        done = subprocess.run(
            [self._qtasks, *command], cwd=self._folder / "hello", check=True, capture_output=True, text=True
        )
        self._note("result printed")
        return done.stdout.strip()

    def wait_for_task(self, output: Any) -> str:
        """The line of the first task that is done."""
        line = next(line for line in output if "'Hello, Ada!'" in line)
        self._note("task done, in the terminal")
        return str(line.rstrip())

    def look(self, console: str) -> int:
        """Open the page; how many deliveries its overview shows when it has counted all."""
        assert b"<!doctype html>" in answer(console).lower()
        while True:
            overview = json.loads(answer(f"{console}console/api/overview"))
            delivered: int = sum(point["delivered"] for point in overview["series"]["points"])
            if delivered or time.monotonic() - self._start_s > PATIENCE_S:
                self._note("shown by the console")
                return delivered


def main() -> None:
    qtasks, folder, network = sys.argv[1:]
    if network == "none":
        bring_loopback_up()
    # Alone in its network, it types what a person types; elsewhere another program may have the usual ports.
    person = FirstMinutes(qtasks, Path(folder), () if network == "none" else ("--port", "0", "--app-port", "0"))
    isolated = not reaches_others()
    person.create()
    with person.running() as (output, console):
        result = person.send()
        line = person.wait_for_task(output)
        delivered = person.look(console)
    facts = {"commands": person.commands, "seconds": person.seconds, "console": console, "result": result}
    sys.stdout.write(json.dumps({**facts, "line": line, "delivered": delivered, "isolated": isolated}))


if __name__ == "__main__":
    main()
