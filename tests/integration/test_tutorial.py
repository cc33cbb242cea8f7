"""The tutorial, done as its reader does it: files are written, servers started, commands run, outputs compared."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.process import PATIENCE_S, QTASKS, Process, ask, environment, soon
from tests.support.proxy_server import ProxyServer
from tests.support.servers import free_port

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL)
PRINTS = re.compile(r"^ *print\(.*\)  # (.*)$", flags=re.MULTILINE)
SET_UP = ("python3 -m venv", "pip install", "sudo nginx")


class Reader:
    """Somebody in an empty folder who does what the page says. `output` is that of the last command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = ""
        self.variables: dict[str, str] = {}
        self._servers = ExitStack()
        self._dev: Process | None = None
        self._ports = {port: str(free_port()) for port in ("8080", "8000", "8088")}

    def close(self) -> None:
        self._dev = None
        self._servers.close()

    def python(self, text: str) -> None:
        """A block with a name is a file, any other a script."""
        if (name := re.match(r"# (\w+\.py)\n", text)) is not None:
            self.write(name[1], text)
            return
        done = self._finished([sys.executable, "-c", text])
        assert done.splitlines() == PRINTS.findall(text)

    def write(self, name: str, text: str) -> None:
        """Write a file, and wait until `qtasks dev` has read it, if it runs."""
        (self.folder / name).write_text(text, encoding="utf-8")
        if self._dev is not None:
            self._dev.wait_for("reloaded ")

    def command(self, line: str) -> None:
        line = self._on_free_ports(line)
        if line.startswith("set -a; . ./.env"):
            lines = self._on_free_ports((self.folder / ".env").read_text()).splitlines()
            lines = [each for each in lines if not each.startswith("#")] + line.partition("export ")[2].split()
            self.variables = dict(each.split("=", 1) for each in lines)
        elif line.startswith("export "):
            self.variables = dict(each.split("=", 1) for each in line.split()[1:])
        elif line.startswith("qtasks dev"):
            self._serve("dev", *line.split()[2:], "--port", self._ports["8080"], "--app-port", self._ports["8000"])
        elif line == "qtasks broker":
            self._serve("broker", "--port", self._ports["8080"], goes_on=True)
        elif line.startswith("qtasks run"):
            self._serve("run", *line.split()[2:], "--port", self._ports["8000"], goes_on=True)
        elif line.startswith("sudo cp shop.conf"):
            self._start_nginx((self.folder / "shop.conf").read_text())
        else:
            words, _, file = line.partition(" > ")
            program, *arguments = shlex.split(words)
            known = {"qtasks": [QTASKS], "pytest": [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]}
            if program == "qtasks" and arguments[:2] == ["broker", "init"]:
                self.close()  # the page says so
            self.output = self._finished([*known.get(program, [program]), *arguments], status=None)
            if file:
                (self.folder / file).write_text(self.output)

    def shown(self, text: str) -> None:
        """Each line of the page is in the output of the last command; three dots stand for anything."""
        for line in text.splitlines():
            pattern = ".*".join(map(re.escape, line.split("...")))
            assert re.search(pattern, self.output), f"{line!r} is not in {self.output!r}"

    def _serve(self, command: str, *arguments: str, goes_on: bool = False) -> None:
        if not goes_on:
            self.close()
        server = Process(self.folder, command, *arguments, **self.variables)
        self._servers.enter_context(server)
        self._servers.callback(server.stop)
        self._dev = server if command == "dev" else None
        server.wait_for({"dev": "  store ", "broker": "is running at", "run": "reached as"}[command])

    def _start_nginx(self, site: str) -> None:
        site = site.replace("listen 8088;", f"listen 127.0.0.1:{self._ports['8088']};")
        nginx = ProxyServer(
            self.folder, site, certificate=self.folder, ports={}, behind={8000: int(self._ports["8000"])}
        )
        self._servers.enter_context(nginx)
        soon(lambda: _answers(f"http://127.0.0.1:{self._ports['8088']}/docs"), "nginx passes requests on")

    def _on_free_ports(self, text: str) -> str:
        return re.sub(r"(?<=127\.0\.0\.1:)\d+", lambda port: self._ports[port[0]], text)

    def _finished(self, command: list[str], *, status: int | None = 0) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment(**self.variables),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=2 * PATIENCE_S,
            check=False,
        )
        assert status is None or done.returncode == status, done.stdout
        return done.stdout


def _answers(url: str) -> bool:
    try:
        return ask("GET", url).status == 200
    except OSError:
        return False


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    started = Reader(tmp_path)
    yield started
    started.close()


def test_the_tutorial_works_from_its_first_to_its_last_step(reader: Reader) -> None:
    assert len(BLOCKS) > 30
    for language, text in BLOCKS:
        if language == "python":
            reader.python(text)
        elif language == "text":
            reader.shown(text)
        elif language in ("nginx", "toml"):
            (reader.folder / text.split()[1]).write_text(text)  # its first line is a comment with its name
        else:
            for line in text.strip().splitlines():
                if line.startswith("qtasks dlq retry"):  # the page says to open the bank before
                    bank = (reader.folder / "payments.py").read_text()
                    reader.write("payments.py", bank.replace("bank_is_open = False", "bank_is_open = True"))
                if not line.startswith(SET_UP):
                    reader.command(line)


def test_it_has_ten_steps() -> None:
    assert re.findall(r"^## (\d+)\. ", PAGE, flags=re.MULTILINE) == [str(step) for step in range(1, 11)]
