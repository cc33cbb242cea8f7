"""The stop of the server of `qtasks run` and `qtasks dev`."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest
from fastapi import FastAPI

from qtasks.broker.server.listen import listen
from qtasks.cli.serving.uvicorn_server import UvicornServer
from tests.support.half_a_request import HalfARequest

pytestmark = pytest.mark.anyio


class OpenWebsocket:
    """A websocket as uvicorn keeps it: its class comes from a package that need not be installed."""

    def __init__(self) -> None:
        self.shutdowns = 0

    def shutdown(self) -> None:
        """Send the close frame; the client does not answer it."""
        self.shutdowns += 1


async def hand_back() -> None:
    raise AssertionError("no task runs")


async def started(listener: socket.socket) -> UvicornServer:
    server = UvicornServer(FastAPI(), drain_s=20, hand_back=hand_back, started=lambda: None)
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup([listener])
    return server


async def test_a_stop_closes_open_websockets_and_does_not_wait_for_their_clients() -> None:
    listener = listen("127.0.0.1", 0)
    server = await started(listener)
    websocket = OpenWebsocket()
    server.server_state.connections.add(websocket)  # type: ignore[arg-type]
    began_s = time.monotonic()
    await server.shutdown([listener])
    assert websocket.shutdowns == 1, "uvicorn's own fails at a second one"
    assert time.monotonic() - began_s < 10


async def test_a_stop_does_not_wait_for_half_a_request_whose_connection_appears_late() -> None:
    listener = listen("127.0.0.1", 0)
    server = await started(listener)
    connections: set[Any] = server.server_state.connections
    late = HalfARequest(connections, then=HalfARequest(connections))
    connections.add(HalfARequest(connections, then=late))
    began_s = time.monotonic()
    await server.shutdown([listener])
    assert time.monotonic() - began_s < 10
