"""The server's own loop: it ends at once when it is asked to, on whichever thread or in the handler of a signal."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn

from qtasks.broker.server import resting_server
from qtasks.broker.server.listen import listen
from qtasks.broker.server.resting_server import RestingServer
from tests.support.half_a_request import HalfARequest

PATIENCE_S = 10.0


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> RestingServer:
    monkeypatch.setattr(resting_server, "_TICK_S", 1e6)  # nothing but the request to stop ends the loop
    return RestingServer(uvicorn.Config(lambda: None))


async def until_it_rests(server: RestingServer) -> None:
    while not server.server_state.default_headers:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0)


def by_assignment(server: RestingServer) -> None:
    server.should_exit = True


def on_another_thread(server: RestingServer) -> None:
    threading.Thread(target=by_assignment, args=(server,)).start()


def by_a_signal(server: RestingServer) -> None:
    signal.signal(signal.SIGUSR1, lambda *_: by_assignment(server))
    os.kill(os.getpid(), signal.SIGUSR1)


@pytest.mark.parametrize("stop", [by_assignment, on_another_thread, by_a_signal])
def test_it_ends_at_once_when_it_should_exit(server: RestingServer, stop: Callable[[Any], None]) -> None:
    async def serve() -> None:
        async with asyncio.timeout(PATIENCE_S):
            serving = asyncio.create_task(server.main_loop())
            await until_it_rests(server)
            assert not serving.done()
            stop(server)
            await serving

    previous = signal.getsignal(signal.SIGUSR1)
    try:
        asyncio.run(serve())
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_one_that_should_exit_before_it_serves_does_not_serve(server: RestingServer) -> None:
    server.should_exit = True
    asyncio.run(asyncio.wait_for(server.main_loop(), PATIENCE_S))


def test_the_date_is_made_anew_at_each_tick(server: RestingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resting_server, "_TICK_S", 0)
    dates: list[str] = []

    def date(*_: object, **__: object) -> str:
        dates.append(f"date {len(dates)}")
        server.should_exit = len(dates) == 3
        return dates[-1]

    monkeypatch.setattr("uvicorn.server.formatdate", date)
    asyncio.run(asyncio.wait_for(server.main_loop(), PATIENCE_S))
    assert (b"date", b"date 2") in server.server_state.default_headers


def test_a_stop_does_not_wait_for_half_a_request_whose_connection_appears_late() -> None:
    server = RestingServer(uvicorn.Config(lambda: None, lifespan="off", timeout_graceful_shutdown=60))

    async def stop() -> None:
        listener = listen("127.0.0.1", 0)
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup([listener])
        connections: set[Any] = server.server_state.connections
        connections.add(HalfARequest(connections, then=HalfARequest(connections)))
        await server.shutdown([listener])
        assert not connections

    began_s = time.monotonic()
    asyncio.run(stop())
    assert time.monotonic() - began_s < PATIENCE_S
