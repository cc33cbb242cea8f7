"""The console inside a FastAPI application, behind a dependency of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError
from qtasks.broker.core.operator_changes import CONSOLE, Actor
from qtasks.console.passed_service import PassedService
from qtasks.console.site import ConsoleSite
from qtasks.errors import QTasksError
from qtasks.request_body import BodyCut, BodyTooLarge, BufferBudget, NoRoomForBody, read_body
from qtasks.tasks.app import QTasks
from qtasks.tasks.web.described_calls import report_call
from qtasks.tasks.web.results_router import serving_uvicorn

_BUDGET: Final = BufferBudget(16 * 1024 * 1024)
"""Bytes of bodies that the consoles of this process hold together."""
_APPLICATION: Final = "the application"
METHODS: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]


def console_router(
    tasks: QTasks, *, read_only: bool = False, user: Callable[[Request], str | None] = lambda _request: None
) -> APIRouter:
    """The console of the broker that `tasks` uses, to include in a FastAPI application.

        app.include_router(console_router(tasks), prefix="/jobs", dependencies=[Depends(admin)])

    Everyone whom the dependencies of the application let through sees all messages and may act on them; with
    `read_only` they only look. Without a dependency this is everyone, so the application must have one. The token of
    the broker stays in this process. `user` tells who sends a request, for the audit: such as what the dependency has
    kept in ``request.state``.
    """

    async def open_service() -> PassedService:
        try:
            publisher = await tasks.runtime.apublisher()
        except QTasksError as error:
            raise HttpError(503, error.message) from None
        return PassedService(*publisher.access())

    def is_over() -> bool:
        return getattr(serving_uvicorn(), "should_exit", False) is True

    async def ask_call(question: bytes) -> bytes:
        try:
            results = await asyncio.to_thread(tasks.runtime.results_or_none)
            return await report_call(question, results, tasks.runtime.tasks)
        except QTasksError as error:
            raise HttpError(503, error.message) from None

    site = ConsoleSite(
        open_service, read_only=read_only, is_own=tasks.runtime.is_embedded, is_over=is_over, ask_call=ask_call
    )

    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        try:
            yield
        finally:
            if not tasks.runtime.is_embedded:
                await site.close()

    router = APIRouter(lifespan=lifespan)

    async def page(request: Request) -> Response:
        return _response(await site.handle(_api_request(request, "/")))

    async def below(request: Request, rest: str) -> Response:
        # `rest` is decoded; the raw path is needed, because an id may contain an encoded slash.
        before = str(request.scope["path"]).removesuffix(rest).count("/")
        raw = request.scope["raw_path"].decode("latin-1").partition("?")[0].split("/", before)[before]
        actor = Actor(user(request) or _APPLICATION, CONSOLE)
        return _response(await site.handle(_api_request(request, f"/console/{raw}")._replace(actor=actor)))

    router.add_api_route("/", page, methods=["GET", "HEAD"], include_in_schema=False)
    router.add_api_route("/console/{rest:path}", below, methods=METHODS, include_in_schema=False)
    return router


def _api_request(request: Request, path: str) -> ApiRequest:
    async def body(limit: int) -> bytes:
        try:
            return await read_body(request.receive, limit, budget=_BUDGET)
        except BodyTooLarge:
            raise HttpError(413, f"message too large: more than {limit} bytes") from None
        except NoRoomForBody:
            raise HttpError(503, "too many large requests arrive at once: try again", (("Retry-After", "1"),)) from None
        except BodyCut:
            raise HttpError(400, "the client disconnected before the body was complete") from None

    lines = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.scope["headers"])
    client_ip = request.client.host if request.client is not None else ""
    return ApiRequest(request.method, path, request.scope["query_string"].decode("latin-1"), lines, client_ip, body)


def _response(response: ApiResponse) -> Response:
    headers = {name: value for name, value in response.headers if name.lower() != "set-cookie"}
    if response.stream is not None:
        return StreamingResponse(response.stream, response.status, headers)
    return Response(response.body, response.status, headers)
