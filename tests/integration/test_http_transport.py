"""The HTTP transport on real sockets: what it sends, byte for byte, and what a hostile endpoint cannot do to it."""

import asyncio
import gzip
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from qtasks.broker.ports import DeliveryRequest, Failure
from qtasks.broker.transport.destination_policy import DestinationPolicy
from qtasks.broker.transport.http_transport import KEEP_ALIVE_S, HttpTransport
from qtasks.protocol.messages import Headers, Response
from tests.support.hostile import OK, Behaviour, Connection, HostileServer, answering, answering_once

pytestmark = pytest.mark.anyio

SLACK_S = 0.5
"""How much later than its deadline an attempt may end."""


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both loops: the broker runs on uvloop where the platform has it."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
async def transport() -> AsyncIterator[HttpTransport]:
    transport = HttpTransport(DestinationPolicy("local"))
    yield transport
    await transport.close()


def request(
    url: str, method: str = "POST", headers: Headers = (), body: bytes = b"", timeout_ms: int = 5000
) -> DeliveryRequest:
    return DeliveryRequest(url, method, headers, body, timeout_ms)


def resolving(*answers: Sequence[str]) -> "Names":
    return Names(answers)


class Names:
    """A name server: answers each lookup with the next of its answers, the last one for ever."""

    def __init__(self, answers: Sequence[Sequence[str]]) -> None:
        self._answers = answers
        self.lookups: list[str] = []

    async def __call__(self, host: str) -> Sequence[str]:
        answer = self._answers[min(len(self.lookups), len(self._answers) - 1)]
        self.lookups.append(host)
        return answer


def failure(outcome: Response | Failure) -> Failure:
    assert isinstance(outcome, Failure), outcome
    return outcome


def response(outcome: Response | Failure) -> Response:
    assert isinstance(outcome, Response), outcome
    return outcome


def head_of(raw: bytes) -> list[bytes]:
    return raw.partition(b"\r\n\r\n")[0].split(b"\r\n")


# -- what is sent ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "target"),
    [
        ("", "/"),
        ("/", "/"),
        ("?x=1", "/?x=1"),
        ("/?", "/?"),
        ("/a%2Fb%2fc", "/a%2Fb%2fc"),
        ("//a//b", "//a//b"),
        ("/%c3%BC", "/%c3%BC"),
        ("/a/../b/./c", "/a/../b/./c"),
        ("/a?x=1&y=%20+%2B&&z", "/a?x=1&y=%20+%2B&&z"),
        ("/a?b?c=http://u@h/", "/a?b?c=http://u@h/"),
        ("/|{}^`\"<>'[]~;,=@:!$*()", "/|{}^`\"<>'[]~;,=@:!$*()"),
        ("/%zz%", "/%zz%"),
    ],
)
async def test_the_url_goes_out_byte_for_byte(transport: HttpTransport, rest: str, target: str) -> None:
    async with HostileServer(answering(OK)) as server:
        response(await transport.send(request(server.url + rest)))
    assert head_of(server.requests[0])[0] == f"POST {target} HTTP/1.1".encode()


async def test_the_host_header_is_the_text_of_the_url(transport: HttpTransport) -> None:
    async with HostileServer(answering(OK)) as server:
        response(await transport.send(request(f"HTTP://LocalHost:{server.port}/")))
    assert f"Host: LocalHost:{server.port}".encode() in head_of(server.requests[0])


async def test_headers_are_those_given_in_their_order_and_the_connections_own(transport: HttpTransport) -> None:
    message_headers = (
        ("X-B", "2"),
        ("Content-Type", "text/x"),
        ("X-A", "a, b"),
        ("X-B", "1"),
        ("User-Agent", "Upstash-QStash"),
    )
    async with HostileServer(answering(OK)) as server:
        response(await transport.send(request(server.url, headers=message_headers, body=b"12345")))
    assert head_of(server.requests[0])[1:] == [
        f"Host: 127.0.0.1:{server.port}".encode(),
        b"X-B: 2",
        b"Content-Type: text/x",
        b"X-A: a, b",
        b"X-B: 1",
        b"User-Agent: Upstash-QStash",
        b"Accept-Encoding: identity",
        b"Content-Length: 5",
    ]


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "PATCH", "POST", "OPTIONS"])
async def test_every_method_carries_its_body_verbatim(transport: HttpTransport, method: str) -> None:
    body = bytes(range(256)) * 4
    async with HostileServer(answering(OK)) as server:
        response(await transport.send(request(server.url, method, body=body)))
    head, _, sent = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(method.encode() + b" / ")
    assert sent == body


async def test_a_head_request_has_an_answer_without_body(transport: HttpTransport) -> None:
    async with HostileServer(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")) as server:
        assert response(await transport.send(request(server.url, "HEAD"))).body == b""
        assert response(await transport.send(request(server.url, "HEAD"))).status == 200
    assert server.connections == 1


async def test_a_body_larger_than_any_published_one_is_sent_whole(transport: HttpTransport) -> None:
    body = b"callback" * 300_000
    async with HostileServer(answering(OK)) as server:
        response(await transport.send(request(server.url, body=body)))
    assert server.requests[0].endswith(b"\r\n\r\n" + body)


async def test_headers_that_frame_a_request_are_not_the_messages_to_choose(transport: HttpTransport) -> None:
    message_headers = (
        ("Host", "other.test"),
        ("Content-Length", "1"),
        ("Transfer-Encoding", "chunked"),
        ("connection", "close, X-A"),
        ("Accept-Encoding", "gzip"),
        ("Expect", "100-continue"),
        ("Upgrade", "h2c"),
    )
    async with HostileServer(answering(OK)) as server:
        response(await transport.send(request(server.url, headers=message_headers, body=b"12345")))
    assert head_of(server.requests[0])[1:] == [
        f"Host: 127.0.0.1:{server.port}".encode(),
        b"Accept-Encoding: identity",
        b"Content-Length: 5",
    ]


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("POST", (("X-A", "a\r\nX-B: b"),)),
        ("POST", (("X-A", "a\0"),)),
        ("POST", (("X A", "a"),)),
        ("POST", (("X-A:", "a"),)),
        ("POST", (("", "a"),)),
        ("POST / HTTP/1.1\r\nX:", ()),
        ("", ()),
        ("CONNECT", ()),
    ],
)
async def test_what_would_be_another_request_on_the_wire_is_never_sent(
    transport: HttpTransport, method: str, headers: Headers
) -> None:
    async with HostileServer(answering(OK)) as server:
        outcome = failure(await transport.send(request(server.url, method, headers)))
    assert (outcome.code, outcome.final, server.connections) == ("unsendable", True, 0)


async def test_of_all_control_characters_only_a_tab_may_be_in_a_value(transport: HttpTransport) -> None:
    async with HostileServer(answering(OK)) as server:
        outcomes = {
            character: await transport.send(request(server.url, headers=(("X-A", f"a{character}b"),)))
            for character in map(chr, (*range(32), 127))
        }
    assert [character for character, outcome in outcomes.items() if isinstance(outcome, Response)] == ["\t"]
    assert b"X-A: a\tb" in head_of(server.requests[0])


async def test_an_unreadable_url_is_never_sent(transport: HttpTransport) -> None:
    outcome = failure(await transport.send(request("http://127.1:80/")))
    assert (outcome.code, outcome.final) == ("unsendable", True)


async def test_credentials_in_the_url_become_a_header_unless_there_is_one(transport: HttpTransport) -> None:
    async with HostileServer(answering(OK)) as server:
        url = f"http://u%3A:p%40w@127.0.0.1:{server.port}/"
        response(await transport.send(request(url)))
        response(await transport.send(request(url, headers=(("Authorization", "Bearer x"),))))
    assert b"Authorization: Basic dTo6cEB3" in head_of(server.requests[0])
    assert [line for line in head_of(server.requests[1]) if b"Authorization" in line] == [b"Authorization: Bearer x"]


async def test_nothing_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with HostileServer(answering(OK)) as server, HostileServer(answering(OK)) as canary:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, canary.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login me password secret\n")
        monkeypatch.setenv("NETRC", str(netrc))
        transport = HttpTransport(DestinationPolicy("local"))
        response(await transport.send(request(server.url)))
        await transport.close()
    assert canary.connections == 0
    assert b"Authorization" not in server.requests[0]


# -- what is read ----------------------------------------------------------------------------------------------------


async def test_an_answer_is_handed_over_as_it_came(transport: HttpTransport) -> None:
    answer = (
        b"HTTP/1.1 418 Teapot\r\nx-lower: 1\r\nX-Twice: a\r\nX-Twice: b\r\nX-Utf8: \xc3\xbc\r\nX-Latin: \xfc\r\n"
        b"Content-Length: 3\r\n\r\n\x00\xff\n"
    )
    async with HostileServer(answering(answer)) as server:
        outcome = response(await transport.send(request(server.url)))
    assert outcome == Response(
        status=418,
        headers=(
            ("x-lower", "1"),
            ("X-Twice", "a"),
            ("X-Twice", "b"),
            ("X-Utf8", "ü"),
            ("X-Latin", "ü"),
            ("Content-Length", "3"),
        ),
        body=b"\x00\xff\n",
    )


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde",
        b"HTTP/1.1 200 OK\r\n\r\nabcde",
        b"HTTP/1.0 200 OK\r\n\r\nabcde",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\nabcde",
    ],
)
async def test_every_framing_of_a_body_is_understood(transport: HttpTransport, answer: bytes) -> None:
    async with HostileServer(answering_once(answer)) as server:
        assert response(await transport.send(request(server.url))).body == b"abcde"


async def test_a_connection_is_used_again_after_a_clean_answer(transport: HttpTransport) -> None:
    async with HostileServer(answering(OK)) as server:
        for _ in range(3):
            assert response(await transport.send(request(server.url, body=b"x"))).body == b"ok"
    assert (server.connections, len(server.requests)) == (1, 3)


async def test_an_idle_connection_is_closed_before_a_server_would(monkeypatch: pytest.MonkeyPatch) -> None:
    assert KEEP_ALIVE_S < 2
    monkeypatch.setattr("qtasks.broker.transport.http_transport.KEEP_ALIVE_S", 0.05)
    transport = HttpTransport(DestinationPolicy("local"))
    async with HostileServer(answering(OK)) as server:
        response(await transport.send(request(server.url)))
        async with asyncio.timeout(5):
            await server.closed_by_peer.wait()
    await transport.close()


async def test_a_compressed_body_stays_compressed(transport: HttpTransport) -> None:
    bomb = gzip.compress(bytes(30_000_000))
    answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(bomb), bomb)
    async with HostileServer(answering(answer)) as server:
        outcome = response(await transport.send(request(server.url)))
    assert (outcome.body, outcome.truncated) == (bomb, False)


@pytest.mark.parametrize(
    ("size", "kept", "truncated"), [(999, 999, False), (1000, 1000, False), (1001, 1000, True), (5000, 1000, True)]
)
async def test_a_body_is_read_up_to_the_cap(size: int, kept: int, truncated: bool) -> None:
    transport = HttpTransport(DestinationPolicy("local"), max_response=1000)
    async with HostileServer(
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
    ) as server:
        outcome = response(await transport.send(request(server.url)))
    await transport.close()
    assert (len(outcome.body), outcome.truncated) == (kept, truncated)


async def test_a_cookie_that_was_set_never_comes_back() -> None:
    transport = HttpTransport(DestinationPolicy("local"), resolve=resolving(["127.0.0.1"]))
    answer = b"HTTP/1.1 200 OK\r\nSet-Cookie: session=1; Path=/\r\nContent-Length: 0\r\n\r\n"
    async with HostileServer(answering(answer)) as server:
        for _ in range(2):
            outcome = response(await transport.send(request(f"http://shop.test:{server.port}/")))
            assert outcome.headers[0] == ("Set-Cookie", "session=1; Path=/")
    await transport.close()
    assert b"cookie" not in server.requests[1].lower()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_an_answer_and_is_not_followed(transport: HttpTransport, status: int) -> None:
    async with HostileServer(answering(OK)) as canary:
        location = canary.url.encode()
        answer = b"HTTP/1.1 %d Moved\r\nLocation: %b/\r\nContent-Length: 0\r\n\r\n" % (status, location)
        async with HostileServer(answering(answer)) as server:
            outcome = response(await transport.send(request(server.url)))
    assert outcome.status == status
    assert outcome.headers[0] == ("Location", canary.url + "/")
    assert canary.connections == 0


# -- hostile answers -------------------------------------------------------------------------------------------------


def after_request(start: bytes, forever: bytes) -> Behaviour:
    """Take a request, send `start`, then `forever` without end."""

    async def behave(connection: Connection) -> None:
        await connection.request()
        await connection.send(start)
        await connection.flood(forever)

    return behave


ENDLESS = {
    "header lines": (after_request(b"HTTP/1.1 200 OK\r\n", b"X-A: 1\r\n" * 500), "bad_response"),
    "header line": (after_request(b"HTTP/1.1 200 OK\r\nX-A: ", b"a" * 9000), "bad_response"),
    "status line": (after_request(b"HTTP/1.1 200 ", b"a" * 9000), "bad_response"),
    "informational answers": (after_request(b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 500), "bad_response"),
    "trailers": (
        after_request(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X-A: 1\r\n" * 500),
        "bad_response",
    ),
}


@pytest.mark.parametrize("what", ENDLESS)
async def test_an_endless_head_ends_the_attempt_long_before_the_deadline(transport: HttpTransport, what: str) -> None:
    behave, code = ENDLESS[what]
    started = time.monotonic()
    async with HostileServer(behave) as server:
        outcome = failure(await transport.send(request(server.url, timeout_ms=30_000)))
    assert (outcome.code, outcome.final) == (code, False)
    assert time.monotonic() - started < 5


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LONG_WINDED = {
    "body until the end of the connection": after_request(b"HTTP/1.1 200 OK\r\n\r\n", b"a" * 50_000),
    "body of immense length": after_request(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n", b"a" * 50_000),
    "chunks": after_request(CHUNKED, b"8000\r\n" + b"a" * 0x8000 + b"\r\n"),
    "chunk extension": after_request(CHUNKED + b"1;", b"a" * 50_000),
    "chunk size": after_request(CHUNKED, b"0" * 50_000),
    "chunks of one byte": after_request(CHUNKED, b"1\r\na\r\n" * 5000),
}


@pytest.mark.parametrize("what", LONG_WINDED)
async def test_an_endless_body_is_cut_and_its_connection_closed(what: str) -> None:
    transport = HttpTransport(DestinationPolicy("local"), max_response=100_000)
    started = time.monotonic()
    async with HostileServer(LONG_WINDED[what]) as server:
        outcome = response(await transport.send(request(server.url, timeout_ms=30_000)))
        async with asyncio.timeout(5):
            await server.closed_by_peer.wait()
    await transport.close()
    assert (outcome.status, outcome.truncated) == (200, True)
    assert len(outcome.body) <= 100_000
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"220 mail.test ESMTP\r\n",
        b"<html>HTTP/0.9</html>",
        b"\x16\x03\x01\x02\x00\x01\x00" * 10,
        bytes(range(256)) * 4,
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 Short\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 000 Zero\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 600 Many\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 999 Many\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 2000 Long\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 103 Hints\r\n\r\n" * 3 + OK,
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-A: a\rb\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-A: a\0b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX A: b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-A: 1\r\n" * 200 + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + (b"X-A: " + b"1" * 2000 + b"\r\n") * 40 + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-A: " + b"1" * 20_000 + b"\r\nContent-Length: 0\r\n\r\n",
        CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n",
        CHUNKED + b"3\r\nabcdef\r\n0\r\n\r\n",
    ],
)
async def test_what_is_no_answer_is_a_bad_one_and_ends_its_connection(transport: HttpTransport, answer: bytes) -> None:
    async with HostileServer(answering(answer)) as server:
        for _ in range(2):
            outcome = failure(await transport.send(request(server.url)))
            assert (outcome.code, outcome.final) == ("bad_response", False)
            assert f"127.0.0.1:{server.port}" in outcome.error
            assert outcome.error.isprintable()
            assert outcome.error.isascii()
            assert len(outcome.error) < 300
    assert server.connections == 2


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok", 204, b""),
        (b"HTTP/1.1 204 No Content\r\n\r\nnull", 204, b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\nok", 304, b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more", 200, b"ok"),
        (OK + OK, 200, b"ok"),
        (OK + b"HTTP/1.1 500 Forged\r\nContent-Length: 0\r\n\r\n", 200, b"ok"),
    ],
)
@pytest.mark.parametrize("pieces", [1, 2])
async def test_rubbish_behind_a_complete_answer_costs_the_connection_only(
    transport: HttpTransport, answer: bytes, status: int, body: bytes, pieces: int
) -> None:
    head, end, rest = answer.partition(b"\r\n\r\n")

    async def behave(connection: Connection) -> None:
        while await connection.request() is not None:
            if pieces == 1:
                await connection.send(answer)
            else:
                await connection.send(head + end)
                await connection.pause()
                await connection.send(rest)

    async with HostileServer(behave) as server:
        # Garbage that arrives late may coincide with the next request; the outcome is then a matter of timing.
        for _ in range(2 if pieces == 1 or b"Content-Length" in answer else 1):
            outcome = response(await transport.send(request(server.url, body=b"x")))
            assert (outcome.status, outcome.body, outcome.truncated) == (status, body, False)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        CHUNKED + b"3\r\nabc\r\n",
        CHUNKED + b"a\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
        b"",
    ],
)
async def test_an_answer_that_breaks_off_is_a_lost_connection(transport: HttpTransport, answer: bytes) -> None:
    async with HostileServer(answering_once(answer)) as server:
        outcome = failure(await transport.send(request(server.url)))
    assert (outcome.code, outcome.final) == ("connection_lost", False)
    assert f"127.0.0.1:{server.port}" in outcome.error


@pytest.mark.parametrize("size", [1, 2, 3, 5, 19])
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab\r\n\r",
        CHUNKED + b"2\r\nab\r\n3;x=y\r\n\r\n\r\r\n0\r\nTrailer: x\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 5\n\nab\r\n\r",
    ],
)
async def test_pieces_of_any_size_make_the_same_answer_and_keep_the_connection(
    transport: HttpTransport, answer: bytes, size: int
) -> None:
    async def behave(connection: Connection) -> None:
        while await connection.request() is not None:
            for at in range(0, len(answer), size):
                await connection.send(answer[at : at + size])
                await asyncio.sleep(0)

    async with HostileServer(behave) as server:
        for _ in range(2):
            outcome = response(await transport.send(request(server.url, body=b"x")))
            assert (outcome.status, outcome.body) == (200, b"ab\r\n\r")
    assert server.connections == 1


# -- deadlines -------------------------------------------------------------------------------------------------------


async def never_answers(connection: Connection) -> None:
    await connection.request()
    await connection.wait_until_closed()


async def never_reads(connection: Connection) -> None:
    await asyncio.Event().wait()


async def half_closes_and_stays(connection: Connection) -> None:
    await connection.request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
    await connection.wait_until_closed()


async def dribbles_header(connection: Connection) -> None:
    await connection.request()
    await connection.dribble(b"HTTP/1.1 200 OK\r\nX-A: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")


async def dribbles_body(connection: Connection) -> None:
    await connection.request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
    await connection.dribble(b"a")


@pytest.mark.parametrize(
    ("behave", "started_to_answer"),
    [
        (never_answers, False),
        (never_reads, False),
        (dribbles_header, False),
        (dribbles_body, True),
        (half_closes_and_stays, True),
    ],
)
async def test_an_attempt_ends_at_its_deadline_whatever_the_endpoint_does(
    transport: HttpTransport, behave: Behaviour, started_to_answer: bool
) -> None:
    async with HostileServer(behave) as server:
        started = time.monotonic()
        outcome = failure(await transport.send(request(server.url, body=b"x" * 1024 * 1024, timeout_ms=250)))
        took = time.monotonic() - started
    expected = (
        f"the response from 127.0.0.1:{server.port} was not complete within 0.25s (Upstash-Timeout)"
        if started_to_answer
        else f"no answer from 127.0.0.1:{server.port} within 0.25s (Upstash-Timeout)"
    )
    assert outcome == Failure("timeout", expected)
    assert 0.24 < took < 0.25 + SLACK_S  # uvloop counts in whole milliseconds


async def test_a_tls_handshake_without_end_is_inside_the_deadline(transport: HttpTransport) -> None:
    async with HostileServer(never_reads) as server:
        started = time.monotonic()
        outcome = failure(await transport.send(request(f"https://127.0.0.1:{server.port}/", timeout_ms=200)))
    assert outcome.code == "timeout"
    assert time.monotonic() - started < 0.2 + SLACK_S


async def test_a_name_server_that_does_not_answer_is_inside_the_deadline() -> None:
    async def silent(host: str) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    transport = HttpTransport(DestinationPolicy("local"), resolve=silent)
    started = time.monotonic()
    outcome = failure(await transport.send(request("http://slow.test/", timeout_ms=200)))
    await transport.close()
    expected = "cannot resolve slow.test: no answer from the name server within 0.2s (Upstash-Timeout)"
    assert outcome == Failure("dns", expected, attempted=False)
    assert time.monotonic() - started < 0.2 + SLACK_S


async def test_connecting_has_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qtasks.broker.transport.http_transport.CONNECT_TIMEOUT_S", 0.2)
    with socket.socket() as listener:  # a full backlog: the handshake of one more connection is not answered
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        transport = HttpTransport(DestinationPolicy("local"))
        started = time.monotonic()
        outcome = failure(await transport.send(request(f"http://127.0.0.1:{address[1]}/", timeout_ms=20_000)))
        await transport.close()
        for filler in fillers:
            filler.close()
    assert outcome == Failure("timeout", f"no connection to 127.0.0.1:{address[1]} within 0.2s")
    assert time.monotonic() - started < 0.2 + SLACK_S


async def test_cancelling_an_attempt_cancels_it_and_closes_its_connection(transport: HttpTransport) -> None:
    async with HostileServer(never_answers) as server:
        attempt = asyncio.create_task(transport.send(request(server.url)))
        async with asyncio.timeout(5):
            await server.received.wait()
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        async with asyncio.timeout(5):
            await server.closed_by_peer.wait()


async def test_however_many_requests_are_unanswered_a_healthy_endpoint_is_served(transport: HttpTransport) -> None:
    async with HostileServer(never_answers) as dead, HostileServer(answering(OK)) as healthy:
        stuck = [asyncio.create_task(transport.send(request(dead.url, timeout_ms=60_000))) for _ in range(600)]
        async with asyncio.timeout(5):
            await dead.received.wait()
        for _ in range(10):
            response(await transport.send(request(healthy.url, timeout_ms=2_000)))
        assert not any(attempt.done() for attempt in stuck)
        for attempt in stuck:
            attempt.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)


async def test_beyond_its_limit_of_connections_a_dead_endpoint_holds_up_itself_alone() -> None:
    transport = HttpTransport(DestinationPolicy("local"), per_host=8)
    async with HostileServer(never_answers) as dead, HostileServer(answering(OK)) as healthy:
        stuck = [asyncio.create_task(transport.send(request(dead.url, timeout_ms=400))) for _ in range(20)]
        async with asyncio.timeout(5):
            await dead.received.wait()
        started = time.monotonic()
        for _ in range(10):
            response(await transport.send(request(healthy.url)))
        assert time.monotonic() - started < 0.4
        assert dead.connections <= 8
        assert {failure(outcome).code for outcome in await asyncio.gather(*stuck)} == {"timeout"}
    await transport.close()


# -- connections that fail -------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
async def test_a_refused_connection_says_where_nothing_listens(transport: HttpTransport, host: str) -> None:
    port = free_port()
    outcome = failure(await transport.send(request(f"http://{host}:{port}/secret?token=x")))
    expected = f"connection refused: nothing listens on {host}:{port}"
    assert outcome == Failure("connection_refused", expected, interrupted=True)


async def test_a_reset_is_a_lost_connection(transport: HttpTransport) -> None:
    async def resets_at_once(connection: Connection) -> None:
        connection.reset()

    async def resets_after_request(connection: Connection) -> None:
        await connection.request()
        connection.reset()

    async def resets_in_body(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        connection.reset()

    for behave in (resets_at_once, resets_after_request, resets_in_body):
        async with HostileServer(behave) as server:
            outcome = failure(await transport.send(request(server.url, body=b"x")))
            assert outcome.code == "connection_lost"
            assert outcome.interrupted is (behave is not resets_in_body)  # its status has arrived: it has answered


async def test_after_closing_nothing_is_sent(transport: HttpTransport) -> None:
    async with HostileServer(answering(OK)) as server:
        response(await transport.send(request(server.url)))
        await transport.close()
        await transport.close()
        outcome = failure(await transport.send(request(server.url)))
    assert (outcome.code, outcome.attempted, len(server.requests)) == ("connection_lost", False, 1)


async def test_closing_ends_what_is_under_way() -> None:
    transport = HttpTransport(DestinationPolicy("local"))
    async with HostileServer(never_answers) as server:
        attempt = asyncio.create_task(transport.send(request(server.url)))
        async with asyncio.timeout(5):
            await server.received.wait()
            await transport.close()
            assert failure(await attempt).code == "connection_lost"


# -- names and addresses ---------------------------------------------------------------------------------------------


async def test_a_name_is_resolved_when_dialling_and_kept_for_the_host_header() -> None:
    names = resolving(["127.0.0.1"])
    transport = HttpTransport(DestinationPolicy("local"), resolve=names)
    async with HostileServer(answering(OK)) as server:
        for _ in range(2):
            response(await transport.send(request(f"http://some.test:{server.port}/")))
    await transport.close()
    assert f"Host: some.test:{server.port}".encode() in head_of(server.requests[0])
    assert names.lookups == ["some.test"]  # one for the connection, not one for each request


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["93.184.216.34", "127.0.0.1"],
        ["127.0.0.1", "93.184.216.34"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["0.0.0.0"],
        ["169.254.169.254"],
        ["64:ff9b::7f00:1"],
        ["not an address"],
    ],
)
async def test_a_name_is_refused_if_any_of_its_addresses_is(addresses: list[str]) -> None:
    transport = HttpTransport(DestinationPolicy("public"), resolve=resolving(addresses))
    async with HostileServer(answering(OK)) as canary:
        outcome = failure(await transport.send(request(f"http://innocent.test:{canary.port}/")))
    await transport.close()
    assert (outcome.code, outcome.final) == ("destination_blocked", True)
    assert outcome.error.startswith("destination blocked: ")
    assert canary.connections == 0


async def test_a_name_that_changes_its_answer_is_refused_when_it_does() -> None:
    transport = HttpTransport(DestinationPolicy("local"), resolve=resolving(["127.0.0.1"], ["169.254.169.254"]))
    closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    async with HostileServer(answering_once(closing)) as server:
        url = f"http://rebinding.test:{server.port}/"
        response(await transport.send(request(url)))
        outcome = failure(await transport.send(request(url)))
    await transport.close()
    assert outcome.code == "destination_blocked"
    assert "resolves to a metadata address" in outcome.error


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"])
async def test_in_public_no_spelling_reaches_loopback(host: str) -> None:
    transport = HttpTransport(DestinationPolicy("public"))
    async with HostileServer(answering(OK)) as canary:
        outcome = failure(await transport.send(request(f"http://{host}:{canary.port}/")))
    await transport.close()
    assert (outcome.code, outcome.final, canary.connections) == ("destination_blocked", True, 0)
    assert "--allow-destination" in outcome.error


async def test_in_public_what_is_allowed_by_name_is_reached() -> None:
    async with HostileServer(answering(OK)) as server:
        policy = DestinationPolicy("public", (f"http://worker.test:{server.port}",))
        transport = HttpTransport(policy, resolve=resolving(["127.0.0.1"]))
        response(await transport.send(request(f"http://worker.test:{server.port}/")))
        assert failure(await transport.send(request(server.url))).code == "destination_blocked"
        await transport.close()


@pytest.mark.parametrize("own", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "me.test"])
async def test_the_brokers_own_listener_is_never_dialled(host: str, own: str) -> None:
    async with HostileServer(answering(OK)) as canary:
        policy = DestinationPolicy("local", own=frozenset({(own, canary.port)}))
        transport = HttpTransport(policy, resolve=resolving(["127.0.0.1"]))
        outcome = failure(await transport.send(request(f"http://{host}:{canary.port}/")))
        await transport.close()
    assert (outcome.code, canary.connections) == ("destination_blocked", 0)
    assert "own address" in outcome.error


async def test_a_listener_on_every_address_is_recognised_on_the_machines_network_address() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no network address")
        address = str(probe.getsockname()[0])
    port = free_port()
    transport = HttpTransport(DestinationPolicy("local", own=frozenset({("0.0.0.0", port)})))
    outcome = failure(await transport.send(request(f"http://{address}:{port}/")))
    await transport.close()
    assert f"own address: {address}:{port}" in outcome.error


async def test_a_name_without_address_is_a_dns_failure() -> None:
    async def unknown(host: str) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    for resolve in (unknown, resolving([])):
        transport = HttpTransport(DestinationPolicy("local"), resolve=resolve)
        outcome = failure(await transport.send(request("http://nowhere.test/")))
        await transport.close()
        assert (outcome.code, outcome.final) == ("dns", False)
        assert "nowhere.test" in outcome.error


async def test_the_systems_resolver_reports_unknown_names(transport: HttpTransport) -> None:
    outcome = failure(await transport.send(request("http://no-such-name.invalid/")))
    assert outcome.code == "dns"


@pytest.mark.parametrize(("dead", "reached"), [(1, True), (7, True), (8, False), (1000, False)])
async def test_of_many_addresses_the_first_eight_are_tried(dead: int, reached: bool) -> None:
    addresses = [f"127.1.{number // 256}.{number % 256}" for number in range(dead)] + ["127.0.0.1"]
    transport = HttpTransport(DestinationPolicy("local"), resolve=resolving(addresses))
    async with HostileServer(answering(OK)) as server:
        outcome = await transport.send(request(f"http://many.test:{server.port}/"))
    await transport.close()
    assert isinstance(outcome, Response) is reached


# -- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for ``good.test``, with its key in the same file."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=good.test", "-addext", "subjectAltName=DNS:good.test"]
    subprocess.run([*command, "-keyout", folder / "key", "-out", folder / "crt"], check=True, capture_output=True)
    both = folder / "pem"
    both.write_bytes((folder / "crt").read_bytes() + (folder / "key").read_bytes())
    return both


def serving(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


async def test_a_trusted_certificate_of_the_right_name_is_accepted(certificate: Path) -> None:
    transport = HttpTransport(
        DestinationPolicy("local"),
        resolve=resolving(["127.0.0.1"]),
        tls=ssl.create_default_context(cafile=str(certificate)),
    )
    async with HostileServer(answering(OK), tls=serving(certificate)) as server:
        for _ in range(2):
            assert response(await transport.send(request(f"https://good.test:{server.port}/"))).body == b"ok"
        assert server.connections == 1
        wrong = failure(await transport.send(request(f"https://other.test:{server.port}/")))
        await transport.close()
    assert wrong.code == "tls"
    assert "other.test" in wrong.error
    assert len(server.requests) == 2


async def test_an_untrusted_certificate_is_refused_before_anything_is_sent(certificate: Path) -> None:
    transport = HttpTransport(DestinationPolicy("local"), resolve=resolving(["127.0.0.1"]))
    async with HostileServer(answering(OK), tls=serving(certificate)) as server:
        outcome = failure(await transport.send(request(f"https://good.test:{server.port}/")))
        await transport.close()
    assert (outcome.code, outcome.final, server.requests) == ("tls", False, [])
    assert "self-signed" in outcome.error


async def test_tls_to_a_server_without_tls_is_a_tls_failure(transport: HttpTransport) -> None:
    async with HostileServer(answering_once(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as server:

        async def answers_anything(connection: Connection) -> None:
            await connection.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        server.behave = answers_anything
        outcome = failure(await transport.send(request(f"https://127.0.0.1:{server.port}/")))
    assert outcome.code == "tls"


async def test_an_endless_body_over_tls_is_cut_too(certificate: Path) -> None:
    transport = HttpTransport(
        DestinationPolicy("local"),
        max_response=100_000,
        resolve=resolving(["127.0.0.1"]),
        tls=ssl.create_default_context(cafile=str(certificate)),
    )
    async with HostileServer(LONG_WINDED["chunk extension"], tls=serving(certificate)) as server:
        assert response(await transport.send(request(f"https://good.test:{server.port}/"))).truncated
        await transport.close()


# -- memory ----------------------------------------------------------------------------------------------------------


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
async def test_many_endless_answers_at_once_take_little_memory(transport: HttpTransport) -> None:
    peak = before = resident_mb()
    async with HostileServer(LONG_WINDED["body until the end of the connection"]) as server:

        async def attempt() -> None:
            nonlocal peak
            assert response(await transport.send(request(server.url, timeout_ms=30_000))).truncated
            peak = max(peak, resident_mb())

        await asyncio.gather(*(attempt() for _ in range(40)))
    assert peak - before < 50 + 40  # 40 responses of 1 MiB are expected; the rest is overhead
