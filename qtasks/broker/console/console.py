"""The console as a web server: the page, the sign-in, and the views below ``console/api/`` (docs/console.md)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Final

from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, Query, json_response
from qtasks.broker.api.auth import Tokens
from qtasks.broker.api.routes import Api
from qtasks.broker.console import same_origin, static_files, view_table
from qtasks.broker.console.access import Access, Visitor
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.console.live_events import LiveEvents
from qtasks.broker.console.views import metrics
from qtasks.broker.loops.indexer import Indexer
from qtasks.broker.store.verbs.insight import model_calls
from qtasks.protocol.messages import Headers

API_PREFIX: Final = "/console/api/"
METRICS_PATH: Final = "/metrics"
_NOT_STORED: Final = ("Cache-Control", "no-store")
_SIGN_IN: Final = "sign in with a token of this broker"


class Console:
    """The console of one broker.

    `open_to`: the viewer that everyone is who brings no token, for a broker that only its developer can reach.
    """

    def __init__(self, context: ConsoleContext, api: Api, tokens: Tokens, *, open_to: Viewer | None = None) -> None:
        self._api = api
        self._context = context
        self._access = Access(tokens, context.clock, context.api.random, open_to)
        self._events = LiveEvents(self._context)

    def close(self) -> None:
        """End the streams of events: the server stops. Idempotent."""
        self._events.close()

    async def handle(self, request: ApiRequest) -> ApiResponse:
        """The response to a request whose path `is_console_path` accepts."""
        work: Callable[[ApiRequest], Awaitable[ApiResponse]] = (
            self._answered if request.path.startswith(API_PREFIX) else _file
        )
        if request.path == METRICS_PATH:
            work = self._metrics
        return with_security(await self._api.guarded(request, work))

    async def _answered(self, request: ApiRequest) -> ApiResponse:
        same_origin.check_origin(request)
        path = request.path.removeprefix(API_PREFIX)
        if path == "session" and request.method == "POST":
            return await self._session(*await self._access.sign_in(request))
        visitor = await self._access.visitor(request)
        if path == "session" and request.method in same_origin.SAFE_METHODS:
            return json_response({"signedIn": False}) if visitor is None else await self._session(visitor)
        if visitor is None:
            raise HttpError(401, _SIGN_IN)
        if visitor.csrf is not None:
            same_origin.check_csrf(request, visitor.csrf)
        return await self._view(request, path, visitor)

    async def _metrics(self, request: ApiRequest) -> ApiResponse:
        """`GET /metrics`, with a token of any role; without one where the console needs none."""
        same_origin.check_origin(request)
        if request.method not in same_origin.SAFE_METHODS:
            raise HttpError(405, f"{request.method} is not allowed here", (("Allow", "GET, HEAD"),))
        visitor = await self._access.visitor(request)
        if visitor is None:
            raise HttpError(401, "send a token of this broker, of any role, as Authorization: Bearer")
        return await metrics.show(self._context, visitor.viewer, request)

    async def _view(self, request: ApiRequest, path: str, visitor: Visitor) -> ApiResponse:
        if path == "session":
            if request.method != "DELETE":
                raise HttpError(405, f"{request.method} is not allowed here", (("Allow", "GET, POST, DELETE"),))
            return json_response({}, headers=self._access.sign_out(request))
        if path == "events":
            if request.method != "GET":
                raise HttpError(405, f"{request.method} is not allowed here", (("Allow", "GET"),))
            with_reports = Query(request.query).flag("reports")
            return self._events.open(visitor.viewer, lambda: self._access.is_valid(visitor), with_reports=with_reports)
        if path.startswith("v2/"):
            passed = request._replace(path=f"/{path}")
            return await self._api.handle_as(visitor.principal, passed)
        view, arguments = view_table.find(request, path)
        view_table.check_right(view, visitor.viewer)
        request = request._replace(actor=visitor.viewer.actor)
        return await view.handler(self._context, visitor.viewer, request, *arguments)

    async def _session(self, visitor: Visitor, headers: Headers = ()) -> ApiResponse:
        """What `GET session` says of a visitor who has signed in, or need not."""
        await Indexer(self._context.store, self._context.clock).catch_up()
        asks_models = await self._context.store.read(model_calls.has_any, visitor.viewer.account)
        names = {account: name for name, account in self._context.accounts.items()}
        return json_response(
            {
                "signedIn": True,
                "canSignOut": visitor.session_id is not None,
                "role": visitor.viewer.role,
                "account": names.get(visitor.viewer.account, ""),
                "csrf": visitor.csrf,
                "version": version("qstash-tasks"),
                "service": {"kind": "broker", "url": None, "lacks": [] if asks_models else ["llm"]},
            },
            headers=headers,
        )


def is_console_path(path: bytes) -> bool:
    """True for the paths that the console answers."""
    return path in (b"/", METRICS_PATH.encode()) or path.startswith(b"/console/")


async def _file(request: ApiRequest) -> ApiResponse:
    return static_files.respond(request)


def with_security(response: ApiResponse) -> ApiResponse:
    """The response with the headers that protect the page. Only files of the page say that they may be stored."""
    own = {name.lower() for name, _ in response.headers}
    extra = (*same_origin.SECURITY_HEADERS, _NOT_STORED)
    return response._replace(headers=(*response.headers, *(line for line in extra if line[0].lower() not in own)))
