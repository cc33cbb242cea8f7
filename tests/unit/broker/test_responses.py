"""How the API sends a response: never more of it in memory than its client takes, none to a client that left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import pytest

from qtasks.broker.api.api_request import ApiResponse
from qtasks.broker.broker import Broker
from qtasks.broker.core.values import AccountCredentials
from qtasks.broker.server.asgi import AsgiApi, RequestLimits, send_response
from qtasks.broker.server.connection_watch import Phase
from qtasks.broker.server.uvicorn_log import count_lines
from qtasks.broker.settings import BrokerSettings
from qtasks.protocol.development import USERS
from qtasks.request_body import BufferBudget
from tests.support.api_client import ApiClient, head
from tests.support.watched_server import RawClient, WatchedServer

pytestmark = pytest.mark.anyio

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
KIB = 1024
MIB = 1024 * KIB


class Source:
    """A stream of pieces; `released` is set when it is closed or at its end."""

    def __init__(self, count: int, *, waits_after: int | None = None) -> None:
        self.produced = 0
        self.released = asyncio.Event()
        self._count = count
        self._waits_after = waits_after

    async def pieces(self) -> AsyncIterator[bytes]:
        try:
            for number in range(self._count):
                if number == self._waits_after:
                    await asyncio.Event().wait()
                self.produced += 1
                yield b"x" * 16 * KIB
        finally:
            self.released.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send_response(receive, send, ApiResponse(200, stream=self.pieces()), BufferBudget(MIB))


async def asked(server: WatchedServer) -> RawClient:
    client = await server.connect()
    await client.send(GET)
    return client


async def test_a_stream_goes_on_only_as_its_client_reads() -> None:
    source = Source(1000)
    async with WatchedServer(source) as server:
        client = await asked(server)
        await server.until(lambda: server.connections[0].unsent() > 64 * KIB)
        for _ in range(100):
            await asyncio.sleep(0)
        assert source.produced < 20
        assert server.connections[0].unsent() < 200 * KIB
        assert await client.read(16_000 * KIB) == 16_000 * KIB
        await source.released.wait()


async def test_a_large_piece_of_a_stream_is_not_copied_while_its_client_reads() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x" * 1000 * KIB

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send_response(receive, send, ApiResponse(200, stream=pieces()), BufferBudget(MIB))

    async with WatchedServer(app) as server:
        client = await asked(server)
        await server.until(lambda: server.connections[0].unsent() > 64 * KIB)
        assert server.connections[0].unsent() < 200 * KIB
        assert await client.read(1000 * KIB) == 1000 * KIB


async def test_a_stream_is_closed_when_its_client_leaves_even_while_it_waits() -> None:
    source = Source(10, waits_after=1)
    async with WatchedServer(source) as server:
        client = await asked(server)
        await client.read(16 * KIB)
        client.socket.close()
        await server.until(source.released.is_set)
        await server.until(lambda: not server.state.tasks)


async def test_a_stream_is_closed_when_its_client_does_not_read() -> None:
    source = Source(1000)
    async with WatchedServer(source) as server:
        await asked(server)
        await server.until(lambda: server.connections[0].unsent() > 64 * KIB)
        server.watch.look()
        await server.spend(32)
        await server.until(source.released.is_set)
        assert not server.connections
        await server.until(lambda: not server.state.tasks)


@pytest.mark.parametrize("size", [0, 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 128 * KIB, 300_000])
async def test_a_large_body_leaves_in_pieces_and_arrives_whole(size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_response(receive, send, ApiResponse(200, body[:size]), BufferBudget(MIB))

    async with WatchedServer(app) as server:
        client = await asked(server)
        if size > 128 * KIB:
            await server.until(lambda: server.connections[0].unsent() > 0)
            assert server.connections[0].unsent() <= 2 * 65 * KIB
        assert (await client.answer()).body == body[:size]


# -- all requests together


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    broker = await Broker.open(BrokerSettings(path=":memory:"))
    yield broker
    await broker.stop()


API = ApiClient(80, AccountCredentials(USERS[0].name, USERS[0].token))
"""Only for the header of a request."""


def publish(size: int) -> bytes:
    return head("POST", API, f"Content-Length: {size}")


async def test_bodies_that_arrive_have_a_common_bound_beside_which_small_ones_are_served(broker: Broker) -> None:
    app = AsgiApi(broker.api, ready=broker.ready, limits=RequestLimits(buffered=350 * KIB))
    async with WatchedServer(app) as server:
        first, second, small = [await server.connect() for _ in range(3)]
        await first.send(publish(400 * KIB) + b"x" * 350 * KIB)
        await server.until_received(350 * KIB)
        sending = asyncio.create_task(second.send(publish(400 * KIB) + b"x" * 400 * KIB))
        answer = await second.answer()
        assert (answer.status, answer.headers["retry-after"], answer.headers["connection"]) == (503, "1", "close")
        assert "try again" in answer.json["error"]
        await sending
        await small.send(publish(60 * KIB) + b"x" * 60 * KIB)
        assert (await small.answer()).status == 201
        await first.send(b"x" * 50 * KIB)
        assert (await first.answer()).status == 201
        await small.send(publish(350 * KIB) + b"x" * 350 * KIB)
        assert (await small.answer()).status == 201


async def test_responses_that_leave_have_the_same_bound(broker: Broker) -> None:
    app = AsgiApi(broker.api, ready=broker.ready, limits=RequestLimits(buffered=600 * KIB))
    async with WatchedServer(app) as server:
        first, second = [await server.connect() for _ in range(2)]
        await first.send(publish(400 * KIB) + b"x" * 400 * KIB)
        message_id = (await first.answer()).json["messageId"]
        show = head("GET", API, target=f"/v2/messages/{message_id}")
        await first.send(show)
        await server.until(lambda: sum(connection.unsent() for connection in server.connections) > 0)
        await second.send(show)
        answer = await second.answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert (await first.answer()).json["body"] == "x" * 400 * KIB
        await server.until_phase(Phase.IDLE)
        again = await server.connect()
        await again.send(show)
        assert (await again.answer()).status == 200


async def test_streams_that_are_not_read_have_the_same_bound_and_keep_no_publish_out(broker: Broker) -> None:
    app = AsgiApi(broker.api, ready=broker.ready, limits=RequestLimits(buffered=600 * KIB))
    logs = head("GET", API, target="/v2/logs")
    async with WatchedServer(app) as server:
        first, second, third = [await server.connect() for _ in range(3)]
        for _ in range(2):
            await first.send(publish(300 * KIB) + b"x" * 300 * KIB)
            assert (await first.answer()).status == 201
        await first.send(logs)
        await server.until(lambda: sum(connection.unsent() for connection in server.connections) > 0)
        await second.send(logs)
        answer = await second.answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        await third.send(publish(500 * KIB) + b"x" * 500 * KIB)
        assert (await third.answer()).status == 201
        first.socket.close()
        await server.until(lambda: not server.state.tasks)
        again = await server.connect()
        await again.send(logs)
        assert await again.read(15) == 15
    assert app._leaving.take(600 * KIB), "all room is free again"


async def test_a_stream_whose_next_piece_finds_no_room_ends_unfinished(caplog: pytest.LogCaptureFixture) -> None:
    count_lines()
    budget = BufferBudget(300 * KIB)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"x" * 200 * KIB
        yield b"x" * 400 * KIB

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send_response(receive, send, ApiResponse(200, stream=pieces()), budget)

    async with WatchedServer(app) as server:
        for _ in range(3):
            client = await asked(server)
            answer = await client.read(10 * MIB)
            assert 200 * KIB < answer < 300 * KIB, "the connection ends after the first piece"
        await server.until(lambda: not server.state.tasks)
    assert budget.take(300 * KIB), "all room is free again"
    lines = [record.getMessage() for record in caplog.records]
    assert lines.count("a response was ended: too many are read slowly") == 1, "the others are counted"
    assert not [line for line in lines if "Exception in ASGI application" in line]
