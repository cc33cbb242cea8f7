"""The dispatcher as a route of a FastAPI application.

One plain ASGI route takes every delivery: FastAPI's own request parsing costs as much as all the rest together. Tasks
with `Depends` get an `APIRoute` of their own, made when first needed and called after verification, so that nothing of
the user's runs for an unverified request. Its dependencies have closed before the broker hears of success.
"""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.routing import NoMatchFound, Route

from qtasks.errors import QTasksError
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.ports import ASGIApp, Receive, Scope, Send
from qtasks.tasks.run.attempt import Delivery
from qtasks.tasks.run.decision import DispatchResponse
from qtasks.tasks.run.dispatcher import Dispatcher, log
from qtasks.tasks.run.run import Run

if TYPE_CHECKING:
    from qtasks.tasks.app import QTasks

ROUTE_NAME = "qtasks"
MAX_REQUEST = 4 * 1024 * 1024
"""Bytes of a delivery. Ours are 1 MiB at most; callbacks that carry a response are larger."""

NOT_CONFIGURED_AFTER_MS = 10_000
_CALL_KEY = "qtasks.call"
_WHO_KEY = "qtasks.who"


class Disconnected(Exception):
    """The broker went away before it had sent the whole request."""


class Endpoint:
    """The ASGI application behind ``POST {prefix}/{task}``."""

    def __init__(self, tasks: QTasks) -> None:
        self._tasks = tasks
        self._routes = _Routes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if (asking := scope.get(_WHO_KEY)) is not None:
            asking.append(self._tasks)
            return
        try:
            answer = await self._answer(scope, receive)
        except Disconnected:
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer.body)).encode())]
        headers.extend((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers)
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _answer(self, scope: Scope, receive: Receive) -> DispatchResponse:
        if scope["method"] != "POST":
            return DispatchResponse.refusal(405, "tasks are delivered with POST, by a QStash broker", ("Allow", "POST"))
        headers = _Headers(scope["headers"])
        if headers.encoding not in ("", "identity"):
            return DispatchResponse.refusal(415, "the body has a Content-Encoding; the signature is over plain bytes")
        try:
            dispatcher = await self._tasks.runtime.adispatcher()
        except QTasksError as error:
            log.error("%s %s", error.code, error, extra={"action": "not_configured"})
            return DispatchResponse.later(
                "the dispatcher is not configured", error.code, after_ms=NOT_CONFIGURED_AFTER_MS
            )
        if headers.length > MAX_REQUEST or (body := await _read(receive)) is None:
            return DispatchResponse.refusal(413, f"the body has more than {MAX_REQUEST} bytes")
        delivery = Delivery(
            task=scope["path_params"]["task"],
            body=body,
            signature=headers.signature,
            message_id=headers.message_id,
            retried=headers.retried,
            schedule_id=headers.schedule_id,
            query=_text(scope["query_string"]),
            call=headers.call,
        )

        async def with_dependencies(run: Run) -> Any:
            return await self._routes.call(dispatcher, run, scope, body)

        return await dispatcher.answer(delivery, with_dependencies)


class _Headers:
    """What the dispatcher reads of a request's headers."""

    __slots__ = ("call", "encoding", "length", "message_id", "retried", "schedule_id", "signature")

    def __init__(self, lines: list[tuple[bytes, bytes]]) -> None:
        self.signature = self.message_id = self.encoding = self.call = ""
        self.schedule_id: str | None = None
        self.retried = self.length = 0
        for name, value in lines:
            if name == b"upstash-signature":
                # Two of them: which one was checked would be a matter of taste. Joined, they are no token at all.
                self.signature = f"{self.signature},{_text(value)}" if self.signature else _text(value)
            elif name == b"upstash-message-id":
                self.message_id = _text(value)[:256]
            elif name == b"upstash-retried":
                self.retried = _number(value)
            elif name == b"qtasks-call":
                self.call += _text(value)
            elif name == b"upstash-schedule-id":
                self.schedule_id = _text(value)[:256]
            elif name == b"content-encoding":
                self.encoding = _text(value).strip().lower()
            elif name == b"content-length":
                self.length = _number(value)


class _Call:
    """One run on its way through an `APIRoute`: what it needs, and what came of it."""

    __slots__ = ("dispatcher", "error", "run", "value")

    def __init__(self, dispatcher: Dispatcher, run: Run) -> None:
        self.dispatcher = dispatcher
        self.run = run
        self.value: Any = None
        self.error: BaseException | None = None


class _Routes:
    """An `APIRoute` for every task with dependencies, for each application that serves it."""

    def __init__(self) -> None:
        self._by_app: weakref.WeakKeyDictionary[Any, dict[str, APIRoute]] = weakref.WeakKeyDictionary()

    async def call(self, dispatcher: Dispatcher, run: Run, scope: Scope, body: bytes) -> Any:
        """Resolve the dependencies of a run, run it, close them. Raises whatever any of the three raised."""
        call = _Call(dispatcher, run)
        answers: list[Mapping[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Mapping[str, Any]) -> None:
            answers.append(message)

        route = self._route(run.task, scope["app"])
        try:
            await route.app({**scope, _CALL_KEY: call}, receive, send)
        except Exception:
            if call.error is None:
                raise
        # The application's exception handlers may have made an answer of what was raised.
        if call.error is not None:
            raise call.error
        return call.value

    def _route(self, task: BaseTask[..., Any], app: Any) -> APIRoute:
        routes = self._by_app.setdefault(app, {})
        if task.name not in routes:
            routes[task.name] = APIRoute(
                "/{task}",
                _endpoint(task),
                methods=["POST"],
                response_model=None,
                dependencies=[Depends(_witness)],
                dependency_overrides_provider=weakref.proxy(app),  # it must not keep its own key alive
                include_in_schema=False,
            )
        return routes[task.name]


async def _witness(request: Request) -> AsyncIterator[None]:
    """The first dependency of every task: opened first and closed last, so it sees whatever goes wrong between."""
    try:
        yield
    except BaseException as error:
        request.scope[_CALL_KEY].error = error
        raise


def _endpoint(task: BaseTask[..., Any]) -> Callable[..., Awaitable[Response]]:
    """A path operation whose parameters are the task's dependencies, and nothing but them."""

    async def endpoint(qtasks_request: Request, **dependencies: Any) -> Response:
        call: _Call = qtasks_request.scope[_CALL_KEY]
        call.value = await call.dispatcher.run(call.run, dependencies)
        return Response()

    request = inspect.Parameter("qtasks_request", inspect.Parameter.KEYWORD_ONLY, annotation=Request)
    wanted = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in task.parameters.dependencies]
    endpoint.__signature__ = inspect.Signature([request, *wanted])  # type: ignore[attr-defined]
    endpoint.__name__ = task.name
    return endpoint


class Lifespan(Protocol):
    """What the router does around the life of the application it is included in."""

    def __call__(self, app: Any, /) -> AbstractAsyncContextManager[None]:
        """Start before the first request, stop after the last."""
        ...


def router(endpoint: Endpoint, lifespan: Lifespan | None = None) -> APIRouter:
    """The router to include. Tasks declared later are served as well: the route asks when a delivery comes."""
    return APIRouter(routes=[Route("/{task}", endpoint, name=ROUTE_NAME, include_in_schema=False)], lifespan=lifespan)


def bare_app(tasks: APIRouter, prefix: str) -> FastAPI:
    """An application of nothing but tasks."""
    app = FastAPI(title="qtasks", openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(tasks, prefix=prefix)
    return app


def prefix_of(app: Any) -> str | None:
    """The path under which `app` serves the tasks, such as ``/qtasks``; None if it does not."""
    try:
        path = str(app.url_path_for(ROUTE_NAME, task="x"))
    except (NoMatchFound, AttributeError):
        return None
    return path.removesuffix("/x")


def served_by(app: FastAPI) -> QTasks | None:
    """The tasks that `app` serves.

    The application itself is asked, below its middleware: nobody else knows what it has mounted where.
    """
    if (prefix := prefix_of(app)) is None:
        return None
    answers: list[QTasks] = []
    path = f"{prefix}/x"
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "root_path": "", "headers": []}
    asking = app.router({**scope, "query_string": b"", "app": app, _WHO_KEY: answers}, _nothing, _nothing)
    with contextlib.suppress(StopIteration):
        asking.send(None)
    asking.close()
    return answers[0] if answers else None


async def _nothing(*_: Any) -> Any: ...


class Gateway:
    """An application as an embedded home calls it: deliveries go to where the application really serves its tasks.

    The home signs for a base URL of its own, whose path need not be the prefix of ``include_router``.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, its path changed to the prefix of the application."""
        if scope["type"] == "http":
            path = f"{self._prefix}/{scope['path'].rsplit('/', 1)[-1]}"
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await self._app(scope, receive, send)


async def _read(receive: Receive) -> bytes | None:
    """The body, or None when it is longer than `MAX_REQUEST`."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        return body if len(body) <= MAX_REQUEST else None
    parts = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise Disconnected
        parts += message.get("body", b"")
        if len(parts) > MAX_REQUEST:
            return None
        if not message.get("more_body", False):
            return bytes(parts)
        message = await receive()


def _text(value: bytes) -> str:
    return value.decode("latin-1")


def _number(value: bytes) -> int:
    """A header's number; 0 for anything that is none."""
    return int(value) if value.isdigit() and len(value) <= 18 else 0
