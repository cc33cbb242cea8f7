"""Signed bundles, made by hand, and the lines of their responses."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import uvicorn

from qtasks.broker.server.listen import listen
from qtasks.protocol import bundles
from qtasks.protocol.bundles import BundleItem, ItemOutcome, StillRunning
from qtasks.tasks.ports import ASGIApp
from tests.support.tasks import BASE_URL, envelope, signature

Line = ItemOutcome | StillRunning


def item(target: str, *args: Any, body: bytes | None = None, **headers: str) -> BundleItem:
    """A delivery of a task, with the headers of a broker; header names have underscores in place of hyphens."""
    lines = {
        "Upstash-Message-Id": f"msg_of_{target.partition('?')[0]}",
        "Upstash-Retried": "0",
        "Content-Type": "application/json",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    return BundleItem(target, tuple(lines.items()), envelope(*args) if body is None else body)


def body_of(items: Sequence[BundleItem]) -> bytes:
    lines = [bundles.item_line(each) for each in items]
    assert None not in lines
    return b"".join(line for line in lines if line is not None)


def headers_of(body: bytes, base_url: str = BASE_URL, signed: str | None = None) -> dict[str, str]:
    """The headers of a bundle; `signed` replaces its signature."""
    return {
        "Upstash-Signature": signature(f"{base_url}/_bundle", body) if signed is None else signed,
        "Content-Type": bundles.CONTENT_TYPE,
    }


def read(content: bytes) -> list[Line]:
    assert content.endswith(b"\n")
    return [bundles.read_line(line) for line in content.split(b"\n")[:-1]]


def outcomes(lines: Sequence[Line]) -> dict[int, ItemOutcome]:
    """The outcomes by their places."""
    found = [line for line in lines if isinstance(line, ItemOutcome)]
    assert len({outcome.place for outcome in found}) == len(found)
    return {outcome.place: outcome for outcome in found}


def header(outcome: ItemOutcome, name: str) -> str | None:
    return next((value for key, value in outcome.headers if key == name), None)


async def post(app: ASGIApp, *items: BundleItem, prefix: str = "/qtasks") -> httpx.Response:
    """Send a bundle to an application, in place of a server."""
    body = body_of(items)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://internal") as client:
        return await client.post(f"{prefix}/_bundle", content=body, headers=headers_of(body))


async def run(app: ASGIApp, *items: BundleItem) -> dict[int, ItemOutcome]:
    """Send a bundle to an application, in place of a server; the outcomes."""
    response = await post(app, *items)
    assert response.status_code == 200, response.text
    return outcomes(read(response.content))


class DispatcherServer:
    """uvicorn around an application, on a free port."""

    def __init__(self, server: uvicorn.Server, url: str) -> None:
        self._server = server
        self.url = url
        """The base URL of the dispatcher."""

    def stop(self) -> None:
        """Let it stop, as after a signal."""
        self._server.should_exit = True


@contextmanager
def behind_uvicorn(app: ASGIApp, *, listener: socket.socket | None = None, **config: Any) -> Iterator[DispatcherServer]:
    """A server of an application that serves tasks under ``/qtasks``."""
    listener = listener or listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None, **config))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield DispatcherServer(server, f"http://127.0.0.1:{listener.getsockname()[1]}/qtasks")
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@asynccontextmanager
async def streamed(server: DispatcherServer, *items: BundleItem) -> AsyncIterator[AsyncIterator[Line]]:
    """Send a bundle to a server; its lines as they arrive."""
    body = body_of(items)
    async with (
        httpx.AsyncClient(timeout=20, trust_env=False) as client,
        client.stream("POST", f"{server.url}/_bundle", content=body, headers=headers_of(body)) as response,
    ):
        assert response.status_code == 200, await response.aread()
        yield (bundles.read_line(line.encode()) async for line in response.aiter_lines())
