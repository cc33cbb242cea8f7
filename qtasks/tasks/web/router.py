"""The dispatcher as a route of a FastAPI application.

One plain ASGI route takes every delivery, because FastAPI's own request parsing costs as much as everything else
together. A task with `Depends` gets an `APIRoute` of its own on first use. It is called after the signature is
verified, so no code of the application runs for an unverified request. Its dependencies are closed before the broker is
answered.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Route

from qtasks.counted_log import CountedLog
from qtasks.error_codes import ErrorCode
from qtasks.errors import QTasksError
from qtasks.lazy import lazy_property
from qtasks.protocol.headers import INTERRUPTED_HEADER
from qtasks.request_body import BodyCut, BodyTooLarge, BodyTooSlow, BufferBudget, NoRoomForBody, read_body
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.ports import ASGIApp, Lifespan, Receive, Scope, Send
from qtasks.tasks.run.attempt import Delivery
from qtasks.tasks.run.decision import DispatchResponse, Interruption
from qtasks.tasks.run.dispatcher import Dispatcher, log
from qtasks.tasks.run.run import Run
from qtasks.tasks.web.applications import ENDPOINTS, ROUTE_NAME, lifespan_scope, place_of, serving
from qtasks.tasks.web.gateway import DELIVERY_KEY, NO_DELIVERY_KEY, OUTERMOST_KEY, Gateway, answer

MAX_REQUEST = 4 * 1024 * 1024
"""The largest delivery in bytes. A call has 1 MiB at most; a callback that contains a response is larger."""

BODY_TIMEOUT_S = 60.0
"""Limit for a whole delivery to arrive, seconds: brokers are servers, and their deliveries are small."""
_BUDGET = BufferBudget(64 * 1024 * 1024)
"""What all deliveries that are arriving may hold together, in this process."""
_BUSY = (INTERRUPTED_HEADER, Interruption.BUSY.value)
_CLOSE = ("Connection", "close")

BARE_PREFIX = "/qtasks"
"""Where an application that contains only the tasks serves them."""

NOT_RUN = (
    "the tasks are served at %s by an application or router that is mounted in another one, and the lifespan of their "
    "router has not run: Starlette does not run it. Tasks run on an event loop of their own, without the state of a "
    "lifespan. Include the router in the outermost application, or run its lifespan there: "
    "async with api.router.lifespan_context(api)"
)
SEVERAL_SERVE = (
    "%d applications serve the tasks, and the lifespan of none of them has started: tasks run without any of them. "
    "Start one, or keep only one"
)

NOT_CONFIGURED_AFTER_MS = 10_000
_CALL_KEY = "qtasks.call"
_NUMBERS = itertools.count(1)


class TaskEndpoint:
    """The ASGI application behind ``POST {prefix}/{task}``.

    `dispatcher` opens what answers deliveries. `owner` is the application object that `owner_of` returns.
    """

    def __init__(self, dispatcher: Callable[[], Awaitable[Dispatcher]], owner: object) -> None:
        self._dispatcher = dispatcher
        self._log = CountedLog(log)
        self.owner = owner
        self._routes = _DependencyRoutes()
        self.route_name = f"{ROUTE_NAME}-{next(_NUMBERS)}"
        """The name of a second route to the endpoint: an application that knows it serves this endpoint."""
        ENDPOINTS[self.route_name] = self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if (delivery := scope.get(DELIVERY_KEY)) is not None:
            delivery.reached = True
        try:
            response = await self._answer(scope, receive)
        except BodyCut:
            return
        except asyncio.CancelledError as error:
            if not _ends_with_the_server(error):
                raise
            response = DispatchResponse.draining()
        await answer(send, response)

    async def _answer(self, scope: Scope, receive: Receive) -> DispatchResponse:
        if scope["method"] != "POST":
            return DispatchResponse.refusal(405, "tasks are delivered with POST, by a QStash broker", ("Allow", "POST"))
        if (reason := scope.get(NO_DELIVERY_KEY)) is not None:
            return DispatchResponse.refusal(421, reason)
        headers = _DeliveryHeaders(scope["headers"])
        if headers.encoding not in ("", "identity"):
            return DispatchResponse.refusal(415, "the body has a Content-Encoding; the signature is over plain bytes")
        try:
            dispatcher = await self._dispatcher()
        except QTasksError as error:
            kind, fields = "requests without a configured dispatcher", {"action": "not_configured"}
            self._log.write(logging.ERROR, kind, "%s %s", error.code, error, extra=fields)
            return DispatchResponse.later(
                "the dispatcher is not configured", error.code, after_ms=NOT_CONFIGURED_AFTER_MS
            )
        if headers.is_of_page and dispatcher.has_public_keys:
            # Every page could sign a delivery with them, and send it after it has rebound its name to this machine.
            return DispatchResponse.refusal(403, "with public signing keys, no web page may deliver: only a broker")
        body = await self._read(headers.length, receive)
        if isinstance(body, DispatchResponse):
            return body
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

    async def _read(self, declared: int, receive: Receive) -> bytes | DispatchResponse:
        """The body, or the response to one that is too large or too slow. Raises BodyCut."""
        try:
            if declared > MAX_REQUEST:
                raise BodyTooLarge
            return await read_body(receive, MAX_REQUEST, budget=_BUDGET, within_s=BODY_TIMEOUT_S)
        except BodyTooLarge:
            return DispatchResponse.refusal(413, f"the body has more than {MAX_REQUEST} bytes")
        except BodyTooSlow:
            return DispatchResponse.refusal(408, f"no complete body within {BODY_TIMEOUT_S:g} s", _CLOSE)
        except NoRoomForBody:
            text = "the dispatcher holds as many large requests as it may: try again"
            return DispatchResponse.refusal(503, text, ("Retry-After", "1"), _BUSY, _CLOSE)


def _ends_with_the_server(cancellation: asyncio.CancelledError) -> bool:
    """True if the server cancels the request because it stops, as uvicorn says in the text of the cancellation.

    Any other code that cancels a request, such as a time limit in a middleware, would do so again at each delivery.
    """
    return any("shutdown" in str(argument) for argument in cancellation.args)


class _DeliveryHeaders:
    """The headers of a request that the dispatcher reads."""

    __slots__ = ("call", "encoding", "is_of_page", "length", "message_id", "retried", "schedule_id", "signature")

    def __init__(self, lines: list[tuple[bytes, bytes]]) -> None:
        self.signature = self.message_id = self.encoding = self.call = ""
        self.schedule_id: str | None = None
        self.retried = self.length = 0
        self.is_of_page = False
        for name, value in lines:
            if name == b"upstash-signature":
                # Of two signatures it would be unclear which one counts. Joined, they are not a valid token.
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
            elif name in (b"origin", b"sec-fetch-site"):  # a browser sends one of them with every POST of a page
                self.is_of_page = True


class _DependentRun:
    """One run inside an `APIRoute`: its input, and its result or its error."""

    __slots__ = ("dispatcher", "error", "run", "value")

    def __init__(self, dispatcher: Dispatcher, run: Run) -> None:
        self.dispatcher = dispatcher
        self.run = run
        self.value: Any = None
        self.error: BaseException | None = None


class _DependencyRoutes:
    """An `APIRoute` for each task with dependencies, for each application that serves it."""

    def __init__(self) -> None:
        self._by_app: weakref.WeakKeyDictionary[Any, dict[str, tuple[BaseTask[..., Any], APIRoute]]] = (
            weakref.WeakKeyDictionary()
        )

    async def call(self, dispatcher: Dispatcher, run: Run, scope: Scope, body: bytes) -> Any:
        """Open the dependencies of a run, run it, close them. Raises what any of the three raised."""
        call = _DependentRun(dispatcher, run)
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
        # An exception handler of the application may have turned the exception into a response.
        if call.error is not None:
            raise call.error
        return call.value

    def _route(self, task: BaseTask[..., Any], app: Any) -> APIRoute:
        routes = self._by_app.setdefault(app, {})
        of_task, route = routes.get(task.name, (None, None))
        if route is None or of_task is not task:  # a task may be defined once more
            route = APIRoute(
                "/{task}",
                _endpoint(task),
                methods=["POST"],
                response_model=None,
                dependencies=[Depends(_record_error)],
                dependency_overrides_provider=weakref.proxy(app),  # the value must not keep its own key alive
                include_in_schema=False,
            )
            routes[task.name] = task, route
        return route


async def _record_error(request: Request) -> AsyncIterator[None]:
    """The first dependency of each task: opened first and closed last, so it sees every error in between."""
    try:
        yield
    except BaseException as error:
        request.scope[_CALL_KEY].error = error
        raise


def _endpoint(task: BaseTask[..., Any]) -> Callable[..., Awaitable[Response]]:
    """A path operation whose only parameters are the task's dependencies."""
    name = "request"
    while name in {parameter.name for parameter in task.parameters.dependencies}:
        name += "_"

    async def endpoint(**dependencies: Any) -> Response:
        call: _DependentRun = dependencies.pop(name).scope[_CALL_KEY]
        call.value = await call.dispatcher.run(call.run, dependencies)
        return Response()

    request = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Request)
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in task.parameters.dependencies]
    endpoint.__signature__ = inspect.Signature([request, *parameters])  # type: ignore[attr-defined]
    endpoint.__name__ = task.name
    return endpoint


class TaskRoutes:
    """The HTTP side of one application object: its router, and FastAPI applications that contain only the tasks.

    `base_url` returns the base URL that is configured for the dispatcher, or None.
    """

    def __init__(
        self,
        dispatcher: Callable[[], Awaitable[Dispatcher]],
        *,
        owner: object,
        lifespan: Lifespan,
        base_url: Callable[[], str | None],
    ) -> None:
        self._endpoint = TaskEndpoint(dispatcher, owner)
        self._lifespan = lifespan
        self._base_url = base_url
        self._is_included = False

    @lazy_property
    def router(self) -> APIRouter:
        """The router to include. It also serves tasks that are declared later."""
        self._is_included = True
        return self._router(self._lifespan)

    def app(self, prefix: str) -> FastAPI:
        """An application that contains only the tasks, under `prefix`."""
        return _app(self.router, prefix)

    @lazy_property
    def bare_app(self) -> FastAPI:
        """For an embedded broker that runs outside an application: there is nothing to start or to refuse."""
        return _app(self._router(None), BARE_PREFIX)

    def starting(self, app: ASGIApp) -> Gateway:
        """The application whose lifespan calls this, as an embedded broker calls it, once the gateway is opened.

        That is the outermost application that serves the tasks, with the state of its lifespan.
        """
        scope = lifespan_scope()
        outermost = None if scope is None else scope.get(OUTERMOST_KEY)
        outer = None if scope is None else scope.get("app")
        state: Mapping[str, Any] = {} if scope is None else scope.get("state", {})
        for each in (outermost, outer, app):
            if each is not None and (place := place_of(each, self._endpoint.route_name)) is not None:
                return self._gateway(each, place.prefix, state=state, is_open=False)
        return self._gateway(self.bare_app, BARE_PREFIX, is_open=False)

    def without_lifespan(self) -> Gateway:
        """What an embedded broker calls that no lifespan has started.

        That is the one application alive in this process that serves the tasks, started or not; without one, an
        application that contains only them.
        """
        apps = serving(self._endpoint.route_name) if self._is_included else []
        if len(apps) != 1:
            if apps:
                log.warning("%s %s", ErrorCode.LIFESPAN_NOT_RUN, SEVERAL_SERVE % len(apps))
            return self.alone()
        place = place_of(apps[0], self._endpoint.route_name)
        assert place is not None
        if place.is_mounted:
            log.warning("%s %s", ErrorCode.LIFESPAN_NOT_RUN, NOT_RUN % place.prefix)
        return self._gateway(apps[0], place.prefix)

    def alone(self) -> Gateway:
        """An application that contains only the tasks, as an embedded broker calls it."""
        return self._gateway(self.bare_app, BARE_PREFIX)

    def prefix_of(self, app: ASGIApp) -> str | None:
        """The path under which `app` serves these tasks; None if it does not."""
        return None if (place := place_of(app, self._endpoint.route_name)) is None else place.prefix

    def _gateway(
        self, app: ASGIApp, prefix: str, *, state: Mapping[str, Any] | None = None, is_open: bool = True
    ) -> Gateway:
        return Gateway(app, prefix, reports=self._endpoint, state=state, base_url=self._base_url(), is_open=is_open)

    def _router(self, lifespan: Lifespan | None) -> APIRouter:
        names = (ROUTE_NAME, self._endpoint.route_name)
        routes: list[BaseRoute] = [
            Route("/{task}", self._endpoint, name=name, include_in_schema=False) for name in names
        ]
        return APIRouter(routes=routes, lifespan=lifespan)


def _app(router: APIRouter, prefix: str) -> FastAPI:
    app = FastAPI(title="qtasks", openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(router, prefix=prefix)
    return app


def _text(value: bytes) -> str:
    return value.decode("latin-1")


def _number(value: bytes) -> int:
    """The number in a header; 0 if it is not a number."""
    return int(value) if value.isdigit() and len(value) <= 18 else 0
