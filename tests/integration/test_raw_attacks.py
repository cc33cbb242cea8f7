"""Both servers, attacked by clients without credentials: they stay small and quick, and others do not notice."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.machine import usage
from qtasks.protocol.development import USERS
from tests.support.process import Process, ask, environment
from tests.support.servers import Dispatcher

HEALTHY = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
GROWTH_MB = 90
"""What the server may hold for strangers: 32 MiB in connections, twice that in bodies, and what the allocator keeps."""


class LimitedServer(Process):
    """A server of `kind` with short deadlines."""

    program = (sys.executable, "-m", "tests.support.limited_server")

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        super().__init__(folder, kind, str(folder), PYTHONPATH=str(Path(__file__).parents[2]))
        self.port = int(self.wait_for("ready").split()[1])


@pytest.fixture(scope="module", params=["broker", "dispatcher"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LimitedServer]:
    """At the end of all attacks it stops as it should, and has said nothing of errors."""
    with LimitedServer(request.param, tmp_path_factory.mktemp("server")) as started:
        yield started
        started.process.terminate()
        assert started.finish() == 0
        assert "Traceback" not in started.output
        assert "accepted" not in started.output


def spans(port: int, attacker: subprocess.Popen[str]) -> list[float]:
    """How long each request of an ordinary client took while `attacker` ran, seconds."""
    measured: list[float] = []
    while attacker.poll() is None:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            for _ in range(20):
                began = time.perf_counter()
                connection.sendall(HEALTHY)
                assert connection.recv(65536)[:9] == b"HTTP/1.1 "
                measured.append(time.perf_counter() - began)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    attacker.wait(0.002)
    return sorted(measured)


def busy() -> float:
    """How many times as long everything takes on this machine, because it has more to do than it has processors."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def check(server: LimitedServer, seed: int, connections: int) -> None:
    before = usage(server.process.pid).resident_mb
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.raw_attacks", str(server.port), str(seed), str(connections)],
        env=environment(PYTHONPATH=str(Path(__file__).parents[2])),
        stdout=subprocess.PIPE,
        text=True,
    ) as attacker:
        measured = spans(server.port, attacker)
        assert attacker.stdout is not None
        result = json.loads(attacker.stdout.read())
    statuses = {int(status): count for status, count in result["statuses"].items()}
    assert result["left_open"] == {}
    assert {status for status in statuses if status >= 500} <= {503}, statuses
    assert {400, 408, 431} <= set(statuses)
    assert not set(statuses) & {201, 202}
    assert measured[int(len(measured) * 0.99)] < 0.1 * busy(), f"{len(measured)} requests"
    assert usage(server.process.pid).peak_mb - before < GROWTH_MB
    if server.kind == "broker":
        answer = ask("GET", f"http://127.0.0.1:{server.port}/v2/events", token=USERS[0].token)
        assert answer.json["events"] == [], "a token in a trailer field was accepted"


def test_strangers_get_nothing_keep_nothing_and_delay_no_other_client(server: LimitedServer) -> None:
    check(server, seed=1, connections=66)


def test_connections_that_say_nothing_take_the_place_of_no_other(server: LimitedServer) -> None:
    """Three times as many as the server keeps; each new client is served, and descriptors remain for its files."""
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
        for _ in range(20):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
            client.sendall(HEALTHY)
            assert client.recv(65536)[:9] == b"HTTP/1.1 "
        assert len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())) < 150


@pytest.mark.release
@pytest.mark.parametrize("seed", range(10))
def test_many_more_strangers_get_nothing_either(server: LimitedServer, seed: int) -> None:
    check(server, seed=100 + seed, connections=3_000)


def test_a_dispatcher_without_the_parser_says_at_its_start_that_it_has_no_limits(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text("from qtasks import task\n\n@task\ndef work() -> None: ...\n")
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['httptools'] = None\n")
    with Dispatcher(tmp_path, PYTHONPATH=str(tmp_path)) as dispatcher:
        dispatcher.wait_for("httptools is not installed, so slow clients and endless requests have no limits here")
        dispatcher.started()
        assert ask("POST", dispatcher.url("work"), body=b"{}").status == 401
        assert dispatcher.stop() == 0
