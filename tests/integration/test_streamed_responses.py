"""Responses that are read as they arrive: on real sockets, and from an application in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from qtasks.broker.ports import DeliveryRequest, Failure, ResponseStream, StreamBroken
from qtasks.broker.transport.asgi_exchange import MAX_UNREAD
from qtasks.broker.transport.destination_policy import DestinationPolicy
from qtasks.broker.transport.http_transport import HttpTransport
from qtasks.broker.transport.in_process import AsgiTransport
from tests.support.hostile import OK, Connection, HostileServer, answering

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
ORIGIN = "http://app.internal"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def request(url: str, timeout_ms: int = 5000) -> DeliveryRequest:
    return DeliveryRequest(url, "POST", (), b"body", timeout_ms)


@pytest.fixture
async def transport() -> AsyncIterator[HttpTransport]:
    transport = HttpTransport(DestinationPolicy("local"))
    yield transport
    await transport.close()


async def opened(answer: ResponseStream | Failure) -> ResponseStream:
    assert isinstance(answer, ResponseStream), answer
    return answer


async def rest_of(stream: ResponseStream) -> bytes:
    body = b"".join([piece async for piece in stream.chunks])
    await stream.close()
    return body


# -- over the network


async def test_the_pieces_of_a_body_are_read_as_they_arrive(transport: HttpTransport) -> None:
    may_go_on = asyncio.Event()

    async def in_two_pieces(connection: Connection) -> None:
        await connection.request()
        await connection.send(HEAD + chunk(b"first\n"))
        await may_go_on.wait()
        await connection.send(chunk(b"second\n") + END)

    async with HostileServer(in_two_pieces) as server:
        stream = await opened(await transport.open(request(server.url)))
        assert stream.status == 200
        assert ("Content-Type", "application/x-ndjson") in stream.headers
        assert await anext(aiter(stream.chunks)) == b"first\n"
        may_go_on.set()
        assert await rest_of(stream) == b"second\n"


async def test_a_redirect_is_an_answer_and_is_not_followed(transport: HttpTransport) -> None:
    async with HostileServer(answering(OK)) as canary:
        moved = b"HTTP/1.1 307 Moved\r\nLocation: %b/\r\nContent-Length: 0\r\n\r\n" % canary.url.encode()
        async with HostileServer(answering(moved)) as server:
            stream = await opened(await transport.open(request(server.url)))
            assert (stream.status, await rest_of(stream), canary.connections) == (307, b"", 0)


async def test_the_connection_of_a_response_that_was_read_to_its_end_is_used_again(transport: HttpTransport) -> None:
    async def answering_all(connection: Connection) -> None:
        while await connection.request() is not None:
            await connection.send(HEAD + chunk(b"line\n") + END)

    async with HostileServer(answering_all) as server:
        for _ in range(3):
            assert await rest_of(await opened(await transport.open(request(server.url)))) == b"line\n"
        assert server.connections == 1


async def test_the_connection_of_a_response_that_was_left_is_closed(transport: HttpTransport) -> None:
    async def endless(connection: Connection) -> None:
        await connection.request()
        await connection.send(HEAD + chunk(b"line\n"))
        await connection.wait_until_closed()

    async with HostileServer(endless) as server:
        stream = await opened(await transport.open(request(server.url)))
        await stream.close()
        async with asyncio.timeout(5):
            await server.closed_by_peer.wait()


async def test_a_response_that_breaks_off_says_so(transport: HttpTransport) -> None:
    async def broken(connection: Connection) -> None:
        await connection.request()
        await connection.send(HEAD + chunk(b"line\n"))
        await connection.pause()
        connection.reset()

    async with HostileServer(broken) as server:
        stream = await opened(await transport.open(request(server.url)))
        with pytest.raises(StreamBroken) as caught:
            await rest_of(stream)
        await stream.close()
    assert caught.value.failure.code == "connection_lost"


async def test_no_head_before_the_deadline_is_a_timeout(transport: HttpTransport) -> None:
    async def silent(connection: Connection) -> None:
        await connection.request()
        await connection.wait_until_closed()

    async with HostileServer(silent) as server:
        answer = await transport.open(request(server.url, timeout_ms=50))
    assert isinstance(answer, Failure)
    assert answer.code == "timeout"


async def test_the_deadline_does_not_cover_the_body(transport: HttpTransport) -> None:
    may_go_on = asyncio.Event()

    async def late(connection: Connection) -> None:
        await connection.request()
        await connection.send(HEAD)
        await may_go_on.wait()
        await connection.send(chunk(b"line\n") + END)

    async with HostileServer(late) as server:
        stream = await opened(await transport.open(request(server.url, timeout_ms=100)))
        asyncio.get_running_loop().call_later(0.15, may_go_on.set)
        assert await rest_of(stream) == b"line\n"


@pytest.mark.parametrize(
    "flood",
    [b"1;" + b"x" * 60_000 + b"\r\nx\r\n", b"1\r\n\n\r\n" * 5_000],
    ids=["chunk extensions", "chunks of one byte"],
)
async def test_a_body_that_costs_far_more_than_it_holds_is_ended(transport: HttpTransport, flood: bytes) -> None:
    async def flooding(connection: Connection) -> None:
        await connection.request()
        await connection.send(HEAD)
        await connection.flood(flood)

    async with HostileServer(flooding) as server:
        stream = await opened(await transport.open(request(server.url)))
        with pytest.raises(StreamBroken) as caught:
            async with asyncio.timeout(20):
                await rest_of(stream)
        await stream.close()
    assert caught.value.failure.code in ("bad_response", "connection_lost")


async def test_an_address_that_the_policy_refuses_is_not_dialled() -> None:
    transport = HttpTransport(DestinationPolicy("public"))
    answer = await transport.open(request("http://127.0.0.1:1/tasks/_bundle"))
    await transport.close()
    assert isinstance(answer, Failure)
    assert answer.code == "destination_blocked"


# -- from an application in this process

Application = Callable[[Any, Any, Any], Awaitable[None]]


@pytest.fixture
def other_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in another thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


class _Unused:
    async def send(self, request: DeliveryRequest) -> Failure:
        return Failure("dns", "nothing is outside")

    async def close(self) -> None: ...


async def begin(send: Any, status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"x-a", b"1")]})


async def test_an_application_in_this_process_is_read_as_it_sends(other_loop: asyncio.AbstractEventLoop) -> None:
    may_go_on = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["body"] == b"body"
        await begin(send)
        await send({"type": "http.response.body", "body": b"first\n", "more_body": True})
        await asyncio.to_thread(may_go_on.wait)
        await send({"type": "http.response.body", "body": b"second\n"})

    stream = await opened(await AsgiTransport(ORIGIN, app, other_loop, _Unused()).open(request(f"{ORIGIN}/t/_bundle")))
    assert (stream.status, stream.headers) == (200, (("x-a", "1"),))
    assert await anext(aiter(stream.chunks)) == b"first\n"
    may_go_on.set()
    assert await rest_of(stream) == b"second\n"


@pytest.mark.parametrize("same_loop", [False, True])
async def test_an_application_waits_while_much_of_its_response_is_unread(
    other_loop: asyncio.AbstractEventLoop, same_loop: bool
) -> None:
    sent: list[int] = []
    ended = threading.Event()
    piece = b"x" * 65_536

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await begin(send)
        for number in range(64):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            sent.append(number)
        ended.set()

    loop = asyncio.get_running_loop() if same_loop else other_loop
    stream = await opened(await AsgiTransport(ORIGIN, app, loop, _Unused()).open(request(f"{ORIGIN}/t/_bundle")))
    first = await anext(aiter(stream.chunks))
    assert len(sent) * len(piece) <= MAX_UNREAD + len(first) + len(piece)
    assert len(first) + len(await rest_of(stream)) == 64 * len(piece)


async def test_an_application_learns_that_its_reader_is_gone(other_loop: asyncio.AbstractEventLoop) -> None:
    seen: list[str] = []
    ended = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await begin(send)
        seen.append((await receive())["type"])
        await send({"type": "http.response.body", "body": b"x" * 2 * MAX_UNREAD, "more_body": True})
        ended.set()

    stream = await opened(await AsgiTransport(ORIGIN, app, other_loop, _Unused()).open(request(f"{ORIGIN}/t/_bundle")))
    await stream.close()
    assert await asyncio.to_thread(ended.wait, 5)
    assert seen == ["http.disconnect"]


@pytest.mark.parametrize("has_begun", [False, True])
async def test_an_application_that_fails_breaks_its_response(
    other_loop: asyncio.AbstractEventLoop, has_begun: bool
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if has_begun:
            await begin(send)
        raise RuntimeError("oops")

    answer = await AsgiTransport(ORIGIN, app, other_loop, _Unused()).open(request(f"{ORIGIN}/t/_bundle"))
    if isinstance(answer, ResponseStream):
        with pytest.raises(StreamBroken) as caught:
            await rest_of(answer)
        answer_failure = caught.value.failure
    else:
        answer_failure = answer
    assert has_begun == isinstance(answer, ResponseStream)
    assert answer_failure.error == "the application failed: RuntimeError: oops"


async def test_an_application_whose_loop_has_ended_refuses() -> None:
    loop = asyncio.new_event_loop()
    loop.close()

    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    answer = await AsgiTransport(ORIGIN, app, loop, _Unused()).open(request(f"{ORIGIN}/t/_bundle"))
    assert isinstance(answer, Failure)
    assert (answer.code, answer.interrupted) == ("connection_refused", True)


async def test_a_request_to_another_origin_is_not_for_the_application(other_loop: asyncio.AbstractEventLoop) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("called")

    answer = await AsgiTransport(ORIGIN, app, other_loop, _Unused()).open(request("http://elsewhere.example/_bundle"))
    assert isinstance(answer, Failure)
    assert answer.code == "unsendable"
