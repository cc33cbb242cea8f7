"""A client of the broker's API that sends requests exactly as written, raw bytes included."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass
from typing import Any

from qtasks.broker.core.values import AccountCredentials

PATIENCE_S = 5.0
LATER = (("Upstash-Delay", "1d"),)
"""A delay for messages that no test waits for: none of them is delivered."""

Lines = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The error text. Asserts that the answer is an error with a JSON body of the API."""
        assert 400 <= self.status < 500, self
        assert self.headers["content-type"] == "application/json"
        assert list(self.json) == ["error"]
        error = self.json["error"]
        return str(error["message"] if isinstance(error, dict) else error)  # the chat endpoint has OpenAI's form


@dataclass
class ApiClient:
    """Sends requests to a broker on the loopback port `port` as `user`."""

    port: int
    user: AccountCredentials

    def ask(
        self,
        method: str,
        target: str,
        headers: Lines = (),
        body: bytes | None = None,
        *,
        host: str | None = None,
        authorization: str | None = "",
        patience_s: float = PATIENCE_S,
    ) -> Answer:
        """Send one request, its target unchanged.

        `authorization` replaces the header with the user's token; None sends no such header.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=patience_s)
        try:
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", host if host is not None else f"127.0.0.1:{self.port}")
            if authorization is not None:
                connection.putheader("Authorization", authorization or f"Bearer {self.user.token}")
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            for name, value in headers:
                connection.putheader(name, value.encode())
            connection.endheaders(body)
            return read_answer(connection.getresponse())
        finally:
            connection.close()

    def publish(self, destination: str = "http://127.0.0.1:1/x", headers: Lines = LATER, body: bytes = b"") -> Answer:
        return self.ask("POST", f"/v2/publish/{destination}", headers, body)

    def raw(self, *pieces: bytes) -> tuple[list[Answer], bool]:
        """Send bytes; all answers to them, and whether the server closed the connection afterwards."""
        received = bytearray()
        closed = False
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as connection:
            connection.sendall(b"".join(pieces))
            try:
                while piece := connection.recv(65536):
                    received += piece
                    connection.settimeout(0.1)  # further answers would have arrived by then
                closed = True
            except TimeoutError:
                pass
            except ConnectionError:
                closed = True
        return split_answers(bytes(received)), closed

    def stored(self) -> list[str]:
        """The ids of all messages that the broker ever accepted from this user."""
        entries = self.ask("GET", "/v2/events?state=CREATED").json["events"]
        return [entry["messageId"] for entry in entries]


def split_answers(data: bytes) -> list[Answer]:
    answers = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        answers.append(Answer(int(first.split()[1]), headers, rest[:length]))
        data = rest[length:]
    return answers


def read_answer(response: http.client.HTTPResponse) -> Answer:
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


def head(method: str, api: ApiClient, *lines: str, target: str = "/v2/publish/http://127.0.0.1:1/x") -> bytes:
    fields = (
        f"Host: 127.0.0.1:{api.port}",
        f"Authorization: Bearer {api.user.token}",
        "Upstash-Delay: 1d",
        *lines,
    )
    return "\r\n".join((f"{method} {target} HTTP/1.1", *fields, "", "")).encode("latin-1")
