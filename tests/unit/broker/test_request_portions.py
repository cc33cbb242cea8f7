"""The application sees the same requests wherever their packets end, and whatever surrounds their bodies."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.watched_server import WatchedServer

pytestmark = pytest.mark.anyio

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Seen:
    """A request as the application sees it; `fields` are the lines that begin with x."""

    method: str
    path: str
    fields: tuple[bytes, ...]
    body: bytes


class Recorder:
    """Records requests; reads the body, or answers without reading it."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        is_complete = "/unread" in scope["path"]
        while not is_complete:
            event = await receive()
            assert event["type"] == "http.request"
            body += event["body"]
            is_complete = not event["more_body"]
        fields = tuple(value for name, value in scope["headers"] if name.startswith(b"x"))
        self.seen.append(Seen(scope["method"], scope["path"], fields, body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


class RandomRequests(random.Random):
    """Correct requests, and what an application must see of them."""

    def request(self, number: int) -> tuple[bytes, Seen]:
        method = self.choice(["GET", "POST", "PUT"])
        path = f"/{number}" + self.choice(["", "/unread", "/" + "x" * 300])
        fields = [self.randbytes(self.randrange(1, 40)).hex() for _ in range(self.randrange(4))]
        upgrade = self.choice([[], [], [], ["Upgrade: h2c", "Connection: upgrade, keep-alive"]])
        body, framing, sent = self.body() if method != "GET" else (b"", [], b"")
        lines = ["Host: localhost", *upgrade, *(f"X-{index}: {field}" for index, field in enumerate(fields)), *framing]
        head = "\r\n".join((f"{method} {path} HTTP/1.1", *lines, "", "")).encode()
        seen = Seen(method, path, tuple(field.encode() for field in fields), b"" if "unread" in path else body)
        return self.choice([b"", b"", b"\r\n"]) + head + sent, seen

    def body(self) -> tuple[bytes, list[str], bytes]:
        """A body, the lines that announce it, and the bytes that carry it."""
        body = self.choice([b"\r\n\r\n", b"0\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", self.randbytes(self.randrange(1500))])
        if self.random() < 0.5:
            return body, [f"Content-Length: {len(body)}"], body
        chunks = bytearray()
        at = 0
        while at < len(body):
            size = min(self.choice([1, 2, 9, 500]), len(body) - at)
            extension = self.choice([b"", b"", b";a=b"])
            chunks += b"%x%b\r\n%b\r\n" % (size, extension, body[at : at + size])
            at += size
        trailers = self.choice([b"", b"X-Late: 1\r\n", b"X-Late: 1\r\nHost: evil.test\r\n"])
        return body, ["Transfer-Encoding: chunked"], bytes(chunks) + b"0\r\n" + trailers + b"\r\n"


async def check(seed: int) -> None:
    chance = RandomRequests(seed)
    app = Recorder()
    made = [chance.request(number) for number in range(chance.randrange(1, 6))]
    data = b"".join(sent for sent, _ in made)
    async with WatchedServer(app) as server:
        client = await server.connect()
        at = 0
        while at < len(data):
            size = chance.choice([1, 2, 3, 7, 100, 5000])
            await client.send(data[at : at + size])
            at += size
            await server.settle()
        await server.until(lambda: len(app.seen) == len(made))
        assert app.seen == [seen for _, seen in made]
        assert not server.connections[0].transport.is_closing()


@pytest.mark.parametrize("seed", range(40))
async def test_requests_are_seen_as_they_were_sent(seed: int) -> None:
    await check(seed)


@pytest.mark.release
@pytest.mark.parametrize("seed", range(100, 120))
async def test_thousands_of_requests_are_seen_as_they_were_sent(seed: int) -> None:
    for number in range(200):
        await check(seed * 1000 + number)
