"""How long a connection may take, and what all of them may hold: both ways, on every server of ours."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import pytest

from qtasks.broker.server.connection_watch import ConnectionLimits, Phase
from tests.support.watched_server import RawClient, WatchedServer

pytestmark = pytest.mark.anyio

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
MIB = 1024 * 1024


def post(length: int, *lines: bytes) -> bytes:
    return b"\r\n".join((b"POST / HTTP/1.1", b"Host: localhost", b"Content-Length: %d" % length, *lines, b"", b""))


class App:
    """Reads the body when `may_read` is set, then answers its size when `may_answer` is set, in `pieces`."""

    def __init__(self, answer: bytes | None = None, *, pieces: int = 1) -> None:
        self.may_read = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_read.set()
        self.may_answer.set()
        self.disconnects = 0
        self._answer = answer
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.may_read.wait()
        size = 0
        while True:
            event = await receive()
            if event["type"] == "http.disconnect":
                self.disconnects += 1
                return
            size += len(event["body"])
            if not event["more_body"]:
                break
        await self.may_answer.wait()
        body = self._answer if self._answer is not None else b"%d" % size
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        size = -(-len(body) // self._pieces)
        for at in range(0, size * (self._pieces - 1), size):
            await send({"type": "http.response.body", "body": body[at : at + size], "more_body": True})
        await send({"type": "http.response.body", "body": body[size * (self._pieces - 1) :]})


# -- bodies


async def test_a_body_that_does_not_come_is_answered_408_after_30_seconds() -> None:
    app = App()
    async with WatchedServer(app) as server:
        client = await server.connect()
        await client.send(post(10) + b"abc")
        await server.until_phase(Phase.BODY)
        await server.spend(29)
        assert server.connections[0].phase() is Phase.BODY
        await server.spend(3)
        [answer] = await client.answers()
        assert (answer.status, answer.error) == (408, "no data for 30 s while reading the body")
        await server.until(lambda: app.disconnects == 1)


async def test_a_byte_every_four_seconds_does_not_prolong_a_body() -> None:
    async with WatchedServer(App()) as server:
        client = await server.connect()
        await client.send(post(1000))
        await server.until_phase(Phase.BODY)
        for second in range(0, 40, 4):
            if server.connections[0].phase() is Phase.GOODBYE:
                break
            await client.send(b"x")
            await server.until_received(second // 4 + 1)
            await server.spend(4)
        [answer] = await client.answers()
        assert answer.status == 408
        assert answer.error.startswith("the body came too slowly: 8 bytes in 3")


async def test_a_large_body_has_the_time_that_its_size_needs() -> None:
    """A user's own route may take uploads: ten minutes for half a mebibyte are slow, and not too slow."""
    async with WatchedServer(App()) as server:
        client = await server.connect()
        await client.send(post(600 * 1000))
        await server.until_phase(Phase.BODY)
        for second in range(600):
            await client.send(b"x" * 1000)
            await server.until_received((second + 1) * 1000)
            await server.spend(1)
        assert (await client.answer()).body == b"600000"


async def test_what_the_application_does_not_read_is_not_the_fault_of_the_client() -> None:
    app = App()
    app.may_read.clear()
    async with WatchedServer(app) as server:
        client = await server.connect()
        sending = asyncio.create_task(client.send(post(MIB) + b"x" * MIB))
        await server.until(lambda: server.connections[0].is_paused())
        server.watch.look()
        await server.spend(7200, step_s=60)
        app.may_read.set()
        assert (await client.answer()).body == b"1048576"
        await sending


async def test_a_client_that_waits_for_leave_to_continue_is_not_slow() -> None:
    app = App()
    app.may_read.clear()
    async with WatchedServer(app) as server:
        client = await server.connect()
        await client.send(post(3, b"Expect: 100-continue"))
        await server.until_phase(Phase.BODY)
        await server.spend(3600, step_s=60)
        app.may_read.set()
        assert await client.read(25) == len(b"HTTP/1.1 100 Continue\r\n\r\n")
        await client.send(b"abc")
        assert (await client.answer()).body == b"3"


# -- responses


async def unread(server: WatchedServer) -> RawClient:
    """A client that has asked for more than its system takes, and reads nothing."""
    client = await server.connect()
    already = len(server.connections)
    await client.send(GET)
    await server.until(lambda: sum(bool(connection.unsent()) for connection in server.connections) >= already)
    server.watch.look()
    return client


async def test_a_client_that_does_not_read_its_response_is_cut_after_30_seconds() -> None:
    async with WatchedServer(App(b"x" * MIB)) as server:
        client = await unread(server)
        await server.spend(29)
        assert server.connections
        await server.spend(3)
        await server.until(lambda: not server.connections)
        assert await client.read(2 * MIB) < MIB


async def test_a_client_that_takes_a_few_bytes_now_and_then_is_cut() -> None:
    async with WatchedServer(App(b"x" * MIB), ConnectionLimits(write_rate=100_000)) as server:
        client = await unread(server)
        for _ in range(10):
            await client.read(100_000)
            await server.spend(20)
        assert not server.connections


async def test_a_client_that_reads_slowly_gets_all_of_a_large_response() -> None:
    async with WatchedServer(App(b"x" * MIB)) as server:
        client = await unread(server)
        got = 0
        for _ in range(100):
            got += await client.read(10_000)
            await server.spend(10)
        assert got == 1_000_000
        assert await client.read(48_000) == 48_000


async def test_an_application_may_take_hours_to_answer() -> None:
    """A task, or the events of a language model: the client is not slow."""
    app = App()
    app.may_answer.clear()
    async with WatchedServer(app) as server:
        client = await server.connect()
        await client.send(GET)
        await server.until_phase(Phase.RESPONSE)
        await server.spend(7200, step_s=60)
        app.may_answer.set()
        assert (await client.answer()).status == 200


# -- all connections together


async def test_what_all_connections_hold_together_is_bounded() -> None:
    """Beyond it new requests are told to come back, and those that do not read make room."""
    async with WatchedServer(App(b"x" * MIB), ConnectionLimits(held=2 * MIB)) as server:
        clients = [await unread(server) for _ in range(3)]
        client = await server.connect()
        await client.send(GET)
        [answer] = await client.answers()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        await clients[2].read(1000)
        await server.spend(4)
        assert len(server.connections) == 3
        await clients[2].read(1000)
        await server.spend(2)
        await server.until(lambda: len(server.connections) == 2)
        assert [await client.read(MIB - 2000) == MIB - 2000 for client in clients].count(True) == 2
        client = await server.connect()
        await client.send(GET)
        assert (await client.answer()).status == 200


async def test_those_who_read_a_few_bytes_now_and_then_do_not_keep_the_others_out() -> None:
    """They move, so none of them stands still; together they hold more than they may."""
    async with WatchedServer(App(b"x" * MIB), ConnectionLimits(held=2 * MIB)) as server:
        clients = [await unread(server) for _ in range(3)]
        for _ in range(6):
            for client in clients:
                await client.read(10_000)
            await server.spend(1)
        await server.until(lambda: len(server.connections) == 2)
        client = await server.connect()
        await client.send(GET)
        assert (await client.answer()).status == 200


async def test_a_new_connection_takes_the_place_of_one_that_hardly_reads_its_response() -> None:
    async with WatchedServer(App(b"x" * MIB, pieces=16), ConnectionLimits(connections=2)) as server:
        slow = [await unread(server) for _ in range(2)]
        for _ in range(2):
            assert [await client.read(10_000) for client in slow] == [10_000, 10_000]
            await server.spend(1)
        client = await server.connect()
        await client.send(GET)
        assert (await client.answer()).status == 200
        assert await slow[0].read(2 * MIB) < MIB - 20_000
        assert await slow[1].read(MIB - 20_000) == MIB - 20_000


async def test_many_new_connections_that_read_nothing_do_not_keep_the_others_out() -> None:
    """They are younger than a second, as if the same clients came again and again."""
    async with WatchedServer(App(b"x" * MIB, pieces=16), ConnectionLimits(connections=2)) as server:
        for _ in range(2):
            await unread(server)
        await server.spend(0.2, step_s=0.1)
        client = await server.connect()
        await client.send(GET)
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("pieces", [1, 16])
async def test_a_connection_too_many_does_not_end_a_response_that_is_read_quickly(pieces: int) -> None:
    async with WatchedServer(App(b"x" * MIB, pieces=pieces), ConnectionLimits(connections=1)) as server:
        reader = await unread(server)
        for _ in range(3):
            assert await reader.read(200_000) == 200_000
            await server.spend(1)
        [answer] = await (await server.connect()).answers()
        assert answer.status == 503
        assert await reader.read(MIB - 600_000) == MIB - 600_000


@pytest.mark.parametrize("begun", [b"", GET[:-4], post(1000) + b"x"], ids=["silent", "half a header", "half a body"])
async def test_a_new_connection_takes_the_place_of_one_that_sends_hardly_anything(begun: bytes) -> None:
    """Those who only hold connections keep no other client out."""
    async with WatchedServer(App(), ConnectionLimits(connections=3)) as server:
        idle = await server.connect()
        await idle.send(GET)
        await idle.answer()
        slow = [await server.connect() for _ in range(2)]
        for client in slow:
            await client.send(begun)
        await server.until(lambda: sum(connection.is_moving for connection in server.connections) == 2 * bool(begun))
        await server.spend(3)
        for _ in range(2):
            client = await server.connect()
            await client.send(GET)
            assert (await client.answer()).status == 200
        assert await slow[0].answers() == []
        await idle.send(GET)
        assert (await idle.answer()).status == 200


async def test_a_connection_too_many_is_told_to_come_back_while_all_others_are_at_work() -> None:
    app = App()
    app.may_answer.clear()
    async with WatchedServer(app, ConnectionLimits(connections=2)) as server:
        clients = [await server.connect() for _ in range(2)]
        for client in clients:
            await client.send(GET)
        await server.until_phase(Phase.RESPONSE)
        [answer] = await (await server.connect()).answers()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        app.may_answer.set()
        assert [(await client.answer()).status for client in clients] == [200, 200]


async def test_nothing_is_kept_of_a_connection_that_was_reset() -> None:
    """Otherwise those who connect, ask and reset could fill the memory."""
    async with WatchedServer(App()) as server:
        client = await server.connect()
        await client.send(GET)
        await server.until_phase(Phase.IDLE)
        connection = weakref.ref(server.connections[0])
        client.socket.close()  # with an unread response, so this is a reset
        await server.until(lambda: not server.state.connections)
        gc.collect()
        assert connection() is None


async def test_a_dispatcher_that_is_busy_ends_no_attempt() -> None:
    """The broker would count a plain 503 as a failure of the task."""
    async with WatchedServer(App(), ConnectionLimits(held=-1), is_dispatcher=True) as server:
        server.watch.look()
        client = await server.connect()
        await client.send(GET)
        [answer] = await client.answers()
        assert (answer.status, answer.headers["qtasks-interrupted"]) == (503, "busy")
        assert answer.headers["qtasks-dispatcher"] == "true"


async def test_requests_that_wait_on_one_connection_are_not_parsed_before_their_turn() -> None:
    """Parsed, each would take a hundred times its size."""
    app = App()
    app.may_answer.clear()
    async with WatchedServer(app) as server:
        client = await server.connect()
        sending = asyncio.create_task(client.send(GET * 2000))
        await server.until(lambda: server.connections[0].is_paused())
        assert server.connections[0].number == 1
        app.may_answer.set()
        reading = asyncio.create_task(client.read(MIB))
        await server.until(lambda: server.connections[0].number == 2000)
        await sending
        reading.cancel()


# -- the stop


async def test_a_stop_does_not_wait_for_the_rest_of_a_request() -> None:
    app = App()
    async with WatchedServer(app, ConnectionLimits(stop_s=0)) as server:
        head, body = await server.connect(), await server.connect()
        await head.send(GET[:-4])
        await body.send(post(10) + b"abc")
        await server.until(lambda: all(connection.is_moving for connection in server.connections))
        server.stop()
        for client in (head, body):
            [answer] = await client.answers()
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        await server.until(lambda: not server.state.tasks)


async def test_a_stop_answers_the_requests_that_are_complete() -> None:
    app = App()
    app.may_answer.clear()
    async with WatchedServer(app, ConnectionLimits(stop_s=0.5)) as server:
        complete, late = await server.connect(), await server.connect()
        await complete.send(post(3) + b"abc")
        await late.send(post(3))
        await server.until(lambda: len(server.state.tasks) == 2)
        server.stop()
        await late.send(b"abc")
        app.may_answer.set()
        for client in (complete, late):
            [answer] = await client.answers()
            assert (answer.status, answer.body, answer.headers["connection"]) == (200, b"3", "close")


async def test_a_connection_on_which_a_response_still_leaves_is_not_idle() -> None:
    """A stop would cut the response otherwise."""
    async with WatchedServer(App(b"x" * MIB)) as server:
        client = await unread(server)
        [connection] = server.connections
        assert connection.is_moving
        server.stop()
        assert await client.read(2 * MIB) > MIB
        await server.until(lambda: not connection.is_moving)


async def test_a_stop_does_not_wait_for_a_client_that_does_not_read() -> None:
    async with WatchedServer(App(b"x" * MIB)) as server:
        await unread(server)
        server.stop()
        await server.spend(3)
        await server.until(lambda: not server.connections)
