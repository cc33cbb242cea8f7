"""Anything at all, thousands of times: the broker refuses, or accepts, but never fails."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from qtasks.broker.api.api_request import ApiRequest, ApiResponse
from qtasks.broker.broker import Broker
from qtasks.broker.settings import BrokerSettings
from qtasks.protocol import wire
from qtasks.protocol.development import USERS
from tests.support.api_client import PATIENCE_S, ApiClient, Lines, head


class InProcess:
    """A broker that delivers nothing, called without a socket: fast enough for thousands of calls."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._broker = self._runner.run(Broker.open(BrokerSettings(path=":memory:")))

    def ask(self, method: str, path: str, query: str, headers: Lines, body: bytes) -> ApiResponse:
        async def read_body(limit: int) -> bytes:
            return body

        call = ApiRequest(method, path, query, headers, "127.0.0.1", read_body)
        return self._runner.run(self._broker.api.handle(call))

    def close(self) -> None:
        self._runner.run(self._broker.stop())
        self._runner.close()


@pytest.fixture(scope="module")
def in_process() -> Iterator[InProcess]:
    made = InProcess()
    yield made
    made.close()


ODD = [
    "",
    "0",
    "-1",
    "1e400",
    "NaN",
    "'",
    '"',
    "%",
    "%00",
    "%ff",
    "\x00",
    "é",
    "\ud800",
    "٣",
    "..",
    "//",
    "\\",
    "{}",
    "🙂",
]
OPTIONS = [
    *(field.header for field in wire.FIELDS),
    "Upstash-Flow-Control-Key",
    "Upstash-Flow-Control-Value",
    "Upstash-Forward-X",
    "Upstash-Forward-Host",
    "Upstash-Callback-Retries",
    "Upstash-Callback-Forward-A",
    "Upstash-Failure-Callback-Delay",
    "Upstash-Callback-Failure-Callback",
    "Upstash-Nonsense",
]
PARAMETERS = [
    "cursor",
    "count",
    "state",
    "url",
    "label",
    "fromDate",
    "toDate",
    "responseStatus",
    "messageIds",
    "dlqIds",
    "order",
    "qstash_token",
]


class RandomInput(random.Random):
    """Random input of a malicious or careless caller."""

    def visible(self) -> str:
        return "".join(chr(self.randrange(33, 127)) for _ in range(self.randrange(20)))

    def text(self) -> str:
        kinds = (
            lambda: self.choice(ODD),
            lambda: str(self.randrange(10 ** self.randrange(1, 25))) + self.choice(["", "s", "h", "d"]),
            lambda: "".join(chr(self.randrange(0x600)) for _ in range(self.randrange(10))),
            lambda: self.choice(["true", "http://127.0.0.1:1/", "1000 * retried", "body", "a,b", "rate=1"]),
            self.visible,
        )
        return self.choice(kinds)()

    def path(self) -> str:
        places = ("http://127.0.0.1:1/" + self.visible(), "https://" + self.visible(), self.visible(), self.text())
        return self.choice(
            [
                "/v2/publish/" + self.choice(places),
                "/v2/publish/http://127.0.0.1:1/",
                "/v2/messages/" + self.text(),
                "/v2/dlq/" + self.text(),
                self.choice(["/v2/events", "/v2/logs", "/v2/dlq", "/v2/keys", "/v2/", "/"]),
                self.visible(),
            ]
        )

    def query(self) -> str:
        parts = (
            f"{self.choice([*PARAMETERS, *map(str.lower, OPTIONS)])}={self.text()}" for _ in range(self.randrange(4))
        )
        return self.choice(["", self.visible(), "&".join(parts)])

    def headers(self) -> Lines:
        def line() -> tuple[str, str]:
            return self.choice([self.choice(OPTIONS), self.choice(OPTIONS), self.visible()]), self.text()

        return tuple(line() for _ in range(self.randrange(5)))


@settings(max_examples=5_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**64))
def test_no_call_whatsoever_makes_the_broker_fail(in_process: InProcess, seed: int) -> None:
    chance = RandomInput(seed)
    method = chance.choice(["GET", "POST", "POST", "POST", "DELETE", "PUT", "get", ""])
    headers = (("Authorization", f"Bearer {USERS[0].token}"), *chance.headers())
    path, query = chance.path(), chance.query()
    reply = in_process.ask(method, path, query, headers, chance.randbytes(chance.randrange(20)))
    note(f"{method} {path!r} {query!r} {headers!r}")
    answer = json.loads(reply.body)
    if reply.status >= 400:
        assert list(answer) == ["error"]
        assert answer["error"]
        assert reply.status < 500 or (reply.status == 501 and "not served by this version" in answer["error"])
    else:
        assert reply.status in (200, 201, 202)
    for name, value in reply.headers:
        assert f"{name}: {value}".isascii()


def test_no_bytes_whatsoever_make_the_server_fail(api: ApiClient) -> None:
    """A good request with a few of its bytes changed, dropped or doubled; the server answers well or hangs up."""
    good = head("POST", api, "Content-Length: 3") + b"abc"
    seen: set[int] = set()

    @settings(max_examples=400, deadline=None, database=None)
    @given(
        st.lists(
            st.tuples(st.integers(0, len(good) - 1), st.integers(0, 3), st.integers(0, 255)), min_size=1, max_size=6
        )
    )
    def fuzz(changes: list[tuple[int, int, int]]) -> None:
        data = bytearray(good)
        for place, kind, byte in changes:
            at = place % len(data)
            if kind == 0:
                data[at] = byte
            elif kind == 1:
                del data[at]
            elif kind == 2:
                data.insert(at, byte)
            else:
                data[at:at] = data[at : at + 20]
        for status in statuses(api.port, bytes(data)):
            seen.add(status)
            assert status < 500

    fuzz()
    assert {201, 400, 401} <= seen
    assert api.ask("GET", "/v2/keys").status == 200


def statuses(port: int, data: bytes) -> list[int]:
    """The statuses of what comes back for `data`, until the end of all sending ends the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        connection.sendall(data + b"\r\n\r\nGET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        received = bytearray()
        connection.settimeout(0.2)
        try:
            while piece := connection.recv(65536):
                received += piece
        except (TimeoutError, ConnectionError):
            pass
    lines = [line for line in bytes(received).split(b"\r\n") if b"HTTP/1.1 " in line]
    return [int(line.partition(b"HTTP/1.1 ")[2][:3]) for line in lines]
