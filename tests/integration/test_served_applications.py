"""Which application an embedded broker delivers to, and what a task finds there: that which a server would show it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.httpsredirect import HTTPSRedirectMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount
from starlette.testclient import TestClient

from qtasks import Embedded, QTasks
from qtasks.errors import TaskFailed
from qtasks.tasks.web.gateway import Outermost
from qtasks.testing import Environment

PATIENCE_S = 20.0


@pytest.fixture
def tasks() -> Iterator[QTasks]:
    with QTasks(embedded=Embedded(":memory:")) as made:
        yield made


def named(app: FastAPI, name: str) -> FastAPI:
    app.state.name = name
    app.dependency_overrides[default] = lambda: f"override of {name}"
    return app


async def default() -> str:
    return "default"


def state_of_the_application(request: Request) -> str:
    return str(request.app.state.name)


def state_of_the_lifespan(request: Request) -> object:
    return getattr(request.state, "pool", None)


def declare(tasks: QTasks) -> Any:
    @tasks.task(retries=0)
    async def where(
        name: str = Depends(state_of_the_application),
        given: str = Depends(default),
        pool: object = Depends(state_of_the_lifespan),
    ) -> list[object]:
        return [name, given, pool, threading.current_thread().name == "qtasks-tasks"]

    return where


@asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, str]]:
    yield {"pool": "a pool"}


def test_a_task_sees_the_state_of_its_application_and_of_its_lifespan(tasks: QTasks) -> None:
    app = named(FastAPI(lifespan=lifespan), "app")
    app.include_router(tasks.router, prefix="/jobs")
    where = declare(tasks)
    with TestClient(app):
        assert where.delay().get(timeout=PATIENCE_S) == ["app", "override of app", "a pool", False]


def test_each_task_has_a_state_of_its_own_on_top_of_that_of_the_lifespan(tasks: QTasks) -> None:
    def count(request: Request) -> int:
        request.state.seen = getattr(request.state, "seen", 0) + 1
        return int(request.state.seen)

    @tasks.task(retries=0)
    async def counted(n: int = Depends(count)) -> int:
        return n

    app = FastAPI(lifespan=lifespan)
    app.include_router(tasks.router, prefix="/jobs")
    with TestClient(app):
        assert [handle.get(timeout=PATIENCE_S) for handle in (counted.delay(), counted.delay())] == [1, 1]


@pytest.mark.parametrize("name", [None, "api"])
def test_a_mounted_application_serves_its_tasks_and_is_told_what_it_lacks(
    tasks: QTasks, caplog: pytest.LogCaptureFixture, name: str | None
) -> None:
    api = named(FastAPI(), "api")
    api.include_router(tasks.router, prefix="/jobs")
    app = named(FastAPI(lifespan=lifespan), "app")
    app.mount("/deep", Starlette(routes=[Mount("/api", app=api, name=name)]))
    where = declare(tasks)
    with TestClient(app):
        assert where.delay().get(timeout=PATIENCE_S) == ["api", "override of api", None, True]
        assert where.delay().get(timeout=PATIENCE_S) == ["api", "override of api", None, True]
    [warning] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "QT221 the tasks are served at /deep/api/jobs" in warning
    assert "lifespan_context" in warning


def test_the_advice_to_run_the_lifespan_of_a_mounted_application_works(
    tasks: QTasks, caplog: pytest.LogCaptureFixture
) -> None:
    api = named(FastAPI(), "api")
    api.include_router(tasks.router, prefix="/jobs")

    @asynccontextmanager
    async def both(_app: FastAPI) -> AsyncIterator[dict[str, str]]:
        async with api.router.lifespan_context(api):
            yield {"pool": "a pool"}

    app = named(FastAPI(lifespan=both), "app")
    app.mount("/api", api)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["example.com"])  # passed: the outer application is called
    where = declare(tasks)
    with TestClient(app):
        assert where.delay().get(timeout=PATIENCE_S) == ["api", "override of api", "a pool", False]
    assert caplog.records == []


@pytest.mark.parametrize("around", [lambda app: app, lambda app: TrustedHostMiddleware(app, ["testserver"])])
def test_a_server_of_ours_runs_the_lifespan_of_a_mounted_application(
    tasks: QTasks, caplog: pytest.LogCaptureFixture, around: Any
) -> None:
    api = named(FastAPI(), "api")
    api.include_router(tasks.router, prefix="/jobs")
    app = named(FastAPI(lifespan=lifespan), "app")
    app.mount("/api", api)
    where = declare(tasks)
    with TestClient(Outermost(around(app), tasks.lifespan_if_missing)):
        assert where.delay().get(timeout=PATIENCE_S) == ["api", "override of api", "a pool", False]
        assert [tasks.runtime.is_serving] == [True]
    assert [tasks.runtime.is_serving] == [False]
    assert caplog.records == []


def test_a_server_of_ours_leaves_a_lifespan_that_has_begun_alone(tasks: QTasks) -> None:
    app = named(FastAPI(lifespan=lifespan), "app")
    app.include_router(tasks.router, prefix="/jobs")
    where = declare(tasks)
    with TestClient(Outermost(app, tasks.lifespan_if_missing)):
        assert where.delay().get(timeout=PATIENCE_S) == ["app", "override of app", "a pool", False]
        assert [tasks.runtime.is_serving] == [True]
    assert [tasks.runtime.is_serving] == [False]


def test_in_real_time_a_mounted_application_of_a_test_lives_as_well() -> None:
    tasks = QTasks()
    api = named(FastAPI(), "api")
    api.include_router(tasks.router, prefix="/jobs")
    app = named(FastAPI(lifespan=lifespan), "app")
    app.mount("/api", api)
    api.add_middleware(TrustedHostMiddleware, allowed_hosts=["shop.example.com"])
    where = declare(tasks)
    with Environment(app, mode="full"):
        assert where.delay().get(timeout=PATIENCE_S)[:3] == ["api", "override of api", "a pool"]


def test_an_application_that_nobody_has_started_serves_its_tasks_in_silence(
    tasks: QTasks, caplog: pytest.LogCaptureFixture
) -> None:
    app = named(FastAPI(lifespan=lifespan), "app")
    inner = APIRouter(prefix="/v1")
    inner.include_router(tasks.router, prefix="/jobs")
    app.include_router(inner)
    where = declare(tasks)
    assert where.delay().get(timeout=PATIENCE_S) == ["app", "override of app", None, True]
    with TestClient(app):  # it may start later
        assert where.delay().get(timeout=PATIENCE_S) == ["app", "override of app", "a pool", False]
    assert caplog.records == []


def test_of_two_applications_that_nobody_has_started_none_is_guessed(
    tasks: QTasks, caplog: pytest.LogCaptureFixture
) -> None:
    apps = [named(FastAPI(), name) for name in ("one", "other")]
    for app in apps:
        app.include_router(tasks.router, prefix="/jobs")

    @tasks.task(retries=0)
    async def plain(given: str = Depends(default)) -> str:
        return given

    assert plain.delay().get(timeout=PATIENCE_S) == "default"
    [warning] = [record.getMessage() for record in caplog.records]
    assert warning.startswith("QT221 2 applications serve the tasks")


def test_an_application_inside_of_plain_middleware_runs_its_tasks(tasks: QTasks) -> None:
    api = named(FastAPI(lifespan=lifespan), "api")
    api.include_router(tasks.router, prefix="/jobs")
    where = declare(tasks)
    with TestClient(TrustedHostMiddleware(api, ["testserver"])):
        assert where.delay().get(timeout=PATIENCE_S) == ["api", "override of api", "a pool", False]


def test_two_sets_of_tasks_in_one_application_are_told_apart(tasks: QTasks) -> None:
    app = FastAPI()
    with QTasks(embedded=Embedded(":memory:")) as more:

        @tasks.task(retries=0)
        def first() -> str:
            return "first"

        @more.task(retries=0)
        def second() -> str:
            return "second"

        app.include_router(tasks.router, prefix="/first")
        app.include_router(more.router, prefix="/second")
        with TestClient(app):
            assert second.delay().get(timeout=PATIENCE_S) == "second"
            assert first.delay().get(timeout=PATIENCE_S) == "first"


def test_when_the_later_of_two_applications_ends_the_earlier_one_serves_again(tasks: QTasks) -> None:
    one, other = named(FastAPI(), "one"), named(FastAPI(), "other")
    for app in (one, other):
        app.include_router(tasks.router, prefix="/jobs")
    where = declare(tasks)
    with TestClient(one):
        with TestClient(other):
            assert where.delay().get(timeout=PATIENCE_S)[0] == "other"
        assert where.delay().get(timeout=PATIENCE_S)[0] == "one"


def test_a_call_from_the_start_of_an_application_runs_when_it_has_started(tasks: QTasks) -> None:
    where = declare(tasks)

    @asynccontextmanager
    async def sends(_app: FastAPI) -> AsyncIterator[None]:
        handles.append(where.delay())
        yield

    handles: list[Any] = []
    app = named(FastAPI(lifespan=lifespan), "app")
    app.include_router(tasks.router, prefix="/jobs")
    app.include_router(APIRouter(lifespan=sends))
    with TestClient(app):
        assert handles[0].get(timeout=PATIENCE_S) == ["app", "override of app", "a pool", False]


def test_a_failed_start_runs_no_task_and_keeps_it(tmp_path: Path) -> None:
    ran: list[int] = []
    handles: list[Any] = []

    @asynccontextmanager
    async def fails(_app: FastAPI) -> AsyncIterator[None]:
        handles.append(note.delay())
        if not ran:
            raise OSError("no database")
        yield

    with QTasks(embedded=Embedded(tmp_path / "tasks.db")) as tasks:

        @tasks.task(retries=0)
        def note() -> int:
            ran.append(1)
            return 1

        app = FastAPI()
        app.include_router(tasks.router, prefix="/jobs")
        app.include_router(APIRouter(lifespan=fails))
        with pytest.raises(OSError, match="no database"), TestClient(app):
            pass
        assert ran == []
        assert handles[0].get(timeout=PATIENCE_S) == 1


@pytest.mark.parametrize("layer", [TrustedHostMiddleware, HTTPSRedirectMiddleware])
def test_checks_of_host_and_scheme_let_an_embedded_broker_pass_without_a_word(
    tasks: QTasks, caplog: pytest.LogCaptureFixture, layer: Any
) -> None:
    app = named(FastAPI(), "app")
    app.include_router(tasks.router, prefix="/jobs")
    app.add_middleware(layer, **({"allowed_hosts": ["*.example.com"]} if layer is TrustedHostMiddleware else {}))
    where = declare(tasks)
    with TestClient(app, base_url="https://a.example.com"):
        assert where.delay().get(timeout=PATIENCE_S)[0] == "app"
    assert caplog.records == []


@pytest.mark.parametrize("host", ["{tenant}.example.com", "shop{number:int}.example.com"])
def test_an_application_for_a_family_of_hosts_runs_its_tasks(
    tasks: QTasks, caplog: pytest.LogCaptureFixture, host: str
) -> None:
    app = named(FastAPI(), "app")
    app.include_router(tasks.router, prefix="/jobs")
    where = declare(tasks)
    with TestClient(Starlette(routes=[Host(host, app)])):
        assert where.delay().get(timeout=PATIENCE_S)[0] == "app"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_host_check_in_other_words_gets_the_host_of_the_base_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTASKS_BASE_URL", "https://shop.example.com/jobs")
    with QTasks(embedded=Embedded(":memory:")) as tasks:
        app = named(FastAPI(), "app")
        app.include_router(tasks.router, prefix="/jobs")

        @app.middleware("http")
        async def known(request: Request, call_next: Any) -> Any:
            is_known = request.url.hostname == "shop.example.com" and request.url.scheme == "https"
            return await call_next(request) if is_known else PlainTextResponse("who are you?", 403)

        where = declare(tasks)
        with TestClient(app, base_url="https://shop.example.com"):
            assert where.delay().get(timeout=PATIENCE_S)[0] == "app"


def test_the_start_names_what_stops_every_delivery(tasks: QTasks, caplog: pytest.LogCaptureFixture) -> None:
    logged = threading.Event()
    app = FastAPI()
    app.include_router(tasks.router, prefix="/jobs")

    async def locked(request: Request, call_next: Any) -> Any:
        return PlainTextResponse("log in first", 401)

    app.add_middleware(BaseHTTPMiddleware, dispatch=locked)

    @tasks.task(retries=0)
    def note() -> None: ...

    class Notice(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.set()

    handler = Notice(logging.ERROR)
    logging.getLogger().addHandler(handler)
    try:
        with TestClient(app):
            assert logged.wait(PATIENCE_S)
            [said] = [record.getMessage() for record in caplog.records]
            with pytest.raises(TaskFailed, match="answered 401 in place of the dispatcher: log in first"):
                note.delay().get(timeout=PATIENCE_S)
    finally:
        logging.getLogger().removeHandler(handler)
    assert "QT220" in said
    assert "BaseHTTPMiddleware (locked)" in said


def test_nobody_asks_at_the_start_when_no_application_starts(tasks: QTasks) -> None:
    requests: list[str] = []
    app = named(FastAPI(), "app")
    app.include_router(tasks.router, prefix="/jobs")

    @app.middleware("http")
    async def counted(request: Request, call_next: Any) -> Any:
        requests.append(request.url.path)
        return await call_next(request)

    where = declare(tasks)
    assert where.delay().get(timeout=PATIENCE_S)[0] == "app"
    assert requests == ["/jobs/where"]


@pytest.mark.anyio
async def test_an_asgi_transport_without_a_lifespan_works_too(tasks: QTasks) -> None:
    app = named(FastAPI(lifespan=lifespan), "app")
    app.include_router(tasks.router, prefix="/jobs")
    where = declare(tasks)

    @app.post("/start")
    async def start() -> str:
        return str((await where.adelay()).id)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver") as client:
        call = (await client.post("/start")).json()
    async with asyncio.timeout(PATIENCE_S):
        assert (await where.result(call))[0] == "app"
