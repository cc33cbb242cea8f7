"""Middleware of the user sees each delivery: where there is any, an application takes no bundles, and says so."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Mount
from starlette.testclient import TestClient

from qtasks import Embedded, QTasks
from qtasks.cli.serving.dev_guard import DevGuard
from qtasks.tasks.ports import ASGIApp, Receive, Scope, Send
from qtasks.tasks.web.gateway import Outermost, SocketGateway
from qtasks.tasks.web.passage import OWN_TASK
from tests.support.bundles import DispatcherServer, behind_uvicorn, body_of, headers_of, item, streamed
from tests.support.tasks import BASE_URL, application, deliver, envelope, signature

pytestmark = pytest.mark.anyio

TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


class Counting:
    """Plain ASGI middleware that counts deliveries and sets a context variable."""

    count = 0

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        Counting.count += scope["type"] == "http"
        TENANT.set("acme")
        await self.app(scope, receive, send)


class Hidden:
    """As `Counting`, without an attribute by which the application is found."""

    def __init__(self, app: ASGIApp) -> None:
        self._inner = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await Counting(self._inner)(scope, receive, send)


def wrapped(app: ASGIApp) -> ASGIApp:
    async def counting(scope: Scope, receive: Receive, send: Send) -> None:
        await Counting(app)(scope, receive, send)

    return counting


def spawning(app: ASGIApp) -> ASGIApp:
    """Calls the application in an asyncio task of its own."""

    async def starting(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.create_task(Counting(app)(scope, receive, send))

    return starting


@pytest.fixture(autouse=True)
def _nothing_is_counted() -> None:
    Counting.count = 0


def made(tasks: QTasks) -> FastAPI:
    app = FastAPI()

    @tasks.task
    async def tenant() -> str:
        return TENANT.get()

    app.include_router(tasks.router, prefix="/qtasks")
    return app


def added(app: FastAPI) -> ASGIApp:
    app.add_middleware(Counting)
    return app


def of_http(app: FastAPI) -> ASGIApp:
    @app.middleware("http")
    async def counted(request: Any, call_next: Any) -> Any:
        Counting.count += 1
        TENANT.set("acme")
        return await call_next(request)

    return app


def on_a_mount(app: FastAPI) -> ASGIApp:
    return Starlette(routes=[Mount("/", Counting(app))])


def in_an_outer_application(app: FastAPI) -> ASGIApp:
    outer = Starlette(routes=[Mount("/", app)])
    outer.add_middleware(BaseHTTPMiddleware, dispatch=_counted)
    return outer


async def _counted(request: Any, call_next: Any) -> Any:
    Counting.count += 1
    TENANT.set("acme")
    return await call_next(request)


WAYS: dict[str, Callable[[FastAPI], ASGIApp]] = {
    "added": added,
    "of http": of_http,
    "around it": Counting,
    "hidden around it": Hidden,
    "a function": wrapped,
    "a task": spawning,
    "on a mount": on_a_mount,
    "in an outer application": in_an_outer_application,
}
NAMES = {
    "added": "Counting stands",
    "of http": "BaseHTTPMiddleware (counted) stands",
    "around it": "Counting stands",
    "hidden around it": "Hidden, Counting stand",
    "a function": "wrapped, Counting stand",
    "a task": "Counting stands",
    "on a mount": "Counting stands",
    "in an outer application": "BaseHTTPMiddleware (_counted) stands",
}


async def post_single(server: DispatcherServer) -> httpx.Response:
    body = envelope()
    lines = {"Upstash-Signature": signature(f"{BASE_URL}/tenant", body), "Upstash-Message-Id": "msg_1"}
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.post(f"{server.url}/tenant", content=body, headers=lines)


async def post_bundle(server: DispatcherServer) -> httpx.Response:
    body = body_of([item("tenant"), item("tenant")])
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.post(f"{server.url}/_bundle", content=body, headers=headers_of(body))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_middleware_sees_each_delivery_and_its_variables_arrive(
    way: str, loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "qtasks.dispatch")
    with behind_uvicorn(WAYS[way](made(application())), loop=loop) as server:
        for number in range(2):
            answer = await post_single(server)
            assert (answer.json(), Counting.count) == ("acme", number + 1)
            assert "qtasks-slots" not in answer.headers
        refused = await post_bundle(server)
    assert (refused.status_code, refused.headers["qtasks-dispatcher"]) == (421, "true")
    assert "send them singly" in refused.json()["error"]
    said = [record.getMessage() for record in caplog.records if "one by one" in record.getMessage()]
    assert said == [f"deliveries arrive one by one, because {NAMES[way]} in front of the tasks"]


USUAL: dict[str, Callable[[FastAPI], ASGIApp]] = {
    "bare": lambda app: app,
    "checks": lambda app: TrustedHostMiddleware(CORSMiddleware(app), ["*"]),
    "mounted": lambda app: Starlette(routes=[Mount("/", app)]),
    "qtasks run": lambda app: Outermost(app, lambda _: _nothing()),
    "qtasks dev": lambda app: DevGuard(SocketGateway(Outermost(app, lambda _: _nothing()), "/qtasks")),
}


def _nothing() -> Any:
    return contextlib.nullcontext()


@pytest.mark.parametrize("way", USUAL)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_without_middleware_of_the_user_bundles_are_offered_and_taken(
    way: str, loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "qtasks.dispatch")
    with behind_uvicorn(USUAL[way](made(application())), loop=loop) as server:
        assert int((await post_single(server)).headers["qtasks-slots"]) > 0
        async with streamed(server, item("tenant"), item("tenant")) as lines:
            assert len([line async for line in lines]) == 3
    assert "one by one" not in caplog.text


async def test_what_changes_responses_stands_in_front() -> None:
    app = made(application())
    app.add_middleware(GZipMiddleware)
    with behind_uvicorn(app) as server:
        assert "qtasks-slots" not in (await post_single(server)).headers


async def test_a_caller_that_is_no_known_server_stands_in_front(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "qtasks.dispatch")
    assert "qtasks-slots" not in (await deliver(made(application()), "tenant")).headers
    assert "one by one, because" in caplog.text
    assert "deliver, request stand in front of the tasks" in caplog.text


async def test_a_server_that_is_not_known_is_described(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "qtasks.dispatch")
    app, body = made(application()), envelope()
    lines = [(b"upstash-signature", signature(f"{BASE_URL}/tenant", body).encode())]
    scope = {"type": "http", "method": "POST", "path": "/qtasks/tenant", "headers": lines, "query_string": b""}
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(event: Any) -> None:
        sent.append(event)

    await asyncio.create_task(app(scope, receive, send))
    assert sent[0]["status"] == 200
    assert f"because {OWN_TASK} stands in front of the tasks" in caplog.text


@pytest.mark.parametrize("way", ["added", "of http"])
def test_in_the_embedded_home_middleware_sees_each_delivery(way: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "qtasks.dispatch")
    tasks = QTasks(embedded=Embedded(":memory:"))
    app = WAYS[way](made(tasks))
    with TestClient(app):
        before = Counting.count
        handles = [tasks.tasks["tenant"].delay() for _ in range(20)]
        assert [handle.get(timeout=20) for handle in handles] == ["acme"] * 20
        assert Counting.count - before in (20, 21)  # once it is asked whether deliveries arrive
    assert caplog.text.count("one by one") == 1
