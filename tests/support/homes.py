"""One application in each of its homes: what its tasks see and what becomes of them must be the same in all of them."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.testclient import TestClient

from qtasks import Cancel, Embedded, NonRetryable, QTasks, RetryAfter, Snooze, TaskContext, injected
from qtasks.broker.core.values import AccountCredentials
from qtasks.broker.server.listen import listen
from qtasks.broker.settings import BrokerSettings
from qtasks.tasks.results.task_result import TaskResult
from qtasks.testing import Environment
from tests.support.running import RunningBroker
from tests.support.tasks import KEYS

PATIENCE_S = 30.0
TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


class Receipt(BaseModel):
    order: int
    at: datetime


class Tenant:
    """Plain ASGI middleware with a context variable."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        token = TENANT.set("acme")
        try:
            await self.app(scope, receive, send)
        finally:
            TENANT.reset(token)


class Shop:
    """The application, its tasks, and what happens in them."""

    def __init__(self, **settings: Any) -> None:
        self.tasks = QTasks(**settings)
        self.seen: list[str] = []
        self.events: list[str] = []
        self.happened = threading.Condition()
        self.app = FastAPI(lifespan=self._lifespan)
        self.app.add_middleware(BaseHTTPMiddleware, dispatch=self._counted)
        self.app.add_middleware(Tenant)
        self.app.add_middleware(GZipMiddleware, minimum_size=1)
        self.app.include_router(self.tasks.router, prefix="/jobs")
        self.app.dependency_overrides[price] = lambda: 5
        self.app.state.name = "shop"
        self.loop_thread: int | None = None
        self._declare_dependent()
        self._declare_plain()
        self._declare_threads()
        self._declare_failing()

    @asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[dict[str, object]]:
        self.loop_thread = threading.get_ident()
        yield {"pool": "a pool"}

    async def _counted(self, request: Request, call_next: Any) -> Any:
        self.seen.append(request.url.path)
        request.state.counted = True
        return await call_next(request)

    def note(self, event: str) -> None:
        with self.happened:
            self.events.append(event)
            self.happened.notify_all()

    def wait_for(self, event: str) -> None:
        with self.happened:
            assert self.happened.wait_for(lambda: event in self.events, PATIENCE_S), self.events

    def _declare_dependent(self) -> None:
        task = self.tasks.task(retries=0)

        def outer(request: Request) -> Iterator[str]:
            self.note("outer opened")
            yield request.url.path
            self.note("outer closed")

        async def inner(request: Request, path: str = Depends(outer)) -> AsyncIterator[str]:
            self.note("inner opened")
            try:
                yield f"{path} of {request.app.state.name}"
            finally:
                self.note("inner closed")

        @task
        async def described(shown: str = Depends(inner), cost: int = Depends(price)) -> list[object]:
            self.note("ran")
            return [shown, cost]

        @task
        def of_the_request(facts: dict[str, object] = Depends(request_facts)) -> dict[str, object]:
            return facts

        @task
        def refused(_: None = Depends(forbidden)) -> None: ...

        @task
        def tenants(tenant: str = Depends(tenant_of_dependency)) -> list[str]:
            return [tenant, TENANT.get()]

        @task
        async def async_tenants() -> str:
            return TENANT.get()

    def _declare_plain(self) -> None:
        task = self.tasks.task

        @task
        def add(a: int, b: int = 1) -> int:
            return a + b

        @task
        async def total(numbers: list[int]) -> int:
            return sum(numbers)

        @task
        def receipt(order: int) -> Receipt:
            return Receipt(order=order, at=datetime(2030, 1, 2, tzinfo=UTC))

        @task
        def echo(text: str, raw: bytes = b"") -> tuple[str, bytes]:
            return text, raw

    def _declare_threads(self) -> None:
        task = self.tasks.task

        @task
        def in_a_thread() -> int:
            return threading.get_ident()

        @task
        async def on_the_loop() -> int:
            return threading.get_ident()

        @task
        def starts_a_thread() -> None:
            threading.Thread(target=self.note, args=("thread",)).start()

        @task(unique="n")
        def once(n: int) -> int:
            return n

        @task
        def steps(ctx: TaskContext = injected) -> None:
            ctx.progress(2, 4, "half")
            raise Cancel("enough")

        @task
        def facts(ctx: TaskContext = injected) -> list[object]:
            return [ctx.task, ctx.attempt, ctx.retries, ctx.snoozed, ctx.schedule_id]

    def _declare_failing(self) -> None:
        task = self.tasks.task

        @task(retries=2, retry_delay="10ms")
        async def flaky(ctx: TaskContext = injected) -> int:
            if ctx.attempt < 3:
                raise ConnectionError("the bank is closed")
            return ctx.attempt

        @task(retries=2)
        def later(ctx: TaskContext = injected) -> int:
            if ctx.attempt < 2:
                raise RetryAfter("10ms")
            return ctx.attempt

        @task(retries=0)
        async def snoozing(ctx: TaskContext = injected) -> list[int]:
            if ctx.snoozed < 2:
                raise Snooze("1ms")
            return [ctx.snoozed, ctx.attempt]

        @task(retries=0)
        def fails(kind: str) -> None:
            raise FAILURES[kind]

        @fails.on_failure
        def hook(event: Any) -> None:
            self.note(f"failed: {event.reason}")


FAILURES: dict[str, BaseException] = {
    "error": ValueError("no such order"),
    "exit": SystemExit(3),
    "for good": NonRetryable("the order vanished"),
    "http": HTTPException(404, "no such order"),
}


def price() -> int:
    return 1


def forbidden() -> None:
    raise HTTPException(403, "not for you")


def tenant_of_dependency() -> str:
    return TENANT.get()


def request_facts(request: Request) -> dict[str, object]:
    names = ("content-type", "upstash-retried", "content-length")
    return {
        "method": request.method,
        "path": request.url.path,
        "root": request.scope.get("root_path"),
        "query": request.url.query,
        "scheme": request.url.scheme,
        "client": None if request.client is None else request.client.host,
        "headers": {name: bool(request.headers.get(name)) for name in names},
        "is counted": request.state.counted,
        "has message id": request.headers.get("upstash-message-id", "").startswith("msg_"),
        "has host": bool(request.headers.get("host")),
        "url for": request.url_for("qtasks", task="add").path,
        "pool": getattr(request.state, "pool", None),
        "http version": request.scope["http_version"],
        "body": request.scope["type"],
    }


@dataclass
class Home:
    """A shop that is at home somewhere."""

    shop: Shop
    name: str
    has_lifespan: bool = True
    environment: Environment | None = None

    def send(self, task: str, *args: Any, **kwargs: Any) -> TaskResult[Any]:
        return self.shop.tasks.tasks[task].delay(*args, **kwargs)

    def get(self, handle: Any) -> Any:
        if self.environment is not None and self.environment.mode == "manual":
            self.environment.advance(minutes=10)
        return handle.get(timeout=PATIENCE_S)

    def run(self, task: str, *args: Any, **kwargs: Any) -> Any:
        """Call a task and wait for its result."""
        return self.get(self.send(task, *args, **kwargs))


@contextmanager
def under_a_broker() -> Iterator[Home]:
    """A broker behind a socket, and the application behind uvicorn."""
    credentials = AccountCredentials("shop", "token-of-the-shop", KEYS)
    broker = RunningBroker(BrokerSettings(path=":memory:", credentials=(credentials,)))
    listener = listen("127.0.0.1", 0)
    shop = Shop(
        url=broker.url,
        token=credentials.token,
        current_signing_key=KEYS.current,
        next_signing_key=KEYS.next,
        base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/jobs",
        results="memory://",
    )
    server = uvicorn.Server(uvicorn.Config(shop.app, lifespan="on", log_config=None))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield Home(shop, "broker")
    finally:
        broker.stop()
        server.should_exit = True
        thread.join()
        listener.close()
        shop.tasks.close()


@contextmanager
def embedded() -> Iterator[Home]:
    """The embedded broker of a running application."""
    shop = Shop(embedded=Embedded(":memory:"))
    with TestClient(shop.app):
        yield Home(shop, "embedded")


@contextmanager
def in_a_script() -> Iterator[Home]:
    """The embedded broker of a program that imports the application and does not start it."""
    shop = Shop(embedded=Embedded(":memory:"))
    with shop.tasks:
        yield Home(shop, "script", has_lifespan=False)


@contextmanager
def in_a_test() -> Iterator[Home]:
    """The environment of the fixture, with a running application."""
    shop = Shop()
    with Environment(shop.app) as environment, TestClient(shop.app):
        yield Home(shop, "test", environment=environment)


@contextmanager
def in_a_plain_test() -> Iterator[Home]:
    """The environment of the fixture; nothing starts the application."""
    shop = Shop()
    with Environment(shop.app) as environment:
        yield Home(shop, "plain test", has_lifespan=False, environment=environment)


@contextmanager
def in_a_full_test() -> Iterator[Home]:
    """The environment of the fixture, in real time, behind sockets."""
    shop = Shop()
    with Environment(shop.app, mode="full") as environment:
        yield Home(shop, "full test", environment=environment)


HOMES: dict[str, Callable[[], Any]] = {
    each.__name__: each for each in (under_a_broker, embedded, in_a_script, in_a_test, in_a_plain_test, in_a_full_test)
}


@contextmanager
def at_home(name: str) -> Iterator[Home]:
    with ExitStack() as stack:
        yield stack.enter_context(HOMES[name]())
