"""`qtasks broker` and `qtasks run` as an operator starts them: separate processes on free ports."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any, Self

from tests.support.process import Answer, Process, ask, qtasks

TOKEN = "token-of-the-operator"
CURRENT, NEXT = "sig_" + "c" * 28, "sig_" + "n" * 28
SECRETS = {"QSTASH_TOKEN": TOKEN, "QSTASH_CURRENT_SIGNING_KEY": CURRENT, "QSTASH_NEXT_SIGNING_KEY": NEXT}
"""Credentials other than the public ones, as environment variables."""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class BrokerServer(Process):
    """A running `qtasks broker`. Without `secrets`, `qtasks broker init` must have created its database."""

    def __init__(
        self, folder: Path, *arguments: str, token: str = TOKEN, secrets: bool = True, **variables: str
    ) -> None:
        self.token = token
        super().__init__(
            folder,
            "broker",
            *(() if "--port" in arguments else ("--port", "0")),
            *arguments,
            **({**SECRETS, **variables} if secrets else variables),
        )

    def started(self) -> Self:
        match = re.search(r"http://\S+:(\d+)", self.wait_for("qtasks broker is running at"))
        assert match is not None
        self.port = int(match[1])
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """Send a request with the token; header names have underscores in place of hyphens."""
        lines = {name.replace("_", "-"): value for name, value in headers.items()}
        return ask(method, self.url + path, token=self.token, body=body, headers=lines)

    def publish(self, url: str, body: bytes = b"", **headers: str) -> str:
        """Publish a message; its id."""
        answer = self.ask("POST", f"/v2/publish/{url}", body, **headers)
        assert answer.status == 201, answer.body
        return str(answer.json["messageId"])

    def log(self, message_id: str) -> list[dict[str, Any]]:
        """The log entries of a message, oldest first."""
        answer = self.ask("GET", f"/v2/logs?order=earliestFirst&messageId={message_id}")
        entries: list[dict[str, Any]] = answer.json["logs"]
        return entries

    def states(self, message_id: str) -> list[str]:
        return [entry["state"] for entry in self.log(message_id)]


class Dispatcher(Process):
    """A running `qtasks run` of the `tasks.py` in `folder`: `broker` delivers to it, results are in a file."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        broker: BrokerServer | None = None,
        port: int | None = None,
        **variables: str,
    ) -> None:
        self.port = port or free_port()
        self.variables = {
            **SECRETS,
            "QTASKS_BASE_URL": f"http://127.0.0.1:{self.port}/qtasks",
            "QTASKS_RESULTS": f"sqlite:///{folder / 'results.db'}",
            **({} if broker is None else {"QSTASH_URL": broker.url, "QSTASH_TOKEN": broker.token}),
            **variables,
        }
        super().__init__(folder, "run", "tasks.py", "--port", str(self.port), *arguments, **self.variables)

    def started(self) -> Self:
        self.wait_for("qtasks run tasks")
        return self

    def send(self, *arguments: str) -> str:
        """Run `qtasks send`; its output."""
        done = qtasks("send", *arguments, folder=self.folder, **self.variables)
        assert done.status == 0, done.err
        return done.out

    def url(self, task: str) -> str:
        return f"http://127.0.0.1:{self.port}/qtasks/{task}"


def half_a_request(port: int, data: bytes) -> socket.socket:
    """A connection on which the rest of a request is never sent."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(data)
    return connection
