"""What a stopwatch is told by the transports. Its clock goes on by a second at each look, so no time is measured."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from qtasks.broker.ports import UNTIMED, DeliveryRequest, Failure, ResponseStream, Stopwatch, Timing
from qtasks.broker.transport.destination_policy import DestinationPolicy
from qtasks.broker.transport.http_transport import HttpTransport
from qtasks.broker.transport.in_process import AsgiTransport
from qtasks.protocol.messages import Response
from tests.support.hostile import OK, Connection, HostileServer, answering
from tests.support.servers import free_port

pytestmark = pytest.mark.anyio

ORIGIN = "http://app.internal"


@pytest.fixture
async def transport() -> AsyncIterator[HttpTransport]:
    transport = HttpTransport(DestinationPolicy("local"))
    yield transport
    await transport.close()


@pytest.fixture
def stopwatch() -> Stopwatch:
    seconds = itertools.count()
    return Stopwatch(lambda: next(seconds))


def request(url: str, stopwatch: Stopwatch, timeout_ms: int = 5000) -> DeliveryRequest:
    return DeliveryRequest(url, "POST", (), b"body", timeout_ms, stopwatch)


async def test_an_answered_request_has_all_parts(transport: HttpTransport, stopwatch: Stopwatch) -> None:
    async with HostileServer(answering(OK)) as server:
        assert isinstance(await transport.send(request(server.url, stopwatch)), Response)
    assert stopwatch.timing() == Timing(1000, 1000, 1000)


async def test_a_refused_connection_ends_while_connecting(transport: HttpTransport, stopwatch: Stopwatch) -> None:
    assert isinstance(await transport.send(request(f"http://127.0.0.1:{free_port()}/", stopwatch)), Failure)
    assert stopwatch.timing() == Timing(1000)


async def test_a_timeout_after_the_connect_ends_in_the_wait_for_the_first_byte(
    transport: HttpTransport, stopwatch: Stopwatch
) -> None:
    async def silent(connection: Connection) -> None:
        await connection.request()
        await connection.wait_until_closed()

    async with HostileServer(silent) as server:
        outcome = await transport.send(request(server.url, stopwatch, timeout_ms=100))
    assert isinstance(outcome, Failure)
    assert (outcome.code, stopwatch.timing()) == ("timeout", Timing(1000, 1000))


async def test_a_body_that_breaks_off_ends_in_the_body(transport: HttpTransport, stopwatch: Stopwatch) -> None:
    async def half(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        connection.reset()

    async with HostileServer(half) as server:
        assert isinstance(await transport.send(request(server.url, stopwatch)), Failure)
    assert stopwatch.timing() == Timing(1000, 1000, 1000)


async def test_a_request_that_is_sent_once_more_has_connected_twice(
    transport: HttpTransport, stopwatch: Stopwatch
) -> None:
    closed = asyncio.Event()

    async def once(connection: Connection) -> None:
        await connection.request()
        await connection.send(OK)
        await connection.request()  # of the next delivery
        closed.set()

    async with HostileServer(once) as server:
        await transport.send(DeliveryRequest(server.url, "POST", (), b"body", 5000))
        assert isinstance(await transport.send(request(server.url, stopwatch)), Response)
        assert closed.is_set()
    assert stopwatch.timing() == Timing(2000, 1000, 1000)


async def test_what_is_not_sent_has_no_times(stopwatch: Stopwatch) -> None:
    transport = HttpTransport(DestinationPolicy("public"))
    assert isinstance(await transport.send(request("http://127.0.0.1:1/", stopwatch)), Failure)
    await transport.close()
    assert stopwatch.timing() == UNTIMED


async def test_of_a_streamed_response_the_transport_tells_only_of_the_connection(
    transport: HttpTransport, stopwatch: Stopwatch
) -> None:
    async with HostileServer(answering(OK)) as server:
        stream = await transport.open(request(server.url, stopwatch))
        assert isinstance(stream, ResponseStream)
        await stream.close()
    assert stopwatch.timing(bundled=3) == Timing(1000, 1000, None, 3)


async def test_an_application_in_the_process_has_the_same_parts(stopwatch: Stopwatch) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    inside = AsgiTransport(ORIGIN, app, asyncio.get_running_loop(), HttpTransport(DestinationPolicy("local")))
    assert isinstance(await inside.send(request(f"{ORIGIN}/task", stopwatch)), Response)
    await inside.close()
    assert stopwatch.timing() == Timing(1000, 1000, 1000)
