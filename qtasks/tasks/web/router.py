"""The dispatcher as a route of a FastAPI application.

One plain ASGI route takes every delivery, because FastAPI's own request parsing costs as much as everything else
together. A task with `Depends` gets an `APIRoute` of its own on first use. It is called after the signature is
verified, so no code of the application runs for an unverified request. Its dependencies are closed before the broker is
answered.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute, Route

from qtasks.counted_log import CountedLog
from qtasks.error_codes import ErrorCode
from qtasks.errors import QTasksError, ResultError
from qtasks.lazy import lazy_property
from qtasks.protocol import bundles, dispatcher_questions
from qtasks.protocol.headers import INTERRUPTED_HEADER
from qtasks.request_body import BodyCut, BodyTooLarge, BodyTooSlow, BufferBudget, NoRoomForBody, read_body
from qtasks.tasks.ports import ASGIApp, Lifespan, Receive, Scope, Send
from qtasks.tasks.run.attempt import Delivery
from qtasks.tasks.run.decision import DispatchResponse, Interruption
from qtasks.tasks.run.dispatcher import Dispatcher, log
from qtasks.tasks.run.run import Run
from qtasks.tasks.web.applications import ENDPOINTS, ROUTE_NAME, lifespan_scope, place_of, serving
from qtasks.tasks.web.bundle_run import BundleRun, ends_with_the_server
from qtasks.tasks.web.delivery_headers import of_request
from qtasks.tasks.web.dependency_routes import DependencyRoutes
from qtasks.tasks.web.described_calls import report_call
from qtasks.tasks.web.described_source import source_report
from qtasks.tasks.web.described_tasks import manifest_of
from qtasks.tasks.web.gateway import DELIVERY_KEY, NO_DELIVERY_KEY, OUTERMOST_KEY, Gateway, answer
from qtasks.tasks.web.passage import in_front, is_direct, layers_of_the_user

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

NO_BUNDLES = "something of the application stands in front of the tasks, and must see each delivery: send them singly"

NOT_CONFIGURED_AFTER_MS = 10_000
RESULTS_AFTER_MS = 5_000
_QUESTIONS = (dispatcher_questions.MANIFEST, dispatcher_questions.CALL, dispatcher_questions.SOURCE)
_OF_BROKER = (bundles.NAME, *_QUESTIONS)
"""Names to which the broker sends requests of its own. No message may be published to them."""
_NUMBERS = itertools.count(1)


class TaskEndpoint:
    """The ASGI application behind ``POST {prefix}/{task}``.

    `dispatcher` opens what answers deliveries. `owner` is the application object that `owner_of` returns.
    """

    def __init__(self, dispatcher: Callable[[], Awaitable[Dispatcher]], owner: object) -> None:
        self._dispatcher = dispatcher
        self._log = CountedLog(log)
        self.owner = owner
        self._routes = DependencyRoutes()
        self._takers: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
        """Which applications take bundles."""
        self._is_explained = False
        self._described: tuple[tuple[str, ...], bytes] | None = None
        """The manifest, and the names of the tasks that it describes."""
        self.route_name = f"{ROUTE_NAME}-{next(_NUMBERS)}"
        """The name of a second route to the endpoint: an application that knows it serves this endpoint."""
        ENDPOINTS[self.route_name] = self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if (delivery := scope.get(DELIVERY_KEY)) is not None:
            delivery.reached = True
        try:
            response = await self._answer(scope, receive)
            if isinstance(response, BundleRun):
                await response.stream(send)
                return
        except BodyCut:
            return
        except asyncio.CancelledError as error:
            if not ends_with_the_server(error):
                raise
            response = DispatchResponse.draining()
        await answer(send, response)

    async def _answer(self, scope: Scope, receive: Receive) -> DispatchResponse | BundleRun:
        if scope["method"] != "POST":
            return DispatchResponse.refusal(405, "tasks are delivered with POST, by a QStash broker", ("Allow", "POST"))
        if (reason := scope.get(NO_DELIVERY_KEY)) is not None:
            return DispatchResponse.refusal(421, reason)
        try:
            dispatcher = await self._dispatcher()
        except QTasksError as error:
            kind, fields = "requests without a configured dispatcher", {"action": "not_configured"}
            self._log.write(logging.ERROR, kind, "%s %s", error.code, error, extra=fields)
            return DispatchResponse.later(
                "the dispatcher is not configured", error.code, after_ms=NOT_CONFIGURED_AFTER_MS
            )
        headers = of_request(scope["headers"])
        task: str = scope["path_params"]["task"]
        refusal = headers.refusal(has_public_keys=dispatcher.has_public_keys, is_of_broker=task in _OF_BROKER)
        if refusal is not None:
            return refusal
        is_bundle = task == bundles.NAME
        body = await self._read(headers.length, receive, bundles.MAX_BYTES if is_bundle else MAX_REQUEST)
        if isinstance(body, DispatchResponse):
            return body
        if is_bundle:
            return self._bundle(dispatcher, headers.signature, body, scope)
        if task in _QUESTIONS:
            return await self._report(task, dispatcher, headers.signature, body)
        delivery = Delivery(
            task=task,
            body=body,
            signature=headers.signature,
            message_id=headers.message_id,
            retried=headers.retried,
            schedule_id=headers.schedule_id,
            query=scope["query_string"].decode("latin-1"),
            call=headers.call,
        )

        async def with_dependencies(run: Run) -> Any:
            return await self._routes.call(dispatcher, run, scope, body)

        response = await dispatcher.answer(delivery, with_dependencies)
        if response.status == 401 or not self._takes_bundles(scope):
            return response
        return response.with_header(bundles.SLOTS_HEADER, str(dispatcher.free_slots))

    def _bundle(
        self, dispatcher: Dispatcher, signature: str, body: bytes, scope: Scope
    ) -> DispatchResponse | BundleRun:
        """The deliveries of a bundle, or the response to one of which nothing runs."""
        if isinstance(claims := dispatcher.open_bundle(signature, body), DispatchResponse):
            return claims
        if not (self._takes_bundles(scope) and is_direct()):
            return DispatchResponse.refusal(421, NO_BUNDLES)
        try:
            items = bundles.read_items(body)
        except ValueError as error:
            return DispatchResponse.refusal(400, f"the body is not a bundle: {error}")
        return BundleRun(items, claims, dispatcher=dispatcher, scope=scope, routes=self._routes)

    async def _report(self, name: str, dispatcher: Dispatcher, signature: str, body: bytes) -> DispatchResponse:
        """The answer to a question of the broker's console."""
        if isinstance(claims := dispatcher.verified(name, signature, body), DispatchResponse):
            return claims
        if name == dispatcher_questions.CALL:
            return await _call(dispatcher, body)
        if name == dispatcher_questions.SOURCE:
            return await _source(body)
        return await self._manifest(dispatcher)

    async def _manifest(self, dispatcher: Dispatcher) -> DispatchResponse:
        """The manifest of the tasks; made once, and again when tasks were added."""
        names = tuple(dispatcher.tasks)
        if self._described is None or self._described[0] != names:
            text = await asyncio.to_thread(manifest_of, dispatcher.tasks, dispatcher.base_url)
            self._described = names, text
        return DispatchResponse.of_result(self._described[1])

    def _takes_bundles(self, scope: Scope) -> bool:
        """True if nothing of the user's stands between the server and the tasks, as far as it is known."""
        if (app := scope.get("app")) is None:
            return False
        if (takes := self._takers.get(app)) is None:
            names = in_front(app)
            takes = self._takers[app] = not names
            self.explain(names)
        return takes

    def explain(self, names: Sequence[str]) -> None:
        """Say once why deliveries do not come in bundles: because of what these names stand for, if there are any."""
        if names and not self._is_explained:
            self._is_explained = True
            verb = "stands" if len(names) == 1 else "stand"
            log.info("deliveries arrive one by one, because %s %s in front of the tasks", ", ".join(names), verb)

    async def _read(self, declared: int, receive: Receive, limit: int) -> bytes | DispatchResponse:
        """The body, or the response to one that is too large or too slow. Raises BodyCut."""
        try:
            if declared > limit:
                raise BodyTooLarge
            return await read_body(receive, limit, budget=_BUDGET, within_s=BODY_TIMEOUT_S)
        except BodyTooLarge:
            return DispatchResponse.refusal(413, f"the body has more than {limit} bytes")
        except BodyTooSlow:
            return DispatchResponse.refusal(408, f"no complete body within {BODY_TIMEOUT_S:g} s", _CLOSE)
        except NoRoomForBody:
            text = "the dispatcher holds as many large requests as it may: try again"
            return DispatchResponse.refusal(503, text, ("Retry-After", "1"), _BUSY, _CLOSE)


async def _call(dispatcher: Dispatcher, body: bytes) -> DispatchResponse:
    """What is known of a call, once the question is verified."""
    try:
        return DispatchResponse.of_result(await report_call(body, dispatcher.results, dispatcher.tasks))
    except ValueError as error:
        return DispatchResponse.refusal(400, f"the body is not a question about a call: {error}")
    except ResultError as error:
        return DispatchResponse.later("the results cannot be read", error.code, after_ms=RESULTS_AFTER_MS)


async def _source(body: bytes) -> DispatchResponse:
    """The code around places where exceptions were raised, once the question is verified."""
    try:
        return DispatchResponse.of_result(await asyncio.to_thread(source_report, body))
    except ValueError as error:
        return DispatchResponse.refusal(400, f"the body is not a question about places: {error}")


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
                self._endpoint.explain(layers_of_the_user(each))
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
