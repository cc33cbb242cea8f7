"""Requests over plain sockets to servers that misbehave; threads, event loops, interrupts and cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from qtasks.errors import BrokerUnreachable, InvalidCallError
from qtasks.qstash import AsyncQStash, QStash, Reply, Request
from qtasks.qstash.conversation import plain_connections
from qtasks.qstash.conversation.http1_request import split, to_bytes
from qtasks.qstash.conversation.plain_connections import PlainConnection
from qtasks.qstash.conversation.service_transport import AsyncServiceTransport, Routes, ServiceTransport

LONG_S = 20.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Script = Callable[[socket.socket, bytes], bool | None]
"""Answers one request; returns False to close the connection."""


class ScriptedSocket:
    """A server that answers each request with the next of `scripts`, the last one again and again."""

    def __init__(self, listener: socket.socket, *scripts: Script) -> None:
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v2/x"
        self.scripts = list(scripts)
        self.requests: list[tuple[int, bytes]] = []
        """The number of the connection, and what came as one piece."""
        self._listener = listener
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._run(self._accept)

    def _run(self, work: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=work, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                self._run(self._serve, connection, len(self._open))

    def _serve(self, connection: socket.socket, number: int) -> None:
        with connection, contextlib.suppress(OSError):
            while received := connection.recv(1_000_000):
                self.requests.append((number, received))
                script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
                if script(connection, received) is False:
                    return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


@pytest.fixture
def serving() -> Iterator[Callable[..., ScriptedSocket]]:
    with contextlib.ExitStack() as stack:

        def serve(*scripts: Script) -> ScriptedSocket:
            server = ScriptedSocket(stack.enter_context(socket.create_server(("127.0.0.1", 0))), *scripts)
            stack.callback(server.close)
            return server

        yield serve


def saying(*pieces: bytes, then: bool = True) -> Script:
    def say(connection: socket.socket, _: bytes) -> bool:
        for piece in pieces:
            connection.sendall(piece)
        return then

    return say


def request(url: str, method: str = "POST", body: bytes = b"body", headers: Any = ()) -> Request:
    return Request(method, url, headers, body)


Exchange = Callable[..., list[Reply | BrokerUnreachable]]


def sync_exchange(
    url: str, count: int = 1, timeout_s: float = LONG_S, body: bytes = b"body"
) -> list[Reply | BrokerUnreachable]:
    outcomes: list[Reply | BrokerUnreachable] = []
    transport = ServiceTransport()
    for _ in range(count):
        try:
            outcomes.append(transport.send(request(url, body=body), timeout_s))
        except BrokerUnreachable as error:
            outcomes.append(error)
    transport.close()
    return outcomes


def async_exchange(
    url: str, count: int = 1, timeout_s: float = LONG_S, body: bytes = b"body"
) -> list[Reply | BrokerUnreachable]:
    async def run() -> list[Reply | BrokerUnreachable]:
        outcomes: list[Reply | BrokerUnreachable] = []
        transport = AsyncServiceTransport()
        for _ in range(count):
            try:
                outcomes.append(await transport.send(request(url, body=body), timeout_s))
            except BrokerUnreachable as error:
                outcomes.append(error)
        await transport.close()
        return outcomes

    return asyncio.run(run())


@pytest.fixture(params=[sync_exchange, async_exchange], ids=["sync", "async"])
def exchange(request: pytest.FixtureRequest) -> Exchange:
    return request.param  # type: ignore[no-any-return]


def test_a_request_is_one_piece_with_its_headers_and_its_body(exchange: Exchange, serving: Any) -> None:
    server = serving(saying(OK))
    assert exchange(server.url) == [Reply(200, (("Content-Length", "2"),), b"ok")]
    authority = server.url.split("/")[2]
    assert server.requests == [
        (
            1,
            b"POST /v2/x HTTP/1.1\r\nHost: %s\r\nAccept-Encoding: identity\r\nContent-Length: 4\r\n\r\nbody"
            % authority.encode(),
        )
    ]


def test_a_connection_that_the_server_closed_while_it_was_idle_is_not_used_again(
    exchange: Exchange, serving: Any
) -> None:
    server = serving(saying(OK, then=False), saying(OK))
    first, second = exchange(server.url, 2)
    assert isinstance(first, Reply)
    # The end may arrive before the second request or after it; only then it may have been heard.
    assert isinstance(second, Reply) or second.sent


def test_two_answers_at_once_are_not_mistaken_for_each_other(exchange: Exchange, serving: Any) -> None:
    server = serving(saying(OK + OK.replace(b"ok", b"no")), saying(OK))
    assert [outcome.body for outcome in exchange(server.url, 2)] == [b"ok", b"ok"]  # type: ignore[union-attr]
    assert [number for number, _ in server.requests] == [1, 2]


def test_an_answer_that_was_not_asked_for_ends_the_connection(exchange: Exchange, serving: Any) -> None:
    late = threading.Event()

    def answer_twice(connection: socket.socket, _: bytes) -> None:
        connection.sendall(OK)
        connection.sendall(OK.replace(b"ok", b"no"))
        late.set()

    server = serving(answer_twice, saying(OK))
    transport = ServiceTransport()
    assert transport.send(request(server.url), LONG_S).body == b"ok"
    assert late.wait(LONG_S)
    assert transport.send(request(server.url), LONG_S).body == b"ok"
    assert [number for number, _ in server.requests] == [1, 2]
    transport.close()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"", "it closed the connection without an answer; the request may have been accepted"),
        (OK[:-1], "it closed the connection in the middle of its answer; the request may have been accepted"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "the length of its answer is not clear"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 5000, "the head of its answer is larger than 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20000, "the head of its answer is larger than 65536 bytes"),
    ],
)
def test_no_usable_answer_says_what_was_wrong_and_may_have_been_heard(
    exchange: Exchange, serving: Any, said: bytes, why: str
) -> None:
    (error,) = exchange(serving(saying(said, then=False)).url)
    assert isinstance(error, BrokerUnreachable)
    assert why in str(error)
    assert error.sent is True


def test_another_protocol_has_surely_not_heard_a_first_request(exchange: Exchange, serving: Any) -> None:
    (error,) = exchange(serving(saying(b"SSH-2.0-x\r\n")).url)
    assert isinstance(error, BrokerUnreachable)
    assert (error.sent, "does not speak http" in str(error)) == (False, True)


def test_garbage_after_an_answer_in_http_may_follow_a_request_that_was_heard(exchange: Exchange, serving: Any) -> None:
    _, error = exchange(serving(saying(OK), saying(b"garbage\r\n")).url, 2)
    assert isinstance(error, BrokerUnreachable)
    assert error.sent is True


def test_an_answer_before_the_end_of_a_large_request_is_heard(exchange: Exchange, serving: Any) -> None:
    """A service refuses a large body and closes, while the rest of it is on its way."""
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    (outcome,) = exchange(serving(saying(refusal, then=False)).url, body=b"x" * 5_000_000)
    # The system may also report the reset before the answer.
    assert outcome.status == 413 if isinstance(outcome, Reply) else outcome.sent


def test_a_request_that_was_surely_not_heard_is_sent_on_another_connection(
    serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serving(saying(OK))
    transport = ServiceTransport()
    transport.send(request(server.url), LONG_S)
    monkeypatch.setattr(PlainConnection, "has_ended", lambda _: False)
    ((kept,),) = transport._plain._kept._idle.values()
    kept.socket.shutdown(socket.SHUT_WR)
    assert transport.send(request(server.url), LONG_S).body == b"ok"
    assert [number for number, _ in server.requests] == [1, 2]
    transport.close()


@pytest.mark.parametrize("piece", [b"H", b"HTTP/1.1 200 OK\r\nA: b\r\n", OK[:-1]])
def test_the_time_is_that_of_the_whole_attempt(exchange: Exchange, serving: Any, piece: bytes) -> None:
    stopped = threading.Event()

    def drip(connection: socket.socket, _: bytes) -> bool:
        connection.sendall(piece)
        stopped.wait(LONG_S)
        return False

    server = serving(drip)
    (error,) = exchange(server.url, timeout_s=0.05)
    stopped.set()
    assert isinstance(error, BrokerUnreachable)
    assert "no answer within 0.05 s; the request may have been accepted" in str(error)
    assert error.sent is True


def test_an_interrupted_request_leaves_nothing_for_the_next_one(serving: Any) -> None:
    def interrupt(_: socket.socket, __: bytes) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    server = serving(interrupt, saying(OK))
    transport = ServiceTransport()
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it starts beside it
    try:
        with pytest.raises(KeyboardInterrupt):
            transport.send(request(server.url), LONG_S)
    finally:
        signal.signal(signal.SIGINT, usual)
    assert transport.send(request(server.url), LONG_S).body == b"ok"
    assert [number for number, _ in server.requests] == [1, 2]
    transport.close()


@pytest.mark.anyio
async def test_a_server_that_sends_without_end_holds_no_event_loop_and_ends_at_the_deadline(serving: Any) -> None:
    tiny = b"1\r\nx\r\n" * 10_000

    def flood(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(tiny)

    transport, turns = AsyncServiceTransport(), 0
    sending = asyncio.create_task(transport.send(request(serving(flood).url), 0.5))
    while not sending.done():
        turns += 1
        await asyncio.sleep(0)
    with pytest.raises(BrokerUnreachable, match="no answer within"):
        await sending
    assert turns > 5, "others had turns"
    await transport.close()


@pytest.mark.anyio
async def test_a_cancelled_request_leaves_nothing_for_the_next_one(serving: Any) -> None:
    heard = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hear(_: socket.socket, __: bytes) -> None:
        loop.call_soon_threadsafe(heard.set)

    server = serving(hear, saying(OK))
    transport = AsyncServiceTransport()
    waiting = asyncio.create_task(transport.send(request(server.url), LONG_S))
    await heard.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await transport.send(request(server.url), LONG_S)).body == b"ok"
    assert [number for number, _ in server.requests] == [1, 2]
    await transport.close()


def test_threads_never_share_a_connection_at_one_time(serving: Any) -> None:
    def echo(connection: socket.socket, received: bytes) -> None:
        body = received.partition(b"\r\n\r\n")[2]
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    server = serving(echo)
    transport = ServiceTransport()
    with ThreadPoolExecutor(8) as pool:
        bodies = [b"%d" % number for number in range(300)]
        replies = list(pool.map(lambda body: transport.send(request(server.url, body=body), LONG_S).body, bodies))
    assert replies == bodies
    assert len({number for number, _ in server.requests}) <= 8
    transport.close()


def test_event_loops_share_one_client_one_after_another_and_at_once(serving: Any) -> None:
    server = serving(saying(OK))
    transport = AsyncServiceTransport()

    async def use() -> set[bytes]:
        replies = await asyncio.gather(*(transport.send(request(server.url), LONG_S) for _ in range(20)))
        return {reply.body for reply in replies}

    asyncio.run(use())
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda _: asyncio.run(use()), range(6))) == [{b"ok"}] * 6
    asyncio.run(transport.close())


def test_a_client_that_was_never_closed_leaves_no_warning(serving: Any) -> None:
    server = serving(saying(OK))
    QStash("t", base_url=server.url).http.request(path="/v2/x", method="GET", parse_response=False)
    client = AsyncQStash("t", base_url=server.url)
    asyncio.run(client.http.request(path="/v2/x", method="GET", parse_response=False))
    del client
    gc.collect()  # a warning would fail the test


def test_an_idle_connection_is_left_before_the_server_closes_it(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serving(saying(OK))
    transport = ServiceTransport()
    transport.send(request(server.url), LONG_S)
    monkeypatch.setattr(plain_connections, "IDLE_S", -1.0)
    transport.send(request(server.url), LONG_S)
    assert [number for number, _ in server.requests] == [1, 2]
    transport.close()


def test_ipv6_is_reached_by_its_address() -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with listener:
        server = ScriptedSocket(listener, saying(OK))
        url = f"http://[::1]:{listener.getsockname()[1]}/v2/x"
        assert [outcome.body for outcome in sync_exchange(url)] == [b"ok"]  # type: ignore[union-attr]
        assert f"Host: [::1]:{listener.getsockname()[1]}\r\n".encode() in server.requests[0][1]
        server.close()


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/v2/x",
        "http://user:word@example.com/v2/x",
        "http://bücher.example/v2/x",
        "http://example.com:99999/v2/x",
        "http://example.com/v2/x y",
        "http://example.com/v2/ü",
        "http://example.com/v2/x#part",
        "http://example.com",
    ],
)
def test_what_is_more_than_plain_http_goes_over_httpx(url: str) -> None:
    assert Routes().plain(request(url)) is None


@pytest.mark.parametrize(
    "name", ["Host", "content-length", "Transfer-Encoding", "Connection", "Expect", "a b", "", "ä"]
)
def test_headers_about_the_transfer_go_over_httpx(name: str) -> None:
    assert split(request("http://example.com/", headers=((name, "x"),))) is None


@pytest.mark.parametrize("value", ["a\r\nb", "a\nb", "a\0b", "a\x7f", " a", "a ", "\ud800"])
def test_a_value_that_http_cannot_carry_is_refused(value: str) -> None:
    sent = request("http://example.com/", headers=(("A", value),))
    parts = split(sent)
    assert parts is not None
    with pytest.raises(InvalidCallError, match="cannot be sent"):
        to_bytes(sent, *parts)
