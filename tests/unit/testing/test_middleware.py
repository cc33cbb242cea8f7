"""Middleware between a delivery and the dispatcher: what a server of its own would let pass, passes here, too."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.httpsredirect import HTTPSRedirectMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse
from starlette.routing import Host, Mount

from qtasks import QTasks
from qtasks.errors import TaskFailed
from qtasks.testing import Environment

Next = Callable[[Request], Awaitable[Response]]


class OwnHostCheck:
    """Not of Starlette, with its words."""

    def __init__(self, app: Any, allowed_hosts: tuple[str, ...]) -> None:
        self.app = app
        self.allowed_hosts = allowed_hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and dict(scope["headers"])[b"host"].decode() not in self.allowed_hosts:
            await PlainTextResponse("unknown host", 421)(scope, receive, send)
            return
        await self.app(scope, receive, send)


async def https_by_the_proxy(request: Request, call_next: Next) -> Response:
    if request.headers.get("x-forwarded-proto", "http") != "https":
        return RedirectResponse(str(request.url.replace(scheme="https")), 308)
    return await call_next(request)


async def reads_the_body(request: Request, call_next: Next) -> Response:
    await request.body()
    return await call_next(request)


def middleware(app: FastAPI, *layers: tuple[Any, dict[str, Any]]) -> None:
    for kind, options in layers:
        app.add_middleware(kind, **options)


def hosts(*names: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    return TrustedHostMiddleware, {"allowed_hosts": list(names), **options}


def by(function: Any) -> tuple[Any, dict[str, Any]]:
    return BaseHTTPMiddleware, {"dispatch": function}


LETTING_PASS: dict[str, list[tuple[Any, dict[str, Any]]]] = {
    "one host": [hosts("example.com")],
    "any subdomain": [hosts("*.example.com")],
    "any host": [hosts("*")],
    "the www host": [hosts("www.testserver")],
    "two checks that agree on one host": [hosts("a.example.com", "b.example.com"), hosts("*.org", "b.example.com")],
    "a check of the user's own": [(OwnHostCheck, {"allowed_hosts": ("shop.example.com",)})],
    "https": [(HTTPSRedirectMiddleware, {})],
    "https, then a host": [hosts("example.com"), (HTTPSRedirectMiddleware, {})],
    "a host, then https": [(HTTPSRedirectMiddleware, {}), hosts("example.com")],
    "https as a proxy says it": [by(https_by_the_proxy)],
    "origins": [(CORSMiddleware, {"allow_origins": ["https://example.com"], "allow_credentials": True})],
    "compression": [(GZipMiddleware, {"minimum_size": 1})],
    "a reader of bodies": [by(reads_the_body), hosts("example.com"), (HTTPSRedirectMiddleware, {})],
}


@pytest.fixture
def app(tasks: QTasks) -> FastAPI:
    made = FastAPI()
    made.include_router(tasks.router, prefix="/jobs")

    @tasks.task(retries=0)
    async def double(n: int) -> int:
        return n * 2

    return made


@pytest.fixture
def qtasks_app(app: FastAPI) -> FastAPI:
    return app


@pytest.mark.parametrize("name", LETTING_PASS)
def test_a_delivery_passes_what_asks_for_a_host_or_a_scheme(
    app: FastAPI, tasks: QTasks, qtasks: Environment, name: str
) -> None:
    middleware(app, *LETTING_PASS[name])
    handles = [tasks.tasks["double"].delay(n) for n in (2, 3)]
    assert qtasks.drain() == 2
    assert [handle.get() for handle in handles] == [4, 6]


@pytest.mark.parametrize("name", ["one host", "https, then a host", "https as a proxy says it"])
def test_behind_a_socket_of_a_test_it_passes_as_well(app: FastAPI, tasks: QTasks, name: str) -> None:
    middleware(app, *LETTING_PASS[name])

    @app.get("/page")
    def page(request: Request) -> str:
        return str(request.url.scheme)

    with Environment(app, mode="full"):
        assert tasks.tasks["double"].delay(4).get(timeout=20) == 8
        origin = (tasks.settings.base_url or "").removesuffix("/jobs")
        assert httpx.get(f"{origin}/page").status_code in (307, 308, 400)  # nothing else is let through
        forged = httpx.post(f"{origin}/jobs/double", headers={"Upstash-Signature": "forged"})
        assert forged.status_code == 401


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda api: Starlette(routes=[Mount("/api", app=api)]),
        lambda api: Starlette(routes=[Mount("/api", app=api, name="api")]),
        lambda api: Starlette(routes=[Mount("/a", routes=[Mount("/b", app=api)])]),
        lambda api: Starlette(routes=[Mount("/api", app=TrustedHostMiddleware(api, ["*.example.com"]))]),
        lambda api: Starlette(routes=[Host("api.example.com", app=api)]),
    ],
    ids=["mounted", "mounted under a name", "mounted twice", "mounted with a check", "of one host"],
)
def test_a_mounted_application_is_reached_through_the_outer_one(
    app: FastAPI, tasks: QTasks, wrapped: Callable[[FastAPI], Starlette]
) -> None:
    middleware(app, hosts("api.example.com", "testserver"), (HTTPSRedirectMiddleware, {}))
    outer = FastAPI()
    outer.mount("/outer", wrapped(app))
    outer.add_middleware(TrustedHostMiddleware, allowed_hosts=["*.example.com"])
    with Environment(outer) as qtasks:
        handle = tasks.tasks["double"].delay(4)
        qtasks.drain()
        assert handle.get() == 8


async def locked(request: Request, call_next: Next) -> Response:
    return JSONResponse({"detail": "log in first"}, 401)


async def limited(request: Request, call_next: Next) -> Response:
    return PlainTextResponse("too many", 429, {"Retry-After": "1"})


async def to_login(request: Request, call_next: Next) -> Response:
    return RedirectResponse("/login", 307)


async def broken(request: Request, call_next: Next) -> Response:
    raise KeyError("session")


async def all_well(request: Request, call_next: Next) -> Response:
    return PlainTextResponse("welcome")


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (by(locked), 'answered 401 in place of the dispatcher: {"detail":"log in first"}'),
        (by(limited), "answered 429 in place of the dispatcher: too many"),
        (by(to_login), "answered 307 in place of the dispatcher: redirected to /login"),
        (by(broken), "raised KeyError in front of the dispatcher: 'session'"),
        (by(all_well), "answered 200 in place of the dispatcher: welcome"),
        (hosts(), "answered 400 in place of the dispatcher: Invalid host header"),
        (
            (OwnHostCheck, {"allowed_hosts": ()}),
            "answered 421 in place of the dispatcher: unknown host",
        ),
    ],
    ids=["401", "429", "307", "error", "200", "no host", "no host of the user's own"],
)
def test_what_stops_deliveries_is_named_in_the_log_the_dead_letter_and_the_handle(
    app: FastAPI,
    tasks: QTasks,
    qtasks: Environment,
    caplog: pytest.LogCaptureFixture,
    layer: tuple[Any, dict[str, Any]],
    text: str,
) -> None:
    app.add_middleware(layer[0], **layer[1])
    handle = tasks.tasks["double"].delay(4)
    assert qtasks.drain() == 1
    [dead] = qtasks.dlq
    assert dead.error == f"DeliveryFailed: the application {text}"
    with pytest.raises(TaskFailed, match=re.escape(text)):
        handle.get()
    errors = [record for record in caplog.records if record.name == "qtasks.app" and record.levelno == logging.ERROR]
    assert errors
    assert "QT220" in errors[0].getMessage()
    assert layer[0].__name__ in errors[0].getMessage()
    assert "/jobs/double" in errors[0].getMessage()


def test_an_answer_that_was_changed_after_the_run_is_not_asked_for_again(
    app: FastAPI, tasks: QTasks, qtasks: Environment
) -> None:
    runs: list[int] = []

    @tasks.task(retries=0)
    def note() -> int:
        runs.append(1)
        return 1

    async def rebuilds(request: Request, call_next: Next) -> Response:
        answered = await call_next(request)
        return PlainTextResponse("other words", answered.status_code)

    middleware(app, by(rebuilds), hosts("testserver"))
    handle = note.delay()
    assert qtasks.drain() == 1
    assert (runs, handle.get(), qtasks.dlq) == ([1], 1, [])


def test_a_delivery_that_has_run_is_not_made_again_where_another_scheme_is_asked_for(
    app: FastAPI, tasks: QTasks, qtasks: Environment
) -> None:
    paths: list[str] = []

    async def redirects_afterwards(request: Request, call_next: Next) -> Response:
        paths.append(request.url.path)
        await call_next(request)
        return RedirectResponse("https://example.com/")

    middleware(app, by(redirects_afterwards))
    tasks.tasks["double"].delay(2)
    assert qtasks.drain() == 1
    assert paths.count("/jobs/double") == 1


def test_a_route_of_the_user_that_takes_every_path_is_named(tasks: QTasks) -> None:
    app = FastAPI()

    @app.post("/{path:path}")
    async def everything(path: str) -> str:
        return path

    app.include_router(tasks.router, prefix="/jobs")

    @tasks.task(retries=0)
    def note() -> None: ...

    with Environment(app) as qtasks:
        handle = note.delay()
        qtasks.drain()
        with pytest.raises(TaskFailed, match='answered 200 in place of the dispatcher: "jobs/note"'):
            handle.get()
