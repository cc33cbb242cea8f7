"""The dispatcher inside a FastAPI application: routes, dependencies, lifespan, and a real server."""

import asyncio
import contextlib
import gc
import json
import logging
import re
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, cast

import httpx
import pytest
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from qtasks import NonRetryable, QTasks, TaskContext, injected
from qtasks.errors import ConfigurationError, DefinitionError
from qtasks.request_body import BufferBudget
from qtasks.tasks.settings import DEV_SIGNING_KEYS
from qtasks.tasks.web import router
from tests.support.tasks import BASE_URL, KEYS, RecordingBroker, application, deliver, envelope, request, signature

pytestmark = pytest.mark.anyio


@pytest.fixture
def steps() -> list[str]:
    return []


def served(tasks: QTasks, prefix: str = "/qtasks") -> FastAPI:
    app = FastAPI()
    app.include_router(tasks.router, prefix=prefix)
    return app


@pytest.mark.parametrize("header", [{"Origin": "http://rebound.example"}, {"Sec-Fetch-Site": "same-origin"}])
async def test_with_public_keys_no_web_page_delivers(header: dict[str, str]) -> None:
    """On any server, without a check of host names: a page may have rebound its own name to this machine."""
    base_url = "http://localhost:8000/qtasks"
    public = {"current_signing_key": DEV_SIGNING_KEYS.current, "next_signing_key": DEV_SIGNING_KEYS.next}
    for keys, statuses in ((public, (403, 200)), ({}, (200, 200))):
        tasks = application(base_url=base_url, allow_dev_keys=True, **keys)

        @tasks.task
        def work() -> int:
            return 1

        key = keys.get("current_signing_key", KEYS.current)
        bodies = envelope(), envelope()
        signed = [signature(f"{base_url}/work", body, key=key) for body in bodies]
        from_page = await deliver(served(tasks), "work", bodies[0], signed=signed[0], **cast("Any", header))
        from_broker = await deliver(served(tasks), "work", bodies[1], signed=signed[1])
        assert (from_page.status, from_broker.status) == statuses


# --- routes


async def test_tasks_declared_before_and_after_the_router_was_included_are_served() -> None:
    tasks = application()

    @tasks.task
    def before() -> str:
        return "before"

    app = served(tasks)
    assert (await deliver(app, "before")).json == "before"

    @tasks.task
    async def after() -> str:
        return "after"

    assert (await deliver(app, "after")).json == "after"


async def test_the_router_may_sit_deep_inside_an_application() -> None:
    tasks = application(base_url="https://app.example.com/api/v1/jobs")

    @tasks.task(name="mail.send-2")
    def send() -> int:
        return 1

    inner = APIRouter()
    inner.include_router(tasks.router, prefix="/jobs")
    app = FastAPI()
    app.include_router(inner, prefix="/api/v1")
    answer = await deliver(app, "mail.send-2", base_url="https://app.example.com/api/v1/jobs", prefix="/api/v1/jobs")
    assert answer.status == 200


async def test_a_bare_application_serves_tasks_and_nothing_else() -> None:
    tasks = application()

    @tasks.task
    def work() -> int:
        return 1

    app = tasks.asgi_app()
    assert (await deliver(app, "work")).status == 200
    for path in ("/", "/docs", "/openapi.json", "/qtasks", "/qtasks/a/b"):
        assert (await request(app, path, method="GET")).status == 404


async def test_the_tasks_do_not_show_in_the_application_s_schema() -> None:
    app = served(application())
    assert app.openapi()["paths"] == {}


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
async def test_other_methods_are_told_what_this_is(method: str) -> None:
    answer = await request(served(application()), "/qtasks/work", method=method)
    assert answer.status == 405
    assert answer.headers["allow"] == "POST"
    assert answer.headers["content-type"] == "application/json"
    assert "POST" in answer.error


async def test_every_answer_says_that_a_dispatcher_gave_it() -> None:
    tasks = application()

    @tasks.task
    def work(n: int) -> int:
        return 1 // n

    app = served(tasks)
    unconfigured = served(application(current_signing_key=None, next_signing_key=None))
    answers = {
        200: await deliver(app, "work", envelope(1)),
        401: await deliver(app, "work", signed="nonsense"),
        405: await request(app, "/qtasks/work", method="GET"),
        413: await request(app, "/qtasks/work", headers={"Content-Length": str(5 * 1024 * 1024)}),
        415: await request(app, "/qtasks/work", headers={"Content-Encoding": "gzip"}),
        489: await deliver(app, "work", envelope("no number")),
        500: await deliver(app, "work", envelope(0)),
        503: await deliver(unconfigured, "work", envelope(1)),
    }
    assert {status: answer.status for status, answer in answers.items()} == {status: status for status in answers}
    assert {answer.headers.get("qtasks-dispatcher") for answer in answers.values()} == {"true"}
    assert "qtasks-dispatcher" not in (await request(app, "/elsewhere")).headers


# --- trust


async def test_the_public_address_is_a_setting_and_not_the_host_header() -> None:
    tasks = application()

    @tasks.task
    def work() -> int:
        return 1

    app = served(tasks)
    assert (await deliver(app, "work", Host="anything.internal", X_Forwarded_Host="evil.example")).status == 200
    body = envelope()
    forged = signature("https://evil.example/qtasks/work", body)
    answer = await deliver(app, "work", body, signed=forged, Host="evil.example", X_Forwarded_Host="evil.example")
    assert answer.status == 401


async def test_two_signatures_are_none() -> None:
    tasks = application()

    @tasks.task
    def work() -> int:
        return 1

    body = envelope()
    signed = signature(f"{BASE_URL}/work", body)
    assert (await deliver(served(tasks), "work", body, signed=signed)).status == 200
    lines = [(b"upstash-signature", signed.encode())] * 2

    async def twice(scope: Scope, receive: Receive, send: Send) -> None:
        await served(tasks)({**scope, "headers": lines}, receive, send)

    assert (await deliver(twice, "work", body)).status == 401


async def test_nothing_of_the_user_s_runs_for_a_request_that_proves_nothing(steps: list[str]) -> None:
    tasks = application()

    async def dependency() -> None:
        steps.append("dependency")

    @tasks.task
    async def work(needed: None = Depends(dependency)) -> None:
        steps.append("task")

    for body, signed in ((envelope(), "a.b.c"), (b"{", ""), (b"[" * 100_000, "x")):
        answer = await deliver(served(tasks), "work", body, signed=signed)
        assert (answer.status, answer.body) == (401, b'{"error":"invalid signature"}')
    assert steps == []


@pytest.mark.parametrize("encoding", ["gzip", "br", "gzip, identity"])
async def test_an_encoded_body_is_refused_before_it_is_read(encoding: str) -> None:
    answer = await deliver(served(application()), "work", Content_Encoding=encoding)
    assert answer.status == 415


async def test_a_body_may_come_in_pieces() -> None:
    tasks = application()

    @tasks.task
    def work(text: str) -> int:
        return len(text)

    body = envelope("x" * 5000)
    headers = {"Upstash-Signature": signature(f"{BASE_URL}/work", body), "Upstash-Message-Id": "m"}
    answer = await request(served(tasks), "/qtasks/work", body, headers=headers, pieces=7)
    assert answer.json == 5000


@pytest.mark.parametrize("headers", [{}, {"Content-Length": str(4 * 1024 * 1024 + 1)}])
@pytest.mark.parametrize("pieces", [1, 5])
async def test_a_body_over_four_mebibytes_is_refused(headers: dict[str, str], pieces: int) -> None:
    body = b"x" * (4 * 1024 * 1024 + 1)
    answer = await request(served(application()), "/qtasks/work", body, headers=headers, pieces=pieces)
    assert answer.status == 413
    assert "4194304" in answer.error


async def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every server that serves the application, ours or not."""
    monkeypatch.setattr(router, "BODY_TIMEOUT_S", 0.01)
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError("never reached")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/qtasks/work", "headers": [], "query_string": b""}
    await served(application())(scope, receive, send)
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["error"] == "no complete body within 0.01 s"


async def test_large_bodies_that_arrive_at_once_have_a_common_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it a delivery comes again, without one attempt less; small ones are served."""
    monkeypatch.setattr(router, "_BUDGET", BufferBudget(100_000))
    answer = await request(served(application()), "/qtasks/work", b"x" * 200_000, pieces=3)
    assert answer.status == 503
    assert (answer.headers["retry-after"], answer.headers["qtasks-interrupted"]) == ("1", "busy")
    for size in (60_000, 160_000):
        answer = await request(served(application()), "/qtasks/work", b"x" * size, pieces=3)
        assert answer.status == 401


async def test_a_broker_that_hangs_up_half_way_runs_nothing(steps: list[str]) -> None:
    tasks = application()

    @tasks.task
    def work() -> None:
        steps.append("ran")

    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b'{"v"', "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/qtasks/work", "headers": [], "query_string": b""}
    await served(tasks)(scope, receive, send)
    assert sent == []
    assert steps == []


@pytest.mark.parametrize("value", ["-1", "x", "1e3", "9" * 40, ""])
async def test_a_strange_retry_counter_is_a_first_attempt(value: str) -> None:
    tasks = application()

    @tasks.task
    def work(ctx: TaskContext = injected) -> int:
        return ctx.attempt

    assert (await deliver(served(tasks), "work", **cast("Any", {"Upstash-Retried": value}))).json == 1
    assert (await deliver(served(tasks), "work", retried=2)).json == 3


# --- dependencies


async def test_dependencies_are_resolved_and_closed_before_the_answer_leaves(steps: list[str]) -> None:
    tasks = application()

    async def connection() -> AsyncIterator[str]:
        steps.append("open connection")
        yield "connection"
        await asyncio.sleep(0)
        steps.append("close connection")

    def session(connection: Annotated[str, Depends(connection)]) -> Iterator[str]:
        steps.append("open session")
        yield f"session over {connection}"
        steps.append("close session")

    @tasks.task
    async def work(a: int, session: str = Depends(session), *, ctx: TaskContext = injected) -> str:
        steps.append("task")
        return f"{a} {session} {ctx.attempt}"

    app = served(tasks)

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        async def noted(message: Any) -> None:
            steps.append(message["type"])
            await send(message)

        await app(scope, receive, noted)

    answer = await deliver(watched, "work", envelope(5))
    assert answer.json == "5 session over connection 1"
    assert steps == [
        "open connection",
        "open session",
        "task",
        "close session",
        "close connection",
        "http.response.start",
        "http.response.body",
    ]


async def test_a_def_with_dependencies_runs_in_a_thread_of_ours(steps: list[str]) -> None:
    tasks = application()

    def name() -> str:
        return "dependency"

    @tasks.task
    def work(value: Annotated[str, Depends(name)] = "") -> list[str]:
        return [value, threading.current_thread().name.rsplit("_", 1)[0]]

    assert (await deliver(served(tasks), "work")).json == ["dependency", "qtasks-task"]


async def test_overrides_of_the_application_that_serves_are_used() -> None:
    tasks = application()

    def real() -> str:
        return "real"

    @tasks.task
    def work(value: str = Depends(real)) -> str:
        return value

    first, second = served(tasks), served(tasks)
    assert (await deliver(first, "work")).json == "real"
    first.dependency_overrides[real] = lambda: "overridden"
    assert (await deliver(first, "work")).json == "overridden"
    assert (await deliver(second, "work")).json == "real"
    first.dependency_overrides.clear()
    assert (await deliver(first, "work")).json == "real"


async def test_an_application_that_is_gone_is_not_kept() -> None:
    tasks = application()

    @tasks.task
    def work(value: None = Depends(lambda: None)) -> None: ...

    app = served(tasks)
    assert (await deliver(app, "work")).status == 200
    gone = weakref.ref(app)
    del app
    gc.collect()
    assert gone() is None


async def test_a_failing_task_is_seen_by_its_dependencies(steps: list[str]) -> None:
    tasks = application()

    async def transaction() -> AsyncIterator[None]:
        try:
            yield
        except NonRetryable as error:
            steps.append(f"rollback: {error}")
            raise
        steps.append("commit")

    @tasks.task
    async def work(fail: bool, transaction: None = Depends(transaction)) -> None:
        if fail:
            raise NonRetryable("order vanished")

    app = served(tasks)
    answer = await deliver(app, "work", envelope(True))
    assert (answer.status, answer.error) == (489, "NonRetryable: order vanished")
    assert (await deliver(app, "work", envelope(False))).status == 200
    assert steps == ["rollback: order vanished", "commit"]


async def test_a_dependency_that_cannot_close_makes_the_attempt_fail() -> None:
    """A commit that fails after the task has returned must not be answered with success."""
    tasks = application()

    async def transaction() -> AsyncIterator[None]:
        yield
        raise ConnectionError("commit failed")

    @tasks.task
    async def work(transaction: None = Depends(transaction)) -> str:
        return "done"

    answer = await deliver(served(tasks), "work", envelope(call_id="call_1"))
    assert (answer.status, answer.error) == (500, "ConnectionError: commit failed")
    assert tasks.tasks["work"].result("call_1").status == "retrying"


async def test_a_dependency_that_swallows_the_failure_does_not_make_it_a_success() -> None:
    tasks = application()

    async def careless() -> AsyncIterator[None]:
        with contextlib.suppress(Exception):
            yield

    @tasks.task
    async def work(careless: None = Depends(careless)) -> str:
        raise ValueError("no")

    answer = await deliver(served(tasks), "work")
    assert answer.status == 500


@pytest.mark.parametrize("handled", [False, True])
async def test_the_application_s_exception_handlers_do_not_answer_for_a_task(handled: bool) -> None:
    tasks = application()

    def locked() -> None:
        raise HTTPException(404, "no such tenant")

    @tasks.task
    def depends(locked: None = Depends(locked)) -> None: ...

    @tasks.task
    def fails(free: None = Depends(lambda: None)) -> None:
        raise KeyError("x")

    app = served(tasks)
    if handled:

        @app.exception_handler(KeyError)
        async def calm(request: Request, error: Exception) -> JSONResponse:
            return JSONResponse({"all": "is well"}, 200)

    answer = await deliver(app, "depends")
    assert (answer.status, answer.error) == (500, "HTTPException: 404: no such tenant")
    answer = await deliver(app, "fails")
    assert (answer.status, answer.error) == (500, "KeyError: 'x'")


async def test_a_dependency_sees_the_delivery_as_its_request() -> None:
    tasks = application()

    async def facts(request: Request, upstash_message_id: Annotated[str, Header()]) -> str:
        body = await request.json()
        return f"{request.url.path} {body['id']} {upstash_message_id} {request.app.title}"

    @tasks.task
    async def work(facts: str = Depends(facts)) -> str:
        return facts

    answer = await deliver(served(tasks), "work", envelope(call_id="call_7"), message_id="msg_7")
    assert answer.json == "/qtasks/work call_7 msg_7 FastAPI"


async def test_a_dependency_whose_header_is_missing_fails_the_attempt() -> None:
    tasks = application()

    def tenant(x_tenant: Annotated[str, Header()]) -> str:
        return x_tenant

    @tasks.task
    def work(tenant: str = Depends(tenant)) -> str:
        return tenant

    app = served(tasks)
    assert (await deliver(app, "work", X_Tenant="blue")).json == "blue"
    answer = await deliver(app, "work")
    assert answer.status == 500
    assert answer.error.startswith("RequestValidationError")


async def test_wrong_arguments_open_no_dependency(steps: list[str]) -> None:
    tasks = application()

    def dependency() -> None:
        steps.append("open")

    @tasks.task
    def work(a: int, needed: None = Depends(dependency)) -> None: ...

    assert (await deliver(served(tasks), "work", envelope("x"))).status == 489
    assert steps == []


async def test_deliveries_at_once_keep_their_dependencies_apart() -> None:
    tasks = application()

    async def own(request: Request) -> AsyncIterator[str]:
        yield request.headers["x-mark"]

    @tasks.task
    async def work(own: str = Depends(own)) -> str:
        for _ in range(3):
            await asyncio.sleep(0)
        return own

    app = served(tasks)
    answers = await asyncio.gather(*(deliver(app, "work", X_Mark=str(mark)) for mark in range(20)))
    assert [answer.json for answer in answers] == [str(mark) for mark in range(20)]


# --- the life of an application


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"current_signing_key": None}, "QSTASH_CURRENT_SIGNING_KEY not set"),
        ({"current_signing_key": None, "next_signing_key": None}, "no signing keys"),
        ({"current_signing_key": "short"}, "QSTASH_CURRENT_SIGNING_KEY"),
        ({"current_signing_key": DEV_SIGNING_KEYS.current}, "published development key"),
        ({"base_url": None}, "QTASKS_BASE_URL"),
    ],
)
async def test_an_application_that_could_trust_nothing_does_not_start(
    overrides: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("QSTASH_CURRENT_SIGNING_KEY", "QSTASH_NEXT_SIGNING_KEY", "QTASKS_BASE_URL", "QTASKS_DEV"):
        monkeypatch.delenv(variable, raising=False)
    app = served(application(**overrides))
    with pytest.raises(ConfigurationError, match=text):
        async with app.router.lifespan_context(app):
            pass


async def test_before_the_start_an_unconfigured_dispatcher_keeps_messages_and_runs_nothing(
    steps: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("QSTASH_CURRENT_SIGNING_KEY", raising=False)
    tasks = application(current_signing_key=None)

    @tasks.task
    def work() -> None:
        steps.append("ran")

    answer = await deliver(served(tasks), "work")
    assert (answer.status, answer.error) == (503, "the dispatcher is not configured")
    assert answer.headers["retry-after"] == "10"
    assert "qtasks-interrupted" not in answer.headers, "it counts: nothing will end it but a person"
    assert "QSTASH_CURRENT_SIGNING_KEY" in caplog.text
    assert steps == []


async def test_a_task_that_cannot_work_stops_the_start() -> None:
    tasks = application()

    @tasks.task
    def work(session: threading.Thread) -> None: ...

    app = served(tasks)
    with pytest.raises(DefinitionError, match="parameter 'session'"):
        async with app.router.lifespan_context(app):
            pass


async def test_the_router_s_lifespan_runs_inside_the_application_s(steps: list[str]) -> None:
    broker = RecordingBroker()
    tasks = QTasks(embedded=broker)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        steps.append(f"application up, broker started {len(broker.started)} times")
        yield
        steps.append(f"application down, broker stopped {broker.stops} times")

    app = FastAPI(lifespan=lifespan)
    app.include_router(tasks.router, prefix="/jobs")
    async with app.router.lifespan_context(app):
        assert [loop for _, loop in broker.started] == [asyncio.get_running_loop()]
    assert steps == [
        "application up, broker started 0 times",
        "application down, broker stopped 1 times",
    ]


async def test_a_home_reaches_the_tasks_wherever_the_application_serves_them() -> None:
    broker = RecordingBroker(base_url="http://embedded.internal/somewhere")
    tasks = QTasks(embedded=broker)

    @tasks.task
    async def work(a: int) -> int:
        return a

    seen: list[str] = []

    class Middleware:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            seen.append(scope["path"] if scope["type"] == "http" else scope["type"])
            await self.app(scope, receive, send)

    app = served(tasks, prefix="/internal/jobs")
    app.add_middleware(Middleware)
    async with app.router.lifespan_context(app):
        result = await work.adelay(5)
        (published,) = broker.transport.requests
        url = published.url.removeprefix("http://broker.internal/v2/publish/")
        assert url == "http://embedded.internal/somewhere/work"
        answer = await deliver(
            broker.app, "work", published.body, base_url="http://embedded.internal/somewhere", prefix="/somewhere"
        )
        assert answer.status == 200
        assert await result.aget(timeout=5) == 5
    assert seen == ["/internal/jobs/work"]


async def test_an_application_takes_over_a_home_that_a_call_has_started() -> None:
    broker = RecordingBroker()
    tasks = QTasks(embedded=broker)

    @tasks.task
    async def work() -> str:
        return "done"

    await asyncio.to_thread(work.delay)
    bare = broker.app
    answer = await deliver(bare, "work", base_url=broker.base_url, prefix="/somewhere")
    assert answer.json == "done"
    app = served(tasks)
    async with app.router.lifespan_context(app):
        assert [loop for _, loop in broker.started] == [None, asyncio.get_running_loop()]
    assert broker.stops == 1


async def test_an_application_can_start_again_after_it_has_stopped() -> None:
    tasks = application()

    @tasks.task
    def work() -> int:
        return 1

    app = served(tasks)
    for _ in range(2):
        async with app.router.lifespan_context(app):
            assert (await deliver(app, "work")).status == 200


async def test_two_applications_share_the_tasks_until_the_last_one_stops() -> None:
    broker = RecordingBroker()
    tasks = QTasks(embedded=broker)
    first, second = served(tasks), served(tasks)
    async with first.router.lifespan_context(first):
        async with second.router.lifespan_context(second):
            pass
        assert broker.stops == 0
    assert broker.stops == 1


async def test_the_end_waits_for_a_task_that_runs(steps: list[str]) -> None:
    tasks = application()
    begun, may_end = asyncio.Event(), asyncio.Event()

    @tasks.task
    async def work() -> None:
        begun.set()
        await may_end.wait()
        steps.append("task ended")

    app = served(tasks)
    async with app.router.lifespan_context(app):
        running = asyncio.create_task(deliver(app, "work"))
        await begun.wait()
        asyncio.get_running_loop().call_later(0.01, may_end.set)
    steps.append("application stopped")
    assert steps == ["task ended", "application stopped"]
    assert (await running).status == 200


async def test_a_base_url_that_cannot_be_right_is_said_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    for prefix, warned in (("/qtasks", False), ("", False), ("/jobs", True)):
        caplog.clear()
        tasks = application()
        app = FastAPI()
        app.include_router(tasks.router, prefix=prefix)
        with caplog.at_level(logging.WARNING):
            async with app.router.lifespan_context(app):
                pass
        assert ("served under /jobs" in caplog.text) is warned


# --- over a real server


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[str]:
    """`app` behind uvicorn on a free port."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="on"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done(), "the server did not start"
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


async def test_a_delivery_over_a_real_server() -> None:
    tasks = application()

    def greeting() -> str:
        return "hello"

    @tasks.task
    def greet(name: str, greeting: str = Depends(greeting)) -> str:
        return f"{greeting} {name}"

    @tasks.task
    async def fail() -> None:
        raise NonRetryable("no")

    async with running(served(tasks)) as origin, httpx.AsyncClient(base_url=origin) as client:

        async def post(task: str, body: bytes, **headers: str) -> httpx.Response:
            lines = {
                "Upstash-Signature": signature(f"{BASE_URL}/{task}", body),
                "Upstash-Message-Id": "msg_1",
                "Upstash-Retried": "0",
                **headers,
            }
            return await client.post(f"/qtasks/{task}", content=body, headers=lines)

        answers = await asyncio.gather(*(post("greet", envelope(f"Ada {number}")) for number in range(10)))
        assert [answer.json() for answer in answers] == [f"hello Ada {number}" for number in range(10)]
        answer = await post("fail", envelope())
        assert answer.status_code == 489
        assert answer.headers["Upstash-NonRetryable-Error"] == "true"
        [place] = answer.json()["at"]
        assert re.fullmatch(r".*test_dispatcher\.py:\d+ in fail", place)
        assert answer.json() == {"error": "NonRetryable: no", "code": "QT405", "at": [place]}
        assert (await post("greet", envelope("x"), **{"Upstash-Signature": "forged"})).status_code == 401
        chunked = await client.post("/qtasks/greet", content=_chunks(b"x" * 1024 * 1024, 5))
        assert chunked.status_code == 413
        assert json.loads((await client.get("/qtasks/greet")).content)["error"]


async def _chunks(part: bytes, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield part
