"""Tasks run where the application lives, with its dependencies; otherwise in the application as it is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.testclient import TestClient

from qtasks import Embedded, QTasks, task
from qtasks.errors import ConfigurationError, ResultTimeout
from qtasks.tasks.app import served_by
from qtasks.tasks.default import default_app
from qtasks.tasks.settings import TEST_SWITCH, VARIABLES
from qtasks.testing import Environment


async def database() -> AsyncIterator[str]:
    yield "real"


@pytest.fixture
def app(tasks: QTasks) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.pool = "a pool"
        yield

    app = FastAPI(lifespan=lifespan)
    inner = APIRouter(prefix="/v1")
    inner.include_router(tasks.router, prefix="/jobs")
    app.include_router(inner)

    @tasks.task
    async def which(db: str = Depends(database)) -> str:
        return db

    @tasks.task
    async def where() -> int:
        return id(asyncio.get_running_loop())

    @app.post("/which")
    async def start_which() -> dict[str, str]:
        return {"call": (await which.adelay()).id}

    @app.post("/where")
    async def start_where() -> dict[str, object]:
        return {"call": (await where.adelay()).id, "loop": id(asyncio.get_running_loop())}

    @app.post("/blocking")
    async def start_blocking() -> dict[str, object]:
        return {"call": where.delay().id}

    return app


@pytest.fixture
def qtasks_app(app: FastAPI) -> FastAPI:
    return app


def test_dependencies_are_overridden_as_anywhere(app: FastAPI, tasks: QTasks, qtasks: Environment) -> None:
    which = tasks.tasks["which"]
    first = which.delay()
    qtasks.drain()
    app.dependency_overrides[database] = lambda: "fake"
    second = which.delay()
    qtasks.drain()
    assert (first.get(), second.get()) == ("real", "fake")


def test_a_test_client_and_the_environment_work_together(app: FastAPI, tasks: QTasks, qtasks: Environment) -> None:
    client = TestClient(app)  # without its `with` no lifespan is run
    call = client.post("/which").json()["call"]
    qtasks.assert_enqueued("which")
    qtasks.drain()
    assert tasks.tasks["which"].result(call).get() == "real"


def test_tasks_run_on_the_loop_of_an_application_that_lives(app: FastAPI, tasks: QTasks, qtasks: Environment) -> None:
    where = tasks.tasks["where"]
    with TestClient(app) as client:
        answer = client.post("/where").json()
        qtasks.drain()
        assert where.result(answer["call"]).get() == answer["loop"]
        assert app.state.pool == "a pool"
    after = where.delay()
    qtasks.drain()
    assert after.get() != answer["loop"]
    assert where.result(answer["call"]).get() == answer["loop"]  # its results outlive the application


def test_an_application_that_lives_already_is_found_living(app: FastAPI, tasks: QTasks) -> None:
    where = tasks.tasks["where"]
    with idle(), TestClient(app) as client:
        with pytest.raises(ConfigurationError, match="a test may only use its own test broker"):
            client.post("/where")
        for _ in range(2):
            with Environment(app) as qtasks:
                answer = client.post("/where").json()
                qtasks.drain()
                assert where.result(answer["call"]).get() == answer["loop"]


@pytest.mark.qtasks("inline")
def test_inline_an_endpoint_sees_its_task_done(app: FastAPI, tasks: QTasks, qtasks: Environment) -> None:
    where = tasks.tasks["where"]
    with TestClient(app) as client:
        answer = client.post("/where").json()
        assert where.result(answer["call"]).get() == answer["loop"]
        blocked = client.post("/blocking").json()
        assert where.result(blocked["call"]).get() != answer["loop"]


@pytest.mark.anyio
async def test_async_tests_drain_on_their_own_loop(app: FastAPI, tasks: QTasks, qtasks: Environment) -> None:
    where = tasks.tasks["where"]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver") as client:
        answer = (await client.post("/where")).json()
    assert await qtasks.arun_next() is not None
    assert await where.result(answer["call"]) == answer["loop"] == id(asyncio.get_running_loop())
    late = await where.using(delay="1h").adelay()
    assert await qtasks.aadvance(hours=1) == 1
    assert await late == answer["loop"]


@pytest.mark.anyio
async def test_a_task_that_is_called_and_drained_in_async_code_by_blocking_verbs_works_too(
    tasks: QTasks, qtasks: Environment
) -> None:
    result = tasks.tasks["where"].delay()
    qtasks.drain()
    assert result.get() != id(asyncio.get_running_loop())


def test_nothing_of_outside_is_seen_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTASKS_RESULTS", f"sqlite:///{tmp_path / 'results.db'}")
    monkeypatch.setenv("QSTASH_TOKEN", "of production")
    outside = QTasks(embedded=Embedded(tmp_path / "tasks.db"), results="redis://production", threads=2)

    @outside.task
    def note() -> int:
        return 1

    with Environment(outside) as qtasks:
        result = note.delay()
        qtasks.drain()
        assert result.get() == 1
        assert outside.settings.threads == 2
        assert outside.settings.url == "http://broker.qtasks.internal"
    assert list(tmp_path.iterdir()) == []


def test_what_was_open_outside_is_as_it_was(tmp_path: Path) -> None:
    with QTasks(embedded=Embedded(tmp_path / "tasks.db")) as outside:

        @outside.task
        def note(n: int) -> int:
            return n

        before = note.delay(1)
        assert before.get(timeout=10) == 1
        with Environment(outside) as qtasks:
            inside = note.delay(2)
            with pytest.raises(ResultTimeout):
                inside.get()
            assert len(qtasks.sent) == 1
        assert before.get() == 1
        assert note.delay(3).get(timeout=10) == 3


def test_tasks_of_the_default_application_need_no_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_app, "_tasks", {})
    monkeypatch.setattr(default_app, "_names", {})
    monkeypatch.setattr(default_app.runtime, "tasks", default_app._names)

    @task
    def note(n: int) -> int:
        return n

    with Environment(default_app) as qtasks:
        result = note.delay(1)
        qtasks.drain()
        assert result.get() == 1


def test_an_application_without_tasks_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="serves no tasks"), Environment(FastAPI()):
        pass
    assert served_by(FastAPI()) is None


class idle:  # noqa: N801 - used as a function
    """As under the plugin in an ordinary project: nothing is configured, and no broker may be talked to."""

    def __enter__(self) -> None:
        self._before = {name: os.environ.pop(name, None) for name in VARIABLES.values()}
        os.environ[TEST_SWITCH] = "1"

    def __exit__(self, *_: object) -> None:
        del os.environ[TEST_SWITCH]
        os.environ.update({name: value for name, value in self._before.items() if value is not None})
