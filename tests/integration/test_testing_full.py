"""The plugin's mode "full": real HTTP on free ports, in real time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import Depends, FastAPI

from qtasks import QTasks, TaskContext, injected
from qtasks.errors import QTasksError
from qtasks.testing import Environment

PATIENCE_S = 20.0


async def database() -> AsyncIterator[str]:
    yield "real"


@pytest.fixture
def tasks() -> Iterator[QTasks]:
    with QTasks() as made:
        yield made


@pytest.fixture
def qtasks_app(tasks: QTasks) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.began = True
        yield
        app.state.began = False

    app = FastAPI(lifespan=lifespan)
    app.include_router(tasks.router, prefix="/jobs")
    return app


pytestmark = pytest.mark.qtasks("full")


def test_calls_go_over_sockets_to_the_application_that_is_served(
    tasks: QTasks, qtasks: Environment, qtasks_app: FastAPI
) -> None:
    @tasks.task
    async def where(db: str = Depends(database)) -> list[object]:
        return [db, threading.current_thread().name, qtasks_app.state.began]

    qtasks_app.dependency_overrides[database] = lambda: "fake"
    result = where.delay()
    assert result.get(timeout=PATIENCE_S) == ["fake", "qtasks-tasks", True]
    assert (tasks.settings.base_url or "").startswith("http://127.0.0.1:")
    assert httpx.get(f"{tasks.settings.url}/v2/keys").status_code == 401
    qtasks.assert_enqueued(where)


def test_draining_waits_until_nothing_is_due(tasks: QTasks, qtasks: Environment) -> None:
    ran: list[int] = []

    @tasks.task(retries=1, retry_delay="50ms")
    def note(n: int, ctx: TaskContext = injected) -> None:
        if ctx.attempt == 1 and n == 0:
            raise OSError
        ran.append(n)

    note.map(range(20))
    note.using(delay="1h").delay(99)
    cancelled = note.using(delay="1s").delay(98)
    cancelled.cancel()
    while len(ran) < 20:
        qtasks.drain()
    qtasks.drain()  # the last one has run, and its end may not be stored yet
    assert sorted(ran) == list(range(20))
    assert [call.arguments for call in qtasks.pending] == [{"n": 99}]


def test_faults_and_dead_letters_are_as_in_the_other_modes(tasks: QTasks, qtasks: Environment) -> None:
    @tasks.task(retries=1, retry_delay="1ms")
    def work(n: int) -> int:
        if n:
            raise ValueError("no")
        return n

    qtasks.fail_next(work, status=503)
    qtasks.duplicate_next(work)
    assert work.delay(0).get(timeout=PATIENCE_S) == 0
    qtasks.drain()
    work.delay(1)
    while not qtasks.dlq:
        qtasks.drain()
    assert qtasks.dlq[0].error == "ValueError: no"


@pytest.mark.anyio
async def test_async_tests_wait_as_well(tasks: QTasks, qtasks: Environment) -> None:
    @tasks.task
    async def greet(name: str) -> str:
        return name

    results = await asyncio.gather(*(greet.adelay(name) for name in "abc"))
    assert [await result.aget(timeout=PATIENCE_S) for result in results] == ["a", "b", "c"]
    await qtasks.adrain()
    assert qtasks.pending == []


def test_time_is_real(qtasks: Environment) -> None:
    with pytest.raises(QTasksError, match='in mode "full" time is real'):
        qtasks.advance(hours=1)
    with pytest.raises(QTasksError, match='in mode "full" time is real'):
        qtasks.run_next()
    for verb in (qtasks.reorder, qtasks.delay_next):
        with pytest.raises(QTasksError, match='which is real in mode "full"'):
            verb()


@pytest.mark.qtasks("capture")
def test_at_the_end_nothing_listens_any_more(tasks: QTasks, qtasks_app: FastAPI) -> None:
    with Environment(qtasks_app, mode="full"):
        url = tasks.settings.url or ""
        assert httpx.get(f"{url}/v2/keys").status_code == 401
    assert qtasks_app.state.began is False
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


@pytest.mark.qtasks("capture")
def test_an_application_that_cannot_start_is_an_error(tasks: QTasks) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if not hasattr(app.state, "database"):
            raise OSError("no database")
        yield

    app = FastAPI(lifespan=lifespan)
    app.include_router(tasks.router, prefix="/jobs")
    with pytest.raises(QTasksError, match="ended while it was starting"), Environment(app, mode="full"):
        pass
