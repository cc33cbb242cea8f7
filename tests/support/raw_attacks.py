"""A client that breaks every rule, many times at once: `python -m tests.support.raw_attacks PORT SEED CONNECTIONS`.

It has no credentials in any header; the trailer fields of some requests have one. It prints one line of JSON: how many
answers had which status, and which connections the server left open. A process of its own, so that its work does not
count as the server's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
import struct
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from qtasks.protocol.development import USERS

LONGEST_S = 8.0
"""No connection to an impatient server lives longer: its header, its body and the time to say goodbye."""
TARGETS = (
    "/v2/publish/http://127.0.0.1:1/x",
    "/v2/keys",
    "/openapi.json",
    "/healthz",
    "/q/work",
    "/q/_ends",
    "*",
    "/" + "x" * 9000,
    "http://127.0.0.1/v2/keys",
    "/%00",
    "/#",
)
LINES = (
    "Connection: close",
    "Connection: keep-alive",
    "Expect: 100-continue",
    "Upgrade: h2c\r\nConnection: Upgrade",
    "Upgrade: websocket\r\nConnection: Upgrade",
    "Content-Length: 5",
    "Content-Length: 99999999999",
    "Content-Length: -1",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip, chunked",
    "Trailer: Authorization",
    "X-Long: " + "x" * 5000,
    "X: \x00",
    "Host: evil.test",
    " folded",
    "",
)
SECRET = f"Authorization: Bearer {USERS[0].token}\r\nUpstash-Signature: x\r\nUpstash-Delay: 1d\r\n"
CHUNKED = b"POST /v2/publish/http://127.0.0.1:1/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
TASK = CHUNKED.replace(b"/v2/publish/http://127.0.0.1:1/x", b"/q/work")
PAGE = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


class RawInput(random.Random):
    """Requests that are nearly right, wrong, or right and then wrong."""

    def head(self) -> bytes:
        method = self.choice(["GET", "POST", "POST", "POST", "PUT", "CONNECT", "OPTIONS", "get", "M-SEARCH", ""])
        version = self.choice(["HTTP/1.1"] * 6 + ["HTTP/1.0", "HTTP/2.0", "HTTP/9", ""])
        lines = self.sample(LINES, self.randrange(4))
        end = self.choice(["\r\n\r\n"] * 9 + ["\n\n", "\r\n", ""])
        host = self.choice(["Host: localhost"] * 5 + ["X: y"])
        return "\r\n".join([f"{method} {self.choice(TARGETS)} {version}", host, *lines]).encode() + end.encode()

    def chunks(self) -> bytes:
        made = bytearray()
        for _ in range(self.randrange(6)):
            size = self.choice([0, 1, 1, 7, 300, 70_000])
            extension = self.choice([b"", b"", b";a=b", b";" + b"x" * self.choice([10, 3000]), b" "])
            made += b"%x" % size + extension + b"\r\n" + b"x" * (size - self.choice([0] * 9 + [1])) + b"\r\n"
        trailers = self.choice([b"", SECRET.encode(), b"X: " + b"y" * 9000 + b"\r\n"])
        return bytes(made) + b"0\r\n" + trailers + self.choice([b"\r\n", b"\r\n", b""])

    def request(self) -> bytes:
        data = bytearray(self.head() + self.choice([b"", b"", b"hello", self.chunks(), self.randbytes(50)]))
        for _ in range(self.choice([0, 0, 0, 1, 3])):
            data[self.randrange(len(data))] = self.randrange(256)
        return bytes(data)


class Leaves(Exception):
    """The client leaves without a word."""


@dataclass
class Attack:
    """Connections to the server on `port`, and what came of them."""

    port: int
    chance: RawInput
    statuses: Counter[int] = field(default_factory=Counter)
    left_open: Counter[str] = field(default_factory=Counter)
    """By the name of what was done on the connection."""

    async def connection(self, number: int) -> None:
        """One hostile connection, from its start until the server has closed it."""
        behave = BEHAVIOURS[number % len(BEHAVIOURS)]
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop = asyncio.get_running_loop()
        with sock, contextlib.suppress(OSError, Leaves):
            await loop.sock_connect(sock, ("127.0.0.1", self.port))
            try:
                async with asyncio.timeout(LONGEST_S):
                    with contextlib.suppress(OSError):
                        await behave(self, sock)
                    await self._read_to_the_end(sock)
            except TimeoutError:
                self.left_open[behave.__name__] += 1

    async def _read_to_the_end(self, sock: socket.socket) -> None:
        kept = b""
        while piece := await asyncio.get_running_loop().sock_recv(sock, 65536):
            found = STATUS.findall(kept + piece)
            self.statuses.update(int(status) for status in found)
            kept = b"" if found else piece[-12:]


async def _send(sock: socket.socket, pieces: Iterable[bytes], *, pause_s: float = 0) -> None:
    """Send the pieces and read nothing; stop when the server does not take them."""
    for piece in pieces:
        await asyncio.get_running_loop().sock_sendall(sock, piece)
        await asyncio.sleep(pause_s)


async def anything(attack: Attack, sock: socket.socket) -> None:
    chance = attack.chance
    data = b"".join(chance.request() for _ in range(chance.randrange(1, 4)))
    step = chance.choice([1 + len(data) // 7, len(data)])
    await _send(sock, (data[at : at + step] for at in range(0, len(data), step)), pause_s=0.005)
    await _send(sock, [b"GET / HT"])


async def anything_and_reset(attack: Attack, sock: socket.socket) -> None:
    await _send(sock, [attack.chance.request()])
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raise Leaves


async def anything_and_half_close(attack: Attack, sock: socket.socket) -> None:
    await _send(sock, [attack.chance.request()])
    sock.shutdown(socket.SHUT_WR)


async def trailers_without_end(attack: Attack, sock: socket.socket) -> None:
    await _send(sock, [attack.chance.choice([CHUNKED, TASK]), b"1\r\nx\r\n0\r\n", *[b"X: y\r\n" * 10_000] * 100])


async def an_extension_without_end(attack: Attack, sock: socket.socket) -> None:
    await _send(sock, [attack.chance.choice([CHUNKED, TASK]), b"1;", *[b"x" * 65536] * 100])


async def tiny_chunks(attack: Attack, sock: socket.socket) -> None:
    await _send(sock, [attack.chance.choice([CHUNKED, TASK]), *[b"1\r\nx\r\n" * 10_000] * 2])


async def a_byte_now_and_then(attack: Attack, sock: socket.socket) -> None:
    await _send(sock, [TASK.replace(b"Transfer-Encoding: chunked", b"Content-Length: 1000")])
    await _send(sock, [b"x"] * 50, pause_s=0.05)


async def silence(attack: Attack, sock: socket.socket) -> None:
    await _send(sock, [attack.chance.choice([b"", b"\r\n", b"GET / HTTP/1.1\r\nHos"])])


async def large_bodies(attack: Attack, sock: socket.socket) -> None:
    await _send(sock, [TASK.replace(b"Transfer-Encoding: chunked", b"Content-Length: 4000000"), b"x" * 3_000_000])
    await asyncio.sleep(0.5)


async def pages_that_nobody_reads(attack: Attack, sock: socket.socket) -> None:
    await _send(sock, [PAGE * 200, b"GET / HT"])
    await asyncio.sleep(2)


BEHAVIOURS = (
    anything,
    anything_and_reset,
    trailers_without_end,
    anything,
    an_extension_without_end,
    tiny_chunks,
    anything_and_half_close,
    a_byte_now_and_then,
    silence,
    large_bodies,
    pages_that_nobody_reads,
)
AT_ONCE = 66


async def attack(port: int, seed: int, connections: int) -> Attack:
    """Open `connections` hostile connections, `AT_ONCE` at the same time."""
    made = Attack(port, RawInput(seed))
    numbers = iter(range(connections))

    async def one_after_another() -> None:
        for number in numbers:
            await made.connection(number)

    await asyncio.gather(*(one_after_another() for _ in range(AT_ONCE)))
    return made


if __name__ == "__main__":
    done = asyncio.run(attack(*map(int, sys.argv[1:4])))
    sys.stdout.write(json.dumps({"statuses": done.statuses, "left_open": done.left_open}) + "\n")
