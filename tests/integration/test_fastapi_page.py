"""What docs/guides/fastapi.md says of middleware, logins and proxies, beside its code, which test_docs.py runs."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator

import pytest
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from starlette.testclient import TestClient

from qtasks import Embedded, QTasks
from tests.support.bundles import behind_uvicorn
from tests.support.page_code import DOCS
from tests.support.tasks import KEYS

PAGE = (DOCS / "guides" / "fastapi.md").read_text(encoding="utf-8")
ONE_BY_ONE = "deliveries arrive one by one"


@pytest.fixture
def tasks() -> Iterator[QTasks]:
    with QTasks(embedded=Embedded(":memory:")) as made:
        yield made


async def around(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    return await call_next(request)


def logged(tasks: QTasks, app: FastAPI, caplog: pytest.LogCaptureFixture) -> str:
    """What the application logs until a task has run in it."""

    @tasks.task
    def work() -> int:
        return 1

    with caplog.at_level(logging.INFO, logger="qtasks"), TestClient(app):
        assert work.delay().get(timeout=20) == 1
    return caplog.text


def test_middleware_around_the_tasks_makes_deliveries_arrive_one_by_one(
    tasks: QTasks, caplog: pytest.LogCaptureFixture
) -> None:
    assert ONE_BY_ONE in PAGE
    app = FastAPI()
    app.include_router(tasks.router, prefix="/qtasks")
    app.middleware("http")(around)
    assert ONE_BY_ONE in logged(tasks, app, caplog)


def test_middleware_of_an_inner_application_does_not(tasks: QTasks, caplog: pytest.LogCaptureFixture) -> None:
    api = FastAPI()
    api.middleware("http")(around)
    app = FastAPI()
    app.include_router(tasks.router, prefix="/qtasks")
    app.mount("/", api)
    assert ONE_BY_ONE not in logged(tasks, app, caplog)


def test_dependencies_of_the_application_do_not_run_for_tasks(tasks: QTasks, caplog: pytest.LogCaptureFixture) -> None:
    def logged_in() -> None:
        raise HTTPException(401)

    app = FastAPI(dependencies=[Depends(logged_in)])
    app.include_router(tasks.router, prefix="/qtasks", dependencies=[Depends(logged_in)])
    assert "work done" in logged(tasks, app, caplog)


def test_a_base_url_with_another_path_is_a_warning_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    with QTasks(
        url="http://broker.test",
        base_url="https://example.com/jobs",
        token="token",
        current_signing_key=KEYS.current,
        next_signing_key=KEYS.next,
    ) as tasks:
        app = FastAPI()
        app.include_router(tasks.router, prefix="/qtasks")
        with behind_uvicorn(app):
            pass
    assert "tasks are served under /qtasks, but QTASKS_BASE_URL is https://example.com/jobs" in caplog.text
