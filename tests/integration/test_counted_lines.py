"""A stranger without any credential cannot fill the log of a server."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.support.process import ask
from tests.support.servers import BrokerServer, Dispatcher

MANY = 50
MALFORMED = b"GARBAGE\r\n\r\n"
UPGRADE = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
TASKS = "from qtasks import task\n\n@task\ndef add(a: int, b: int) -> int:\n    return a + b\n"


def exchange(port: int, request: bytes) -> None:
    """Send a request on a connection of its own, and wait for the response."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        connection.recv(65536)


def test_a_dispatcher_counts_what_strangers_send(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    with Dispatcher(tmp_path) as dispatcher:
        dispatcher.started()
        for number in range(MANY):
            exchange(dispatcher.port, MALFORMED)
            exchange(dispatcher.port, UPGRADE)
            url = dispatcher.url(f"t{number}")
            assert ask("POST", url, body=b"x", headers={"Upstash-Signature": f"a.b.c{number}"}).status == 401
            assert ask("POST", url, body=b"x").status == 401
        dispatcher.stop()
        strangers = [line for line in dispatcher.lines if "qtasks run" not in line]
    assert 0 < len(strangers) <= 6, dispatcher.output


def test_a_broker_counts_what_strangers_send(tmp_path: Path) -> None:
    with BrokerServer(tmp_path) as broker:
        broker.started()
        for number in range(MANY):
            exchange(broker.port, MALFORMED)
            exchange(broker.port, UPGRADE)
            assert ask("GET", f"{broker.url}/v2/keys", token=f"guess-{number}").status == 401
            assert ask("GET", f"{broker.url}/v2/keys", headers={"Host": f"h{number}.evil.example"}).status == 421
        broker.stop()
        strangers = [line for line in broker.lines if "qtasks broker is running" not in line]
    assert len(strangers) <= 4, broker.output
