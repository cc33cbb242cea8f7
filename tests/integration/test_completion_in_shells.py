"""The completion in a real bash, zsh and fish: what each offers behind the words that a person has typed."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.process import PATIENCE_S, QTASKS, environment, qtasks, soon
from tests.support.programs import program
from tests.support.servers import SECRETS, BrokerServer


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerServer]:
    """A broker with a queue, whose name a shell completes."""
    with BrokerServer(tmp_path_factory.mktemp("completed")) as running:
        running.started()
        body = b'{"queueName": "newsletters", "parallelism": 1}'
        assert running.ask("POST", "/v2/queues", body, Content_Type="application/json").status == 200
        yield running


def variables(folder: Path, broker: BrokerServer) -> dict[str, str]:
    path = f"{Path(QTASKS).parent}{os.pathsep}{os.environ['PATH']}"
    service = {"QSTASH_URL": broker.url, "QSTASH_TOKEN": SECRETS["QSTASH_TOKEN"]}
    return environment(**service, PATH=path, HOME=str(folder), TERM="dumb", LC_ALL="C.UTF-8")


def script_of(shell: str, folder: Path) -> Path:
    printed = qtasks("completion", shell, folder=folder)
    assert printed.status == 0, printed.err
    script = folder / f"completion.{shell}"
    script.write_text(printed.out)
    return script


def printed_by(*command: str, folder: Path, broker: BrokerServer) -> list[str]:
    done = subprocess.run(
        command, cwd=folder, env=variables(folder, broker), capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_bash_offers_commands_options_files_and_names(tmp_path: Path, broker: BrokerServer) -> None:
    script = script_of("bash", tmp_path)
    (tmp_path / "tasks.py").touch()

    def offered(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in words)
        program_text = (
            f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; "
            '_qtasks_completion qtasks; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        return printed_by(program("bash"), "--norc", "-c", program_text, folder=tmp_path, broker=broker)

    assert offered("qtasks", "mess") == ["messages"]
    assert "--dry-run" in offered("qtasks", "dlq", "retry", "--")
    # A service that is slow for a moment is given up: no name is offered then.
    soon(lambda: offered("qtasks", "queues", "pause", "news") == ["newsletters"], "the name is offered")


def test_fish_offers_them_with_their_descriptions(tmp_path: Path, broker: BrokerServer) -> None:
    script = script_of("fish", tmp_path)
    (tmp_path / "tasks.py").touch()

    def offered(line: str) -> list[str]:
        text = f"source {script}; complete -C '{line}'"
        return printed_by(program("fish"), "--no-config", "-c", text, folder=tmp_path, broker=broker)

    assert offered("qtasks mess") == ["messages\tSearch, look at, cancel and retry messages."]
    options = offered("qtasks dlq retry --")
    assert any(line.startswith("--dry-run\tPrint what would be touched, and") for line in options)
    soon(lambda: offered("qtasks queues pause news") == ["newsletters"], "the name is offered")
    assert any(line.startswith("tasks.py") for line in offered("qtasks dev ta"))


class Terminal:
    """A shell behind a terminal, on which a test types."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def type(self, keys: str, until: str) -> str:
        """Press the keys; what the shell has written when it matches `until`."""
        os.write(self._descriptor, keys.encode())
        written, deadline = "", time.monotonic() + PATIENCE_S
        while not re.search(until, written):
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{until!r} does not match what came:\n{written}"
            written += os.read(self._descriptor, 65_536).decode("utf-8", "replace")
        return written


@contextmanager
def typing(command: list[str], folder: Path, broker: BrokerServer) -> Iterator[Terminal]:
    main, other = pty.openpty()
    shell = subprocess.Popen(
        command,
        cwd=folder,
        env=variables(folder, broker),
        stdin=other,
        stdout=other,
        stderr=other,
        start_new_session=True,
    )
    os.close(other)
    try:
        yield Terminal(main)
    finally:
        shell.kill()
        shell.wait()
        os.close(main)


def test_zsh_completes_what_is_typed(tmp_path: Path, broker: BrokerServer) -> None:
    script = script_of("zsh", tmp_path)
    (tmp_path / "tasks.py").touch()
    clear = "\x15"
    with typing([program("zsh"), "-f", "-i"], tmp_path, broker) as terminal:
        terminal.type(f"autoload -Uz compinit; compinit -u -D; source {script}; echo re''ady\n", "ready\r")
        terminal.type("qtasks mess\t", "messages ")
        terminal.type(f"{clear}qtasks queues pau\t", "pause ")
        terminal.type(f"{clear}qtasks dlq retry --d\t", "--dry-run ")
        terminal.type(f"{clear}qtasks dev ta\t", "tasks.py")
