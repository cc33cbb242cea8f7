"""The console before a QStash service that another process, or another thread, runs.

Who may come here is decided elsewhere: by the dependency of an application's router, or by a loopback address. The
token of the service stays in this process. What a page may do is guarded as at the broker itself: only pages of this
origin, and no change without the text that the page got with its session.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from importlib.metadata import version
from typing import Any, Final, Protocol
from urllib.parse import quote

from qtasks.broker.api import routes
from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, error_response, json_response
from qtasks.broker.api.auth import TokenScope
from qtasks.broker.console import same_origin, static_files
from qtasks.broker.console.access import USER_HEADER
from qtasks.broker.console.console import API_PREFIX, with_security
from qtasks.broker.console.sessions import secret
from qtasks.broker.core.operator_changes import UNKNOWN
from qtasks.console.hosted_calls import AskCall
from qtasks.console.hosted_views import HostedViews
from qtasks.console.passed_service import PassedService
from qtasks.randomness import SystemRandom

OPERATOR: Final = "operator"
VIEWER: Final = "viewer"

LOOK_S: Final = 1.0
"""How often a quiet stream looks whether its server stops, seconds."""

OpenService = Callable[[], Awaitable[PassedService]]
"""Makes the connection on first use. Raises HttpError 503 with the reason if there is none."""


class Views(Protocol):
    """Answers the views of one service."""

    async def session(self) -> dict[str, Any]:
        """The members of ``GET session`` that depend on the service: role, account, version, service."""
        ...

    async def answer(self, request: ApiRequest, path: str) -> ApiResponse:
        """The response to a request at `path`, which is relative to ``console/api/`` and has the query."""
        ...


class BrokerViews:
    """The views of a broker of ours: it answers them itself."""

    def __init__(self, service: PassedService, session: dict[str, Any], kind: str) -> None:
        self._service = service
        self._session = session
        self._kind = kind

    async def session(self) -> dict[str, Any]:
        """See `Views.session`."""
        now = await self._service.ask("GET", f"{API_PREFIX}session")
        lacks = [*now["service"]["lacks"], *([] if self._service.can_stream else ["events"])]
        shown = None if self._kind == "broker" else self._service.url
        return {
            **{name: self._session.get(name) for name in ("role", "account", "version")},
            "service": {"kind": self._kind, "url": shown, "lacks": lacks},
        }

    async def answer(self, request: ApiRequest, path: str) -> ApiResponse:
        """See `Views.answer`."""
        if path.partition("?")[0] == "events":
            return await self._service.stream(API_PREFIX + path)
        user = "" if request.actor is UNKNOWN else request.actor.name
        return await self._service.pass_on(request, API_PREFIX + path, (USER_HEADER, quote(user)))


class ConsoleSite:
    """Serves the page and its JSON. `read_only`: it changes nothing, although the token could.

    `is_over` is true once the server stops, which waits for its responses: streams then end. `ask_call` answers what
    the application in this process knows of its calls, for a service that cannot ask its dispatcher.
    """

    def __init__(
        self,
        open_service: OpenService,
        *,
        read_only: bool = False,
        is_own: bool = False,
        is_over: Callable[[], bool] = lambda: False,
        ask_call: AskCall | None = None,
    ) -> None:
        self._open_service = open_service
        self._read_only = read_only
        self._is_own = is_own
        self._is_over = is_over
        self._ask_call = ask_call
        self._csrf = secret(SystemRandom())
        self._service: PassedService | None = None
        self._views: Views | None = None
        self._ending = asyncio.Event()

    def end_streams(self) -> None:
        """End the streams of events: the server stops. Idempotent."""
        self._ending.set()

    async def handle(self, request: ApiRequest) -> ApiResponse:
        """The response to a request for the page, one of its files, or a view."""
        try:
            if request.path.startswith(API_PREFIX):
                return with_security(await self._answered(request))
            return with_security(static_files.respond(request))
        except HttpError as error:
            return with_security(error_response(error))

    async def close(self) -> None:
        """Close the connections to the service."""
        service, self._service, self._views = self._service, None, None
        if service is not None:
            await service.close()

    async def _answered(self, request: ApiRequest) -> ApiResponse:
        same_origin.check_origin(request)
        same_origin.check_csrf(request, self._csrf)
        path = request.path.removeprefix(API_PREFIX)
        is_safe = request.method in same_origin.SAFE_METHODS
        views = await self._opened_views()
        if path == "session":
            if not is_safe:
                raise HttpError(404, "there is no sign-in here")
            return json_response(await self._session(views))
        if self._read_only and not (is_safe and _only_reads(request, path)):
            raise HttpError(403, "this console is for looking only")
        if ".." in path.split("/"):
            raise HttpError(404, f"the console has no view {path[:200]}")
        response = await views.answer(request, f"{path}?{request.query}" if request.query else path)
        return response if response.stream is None else response._replace(stream=self._until_end(response.stream))

    async def _until_end(self, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The pieces of a stream; it ends with the server, which waits for its responses."""
        ending = asyncio.ensure_future(self._ending.wait())
        following: asyncio.Future[bytes] | None = None
        try:
            while not self._is_over():
                following = following or asyncio.ensure_future(_next(stream))
                waiting: set[asyncio.Future[Any]] = {ending, following}
                await asyncio.wait(waiting, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                if ending.done():
                    return
                if following.done():
                    if not (piece := following.result()):
                        return
                    following = None
                    yield piece
        finally:
            ending.cancel()
            if following is not None and not following.done():
                following.cancel()
                await asyncio.wait({following})
            if isinstance(stream, AsyncGenerator):
                await stream.aclose()

    async def _session(self, views: Views) -> dict[str, Any]:
        session = await views.session()
        if self._read_only and session.get("role") == OPERATOR:
            session["role"] = VIEWER
        return {"signedIn": True, "canSignOut": False, **session, "csrf": self._csrf}

    async def _opened_views(self) -> Views:
        """The views of the service; which kind it is shows its answer to the first request."""
        if self._views is None:
            service = self._service = self._service or await self._open_service()
            try:
                session = await service.ask("GET", f"{API_PREFIX}session")
            except HttpError as error:
                if error.status not in (400, 401, 403, 404, 405):
                    raise
                session = None
            if isinstance(session, dict) and "signedIn" in session:
                self._views = BrokerViews(service, session, "broker" if self._is_own else "remote-broker")
            else:
                await service.ask("GET", "/v2/queues")  # the token is right, and this is the API of QStash
                self._views = HostedViews(service, version("qstash-tasks"), self._ask_call)
        return self._views


async def _next(stream: AsyncIterator[bytes]) -> bytes:
    """The next piece; empty at the end."""
    return await anext(stream, b"")


def _only_reads(request: ApiRequest, path: str) -> bool:
    """True for a view, and for what a token that only reads may ask the API: not for keys, which start tasks."""
    if not path.lower().startswith("v2/"):
        return True
    route, _ = routes.find(request._replace(path=f"/{path}"))
    return route.scope <= TokenScope.READ
