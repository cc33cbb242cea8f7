"""Results over HTTP, on a real server: what a page may request, and which events it receives."""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException

from qtasks import Embedded, QTasks, TaskContext, injected
from qtasks.errors import ResultsDisabled
from qtasks.tasks.encode.pickling import Pickles, Purpose
from qtasks.tasks.results import waiting
from qtasks.tasks.results.backend import ResultBackend, ResultRecord, ResultStatus
from qtasks.tasks.results.memory import MemoryResults
from qtasks.tasks.results.open_backend import open_results
from qtasks.tasks.web import results_router
from tests.support.eventsource import EventSource
from tests.support.process import Process
from tests.support.results import BACKENDS, place_for_results
from tests.support.tasks import application

PATIENCE_S = 10.0
CALL = "call_" + "0" * 32
NOW_MS = 1_800_000_000_000


def record(status: ResultStatus, **changes: Any) -> ResultRecord:
    facts: dict[str, Any] = {
        "call_id": CALL,
        "message_id": "msg_1",
        "task": "work",
        "status": status,
        "attempt": 1,
        "updated_ms": NOW_MS,
        **changes,
    }
    return ResultRecord(**facts)


def keep(backend: ResultBackend, *records: ResultRecord) -> None:
    backend.write(records)


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The application on a socket, as long as the block lasts."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert eventually(lambda: server.started or not thread.is_alive())
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)


def eventually(true: Callable[[], bool]) -> bool:
    """Whether `true` holds within `PATIENCE_S`, checked repeatedly: for conditions without an event."""
    until_s = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while not true() and time.monotonic() < until_s:
        pause.wait(0.005)
    return true()


class Place:
    """An application that shows its results under ``/jobs``, and the backend that it reads."""

    def __init__(self, origin: str, tasks: QTasks) -> None:
        self.url = f"{origin}/jobs/{CALL}"
        self.events = f"{self.url}/events"
        self.tasks = tasks
        self.backend = tasks.runtime.results()

    def now(self) -> Any:
        answer = httpx.get(self.url)
        assert answer.status_code == 200
        return answer.json()


@contextmanager
def shown(results: str = "memory://", **options: Any) -> Iterator[Place]:
    tasks = application(results=results)
    app = FastAPI()
    app.include_router(tasks.results_router(**options), prefix="/jobs")
    with tasks, serving(app) as origin:
        yield Place(origin, tasks)


@pytest.fixture
def place() -> Iterator[Place]:
    with shown() as made:
        yield made


# --- who may ask, and for what


def test_nothing_is_served_unless_an_application_includes_it() -> None:
    tasks = application()
    app = FastAPI()
    app.include_router(tasks.router, prefix="/qtasks")
    keep(tasks.runtime.results(), record(ResultStatus.SUCCEEDED, value="5"))
    with serving(app) as origin:
        for path in (f"/{CALL}", f"/qtasks/{CALL}", f"/qtasks/{CALL}/events", f"/qtasks/results/{CALL}"):
            answer = httpx.get(origin + path)
            assert answer.status_code in (404, 405)
            assert "work" not in answer.text


def test_an_application_s_own_dependency_stands_before_both_and_knows_the_call() -> None:
    def owner(call_id: str, authorization: Annotated[str, Header()] = "") -> None:
        if authorization != f"owner of {call_id}":
            raise HTTPException(401)

    tasks = application()
    app = FastAPI()
    app.include_router(tasks.results_router(), prefix="/jobs", dependencies=[Depends(owner)])
    keep(tasks.runtime.results(), record(ResultStatus.SUCCEEDED, value="5"))
    with serving(app) as origin:
        for path in (f"/jobs/{CALL}", f"/jobs/{CALL}/events"):
            assert httpx.get(origin + path).status_code == 401
            answer = httpx.get(origin + path, headers={"Authorization": f"owner of {CALL}"})
            assert answer.status_code == 200
            assert '"result":5' in answer.text


def test_an_application_that_has_no_place_for_results_does_not_start() -> None:
    app = FastAPI()
    app.include_router(application(results=None).results_router(), prefix="/jobs")

    async def start() -> None:
        async with app.router.lifespan_context(app):
            raise AssertionError("it started")

    with pytest.raises(ResultsDisabled, match="QTASKS_RESULTS"):
        asyncio.run(start())


@pytest.mark.parametrize("call_id", ["x" * 129, "a%20b", "%C3%A9", "%00"])
def test_what_is_no_id_is_refused(place: Place, call_id: str) -> None:
    for path in (call_id, f"{call_id}/events"):
        assert httpx.get(place.url.replace(CALL, path)).status_code == 422


def test_both_stand_in_the_application_s_own_description() -> None:
    app = FastAPI()
    app.include_router(application().results_router(), prefix="/jobs", tags=["jobs"])
    paths, schemas = app.openapi()["paths"], app.openapi()["components"]["schemas"]
    state, events = paths["/jobs/{call_id}"]["get"], paths["/jobs/{call_id}/events"]["get"]
    assert state["tags"] == events["tags"] == ["jobs"]
    assert state["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/CallState")
    assert list(events["responses"]["200"]["content"]) == ["text/event-stream"]
    assert {"204", "503"} < set(events["responses"])
    assert set(schemas["ResultStatus"]["enum"]) == set(ResultStatus)
    assert set(schemas["CallState"]["required"]) == set(results_router.CallState.model_fields)


# --- the state


def test_a_call_that_nothing_has_been_heard_of_is_queued_whether_it_exists_or_not(place: Place) -> None:
    assert place.now() == {
        "id": CALL, "task": None, "status": "queued", "attempt": 0,
        "updated_at": None, "progress": None, "result": None, "error": None,
    }  # fmt: skip


def test_a_running_call_says_how_far_it_has_come(place: Place) -> None:
    progress = '{"done": 3, "total": 12, "note": "rows"}'
    keep(place.backend, record(ResultStatus.RUNNING, attempt=2, progress=progress))
    now = place.now()
    assert (now["task"], now["status"], now["attempt"]) == ("work", "running", 2)
    assert now["progress"] == {"done": 3, "total": 12, "note": "rows", "fraction": 0.25}
    assert now["updated_at"] == "2027-01-15T08:00:00Z"


def test_a_result_is_json_and_is_found_by_its_message_too(place: Place) -> None:
    keep(place.backend, record(ResultStatus.SUCCEEDED, value='{"name":"grüße","big":123456789012345678901}'))
    for key in (CALL, "msg_1"):
        answer = httpx.get(place.url.replace(CALL, key))
        assert answer.json()["result"] == {"name": "grüße", "big": 123456789012345678901}
        assert answer.json()["id"] == CALL
        assert answer.headers["Cache-Control"] == "no-store"


def test_of_a_pickle_only_its_size_and_hash_are_shown(place: Place) -> None:
    text = Pickles(["s" * 32]).dump({"password": 1}, Purpose.result("work", CALL))
    keep(place.backend, record(ResultStatus.SUCCEEDED, value=text))
    shown = place.now()["result"]
    assert list(shown) == ["pickle"]
    assert list(shown["pickle"]) == ["bytes", "sha256"]


@pytest.mark.parametrize(
    "status", [ResultStatus.RETRYING, ResultStatus.FAILED, ResultStatus.CANCELLED, ResultStatus.EXPIRED]
)
def test_an_error_is_shown_only_where_the_application_says_so(status: ResultStatus) -> None:
    failed = record(status, error="OperationalError: no route to db-7.internal")
    with shown() as place:
        keep(place.backend, failed)
        assert (place.now()["status"], place.now()["error"]) == (status, None)
        with EventSource(place.events) as page:
            assert "db-7" not in next(page).text
    with shown(show_errors=True) as place:
        keep(place.backend, failed)
        assert place.now()["error"] == "OperationalError: no route to db-7.internal"


def test_an_error_that_no_encoder_takes_is_shown_escaped() -> None:
    with shown(show_errors=True) as place:
        keep(place.backend, record(ResultStatus.FAILED, error="no file caf\udce9.csv"))
        assert place.now()["error"] == "no file caf\\udce9.csv"


# --- the stream


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("by_another_process", [False, True])
def test_a_page_sees_everything_that_happens_and_is_told_of_the_end(
    kind: str, by_another_process: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "memory" and by_another_process:
        return
    with place_for_results(kind, tmp_path, monkeypatch) as url, shown(url) as place, EventSource(place.events) as page:
        backend = open_results(url, ttl_ms=60_000) if by_another_process else place.backend
        first = next(page)
        assert (first.name, first.data["status"]) == ("status", "queued")
        keep(backend, record(ResultStatus.RUNNING))
        begun = next(page)
        assert (begun.name, begun.data["status"], begun.data["progress"]) == ("status", "running", None)
        keep(backend, record(ResultStatus.RUNNING, progress='{"done": 1, "total": 2, "note": ""}'))
        further = next(page)
        assert (further.name, further.data["progress"]["fraction"]) == ("progress", 0.5)
        keep(backend, record(ResultStatus.RETRYING, error="ValueError: no"))
        assert [next(page).data["status"]] == ["retrying"]
        keep(backend, record(ResultStatus.SUCCEEDED, attempt=2, value="[1]"))
        end = next(page)
        assert (end.name, end.data["result"], end.data["attempt"]) == ("result", [1], 2)
        # The server ends the stream, the browser reconnects, and gets the answer to stop.
        assert list(page) == []
        assert (page.status, page.connections, page.retry_ms) == (204, 2, 2000)
        if by_another_process:
            backend.close()


@pytest.mark.parametrize("status", [ResultStatus.FAILED, ResultStatus.CANCELLED, ResultStatus.EXPIRED])
def test_an_end_without_a_result_is_one_event_that_says_which(place: Place, status: ResultStatus) -> None:
    keep(place.backend, record(status))
    events = list(EventSource(place.events))
    assert [(event.name, event.data["status"]) for event in events] == [("failed", status)]


def test_a_stream_ends_after_its_time_and_the_page_goes_on_where_it_was(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results_router, "STREAM_LIFE_S", 0.0)
    keep(place.backend, record(ResultStatus.RUNNING))
    with EventSource(place.events) as page:
        assert next(page).data["status"] == "running"

        def end() -> None:
            assert eventually(lambda: page.connections >= 3)
            keep(place.backend, record(ResultStatus.SUCCEEDED, value="1"))

        ending = threading.Thread(target=end)
        ending.start()
        assert [event.name for event in page] == ["result"]  # the running state was not told again
        ending.join()


def test_a_dead_letter_that_is_sent_again_is_news_to_a_page_that_saw_the_end(place: Place) -> None:
    keep(place.backend, record(ResultStatus.FAILED))
    page = EventSource(place.events)
    assert [event.name for event in page] == ["failed"]
    keep(place.backend, record(ResultStatus.RUNNING, message_id="msg_2"))
    with EventSource(place.events) as again:
        again.last_event_id = page.last_event_id
        assert next(again).data["status"] == "running"


def test_a_page_that_goes_away_leaves_nothing_behind(place: Place) -> None:
    page = EventSource(place.events)
    next(page)
    assert place.backend.watchers._waiting
    page.close()
    assert eventually(lambda: not place.backend.watchers._waiting)


def test_one_stream_too_many_is_refused_until_another_one_ends() -> None:
    with shown(max_streams=2) as place, EventSource(place.events) as one, EventSource(place.events) as two:
        next(one), next(two)
        refused = httpx.get(place.events)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
        assert place.now()["status"] == "queued"  # a plain answer, not a stream
        one.close()

        def admitted() -> bool:
            with EventSource(place.events) as other:
                return next(iter(other), None) is not None

        assert eventually(admitted)


def test_a_quiet_connection_is_kept_alive(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.01)
    done = record(ResultStatus.SUCCEEDED, value="1")
    with EventSource(place.events, on_comment=lambda _: keep(place.backend, done)) as page:
        assert [event.name for event in page] == ["status", "result"]


def test_results_in_this_process_are_not_polled(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    glances = itertools.count()
    monkeypatch.setattr(waiting, "CHECK_OVER_S", 0.001)
    monkeypatch.setattr(results_router, "_over", lambda: lambda: next(glances) < 0)
    assert isinstance(place.backend, MemoryResults)
    read = place.backend.read

    def counted(key: str) -> ResultRecord | None:
        reads.append(key)
        return read(key)

    monkeypatch.setattr(place.backend, "read", counted)
    with EventSource(place.events) as page:
        next(page)
        assert eventually(lambda: next(glances) > 50)
        assert len(reads) == 2  # before the stream, and at its beginning
        keep(place.backend, record(ResultStatus.SUCCEEDED, value="1"))
        assert next(page).name == "result"
        assert len(reads) == 3


# --- the whole way


def test_a_page_follows_a_task_from_its_call_to_its_result() -> None:
    tasks = QTasks(embedded=Embedded(":memory:"))
    going_on = threading.Event()

    @tasks.task
    def count(rows: int, ctx: TaskContext = injected) -> dict[str, int]:
        ctx.progress(rows / 2, rows, "half")
        assert going_on.wait(PATIENCE_S)
        return {"rows": rows}

    app = FastAPI()
    app.include_router(tasks.router, prefix="/qtasks")
    app.include_router(tasks.results_router(), prefix="/jobs")

    @app.post("/count")
    async def start(rows: int) -> str:
        return (await count.adelay(rows)).id

    with serving(app) as origin:
        call_id = httpx.post(f"{origin}/count", params={"rows": 4}).json()
        with EventSource(f"{origin}/jobs/{call_id}/events") as page:
            half = next(event for event in page if event.data["progress"])
            assert half.data["progress"] == {"done": 2, "total": 4, "note": "half", "fraction": 0.5}
            going_on.set()
            end = next(event for event in page if event.name == "result")
            assert end.data["result"] == {"rows": 4}
        assert httpx.get(f"{origin}/jobs/{call_id}").json()["result"] == {"rows": 4}


APP = """
from fastapi import FastAPI
from qtasks import QTasks

tasks = QTasks()
app = FastAPI()
app.include_router(tasks.router, prefix="/qtasks")
app.include_router(tasks.results_router(), prefix="/jobs")
"""


def test_a_server_that_is_told_to_stop_does_not_wait_for_onlookers(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(APP)
    settings = {
        "QSTASH_CURRENT_SIGNING_KEY": "sig_" + "c" * 28,
        "QSTASH_NEXT_SIGNING_KEY": "sig_" + "n" * 28,
        "QTASKS_BASE_URL": "https://app.example.com/qtasks",
        "QTASKS_RESULTS": "memory://",
    }
    with Process(tmp_path, "run", "main:app", "--port", "0", "--drain", "30", **settings) as server:
        origin = server.wait_for("qtasks run").split(" at ")[1].split("/qtasks")[0]
        with EventSource(f"{origin}/jobs/{CALL}/events") as page:
            next(page)
            began_s = time.monotonic()
            assert server.stop(signal.SIGTERM) == 0
            assert time.monotonic() - began_s < 10  # of the 30 that running tasks would have
