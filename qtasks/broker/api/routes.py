"""The route table, and the steps of each request: authenticate, find the route, check the scope, call the handler."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from qtasks.broker.api import (
    chat,
    dead_letters,
    flow_control,
    messages,
    publish,
    queues,
    schedules,
    url_groups,
    workflows,
)
from qtasks.broker.api.api_context import ApiContext
from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, decoded_segment, error_response
from qtasks.broker.api.auth import Principal, Tokens, TokenScope
from qtasks.broker.api.validation import split_target
from qtasks.errors import StoreError, StoreFull

Handler = Callable[..., Awaitable[ApiResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint. In `path`, ``{}`` matches one segment; a final ``*`` matches the raw rest with the query."""

    method: str
    path: tuple[str, ...]
    scope: TokenScope
    handler: Handler


def _route(method: str, path: str, scope: TokenScope, handler: Handler) -> Route:
    return Route(method, tuple(path.strip("/").split("/")), scope, handler)


_READ, _PUBLISH = TokenScope.READ, TokenScope.PUBLISH

ROUTES: Final = (
    _route("POST", "/v2/publish/*", _PUBLISH, publish.publish),
    _route("POST", "/v2/enqueue/{}/*", _PUBLISH, publish.enqueue),
    _route("POST", "/v2/batch", _PUBLISH, publish.batch),
    _route("GET", "/v2/messages/{}", _READ, messages.get_message),
    _route("DELETE", "/v2/messages/{}", _PUBLISH, messages.cancel_message),
    _route("DELETE", "/v2/messages", _PUBLISH, messages.cancel_messages),
    _route("GET", "/v2/events", _READ, messages.list_log),
    _route("GET", "/v2/logs", _READ, messages.list_log),
    _route("GET", "/v2/dlq", _READ, dead_letters.list_dead_letters),
    _route("GET", "/v2/dlq/{}", _READ, dead_letters.get_dead_letter),
    _route("DELETE", "/v2/dlq", _PUBLISH, dead_letters.delete_dead_letters),
    _route("DELETE", "/v2/dlq/{}", _PUBLISH, dead_letters.delete_dead_letter),
    _route("POST", "/v2/dlq/retry", _PUBLISH, dead_letters.retry_dead_letters),
    _route("POST", "/v2/dlq/retry/{}", _PUBLISH, dead_letters.retry_dead_letter),
    _route("POST", "/v2/queues", _PUBLISH, queues.upsert_queue),
    _route("GET", "/v2/queues", _READ, queues.list_queues),
    _route("GET", "/v2/queues/{}", _READ, queues.get_queue),
    _route("DELETE", "/v2/queues/{}", _PUBLISH, queues.delete_queue),
    _route("POST", "/v2/queues/{}/pause", _PUBLISH, queues.pause_queue),
    _route("POST", "/v2/queues/{}/resume", _PUBLISH, queues.resume_queue),
    _route("GET", "/v2/topics", _READ, url_groups.list_groups),
    _route("GET", "/v2/topics/{}", _READ, url_groups.get_group),
    _route("DELETE", "/v2/topics/{}", _PUBLISH, url_groups.delete_group),
    _route("PATCH", "/v2/topics/{}", _PUBLISH, url_groups.set_headers),
    _route("POST", "/v2/topics/{}/endpoints", _PUBLISH, url_groups.upsert_endpoints),
    _route("DELETE", "/v2/topics/{}/endpoints", _PUBLISH, url_groups.remove_endpoints),
    *(
        _route(method, f"/v2/schedules/{{}}/{verb}", _PUBLISH, handler)
        for method in ("PATCH", "POST")
        for verb, handler in (("pause", schedules.pause_schedule), ("resume", schedules.resume_schedule))
    ),
    _route("POST", "/v2/schedules/*", _PUBLISH, schedules.create_schedule),
    _route("GET", "/v2/schedules", _READ, schedules.list_schedules),
    _route("GET", "/v2/schedules/{}", _READ, schedules.get_schedule),
    _route("DELETE", "/v2/schedules/{}", _PUBLISH, schedules.delete_schedule),
    _route("GET", "/v2/flowcontrol", _READ, flow_control.list_keys),
    _route("GET", "/v2/flowcontrol/{}", _READ, flow_control.get_key),
    _route("POST", "/v2/flowcontrol/{}/pause", _PUBLISH, flow_control.pause_key),
    _route("POST", "/v2/flowcontrol/{}/resume", _PUBLISH, flow_control.resume_key),
    _route("POST", "/v2/flowcontrol/{}/pin", _PUBLISH, flow_control.pin_key),
    _route("POST", "/v2/flowcontrol/{}/unpin", _PUBLISH, flow_control.unpin_key),
    _route("POST", "/v2/flowcontrol/{}/resetrate", _PUBLISH, flow_control.reset_rate),
    _route("POST", "/v2/flowcontrol/{}/reset", _PUBLISH, flow_control.reset_rate),
    _route("GET", "/v2/globalparallelism", _READ, flow_control.global_parallelism),
    _route("GET", "/v2/keys", _PUBLISH, messages.get_keys),
    _route("POST", "/v2/keys/rotate", _PUBLISH, messages.rotate_keys),
    _route("POST", "/v2/rotate", _PUBLISH, messages.rotate_keys),
    _route("POST", "/llm/v1/chat/completions", _PUBLISH, chat.complete),
    _route("POST", "/v2/trigger/*", _PUBLISH, workflows.refuse),
    _route("POST", "/v2/batch/trigger", _PUBLISH, workflows.refuse),
    _route("POST", "/v2/wait/*", _PUBLISH, workflows.refuse),
    _route("POST", "/v2/notify/*", _PUBLISH, workflows.refuse),
    _route("GET", "/v2/waiters/*", _READ, workflows.refuse),
    _route("GET", "/v2/workflows/*", _READ, workflows.refuse),
    _route("POST", "/v2/workflows/*", _PUBLISH, workflows.refuse),
    _route("DELETE", "/v2/workflows/*", _PUBLISH, workflows.refuse),
)

BY_QUERY: Final = (publish.publish, publish.enqueue)
"""The handlers of requests whose token may be in the query."""

_TOO_NARROW: Final = {
    TokenScope.METADATA: "this token opens the console and /metrics only",
    TokenScope.READ: "this token may read only",
}
"""Why a token may not do what was requested, by its scope."""


class Api:
    """Answers requests. No request makes it raise."""

    def __init__(self, context: ApiContext, tokens: Tokens) -> None:
        self._context = context
        self._tokens = tokens
        self._log = context.log

    async def handle(self, request: ApiRequest) -> ApiResponse:
        """The response to one request, which brings its token."""
        return await self.guarded(request, self._authenticated)

    async def handle_as(self, principal: Principal, request: ApiRequest) -> ApiResponse:
        """The response to a request of `principal`, who was authenticated by other means than a token."""
        return await self.guarded(request, lambda request: self._answered(principal, request))

    async def _authenticated(self, request: ApiRequest) -> ApiResponse:
        return await self._answered(await self._tokens.authenticate(request), request)

    async def _answered(self, principal: Principal, request: ApiRequest) -> ApiResponse:
        route, arguments = find(request)
        if principal.scope < route.scope:
            raise HttpError(403, _TOO_NARROW[principal.scope])
        if principal.is_by_query and not _is_publish(route, request, arguments):
            raise HttpError(
                403, "qstash_token in the query opens publishing only: send the token as Authorization: Bearer"
            )
        if route.scope is _PUBLISH:
            request = request._replace(actor=principal.actor)
        return await route.handler(self._context, principal.account, request, *arguments)

    async def guarded(self, request: ApiRequest, work: Callable[[ApiRequest], Awaitable[ApiResponse]]) -> ApiResponse:
        """What `work` responds to `request`; each exception becomes the response that says what happened."""
        try:
            if not (request.path.isascii() and request.query.isascii()):
                raise HttpError(400, "the request target is not ASCII: percent-encode it")
            return await work(request)
        except HttpError as error:
            self._log_refusal(request, error)
            return _error_response(request, error)
        except StoreFull as error:
            return _error_response(request, HttpError(507, error.message, (("Retry-After", "5"),)))
        except StoreError as error:
            self._log.write(
                logging.ERROR,
                "requests that the store could not serve",
                "%s %s: %s",
                request.method,
                request.path[:40],
                error,
            )
            return _error_response(request, HttpError(503, error.message, (("Retry-After", "1"),)))
        except Exception as error:
            kind = f"requests that ended in {type(error).__name__}"
            self._log.write(logging.ERROR, kind, "%s %s failed", request.method, request.path[:40], with_traceback=True)
            return _error_response(request, HttpError(500, "the broker failed on this request; its log says why"))

    def _log_refusal(self, request: ApiRequest, error: HttpError) -> None:
        """Log, or count, what an operator may have to mend: a token that is not valid. Not the path: it may be long."""
        if error.status == HTTPStatus.UNAUTHORIZED:
            kind, text = "requests with a missing or wrong token", "%s of %s from %s: missing or wrong token"
            fields = {"action": "token_refused", "client": request.client_ip, "status": error.status}
            self._log.warning(kind, text, request.method, request.path[:40], request.client_ip, extra=fields)


def _is_publish(route: Route, request: ApiRequest, arguments: Sequence[Any]) -> bool:
    """True for a publish of messages. One with a cron expression would create a schedule, which lasts."""
    return route.handler in BY_QUERY and not publish.has_cron(request, split_target(arguments[-1]))


def _error_response(request: ApiRequest, error: HttpError) -> ApiResponse:
    """The error in the form of the API that was called: QStash's or OpenAI's."""
    is_chat = request.path.lower().startswith("/llm/")
    return chat.error_response(error) if is_chat else error_response(error)


def find(request: ApiRequest) -> tuple[Route, tuple[Any, ...]]:
    """The route of a request and the arguments in its path. HttpError 404 or 405 if there is none.

    Fixed segments are compared without regard to case, and a trailing slash is ignored (docs/protocol.md 2.0). The
    match of ``*`` is taken from the raw target, so that nothing in a destination is decoded or merged.
    """
    segments = request.path.removeprefix("/").split("/")
    if len(segments) > 1 and segments[-1] == "":
        segments = segments[:-1]
    allowed: list[str] = []
    for route in ROUTES:
        if (arguments := _match(route, segments, request)) is None:
            continue
        if route.method == request.method:
            return route, arguments
        allowed.append(route.method)
    if allowed:
        raise HttpError(405, f"{request.method} is not allowed here", (("Allow", ", ".join(allowed)),))
    raise HttpError(404, f"no such endpoint: {request.method} {request.path[:200]}")


def _match(route: Route, segments: list[str], request: ApiRequest) -> tuple[str, ...] | None:
    arguments: list[str] = []
    for index, part in enumerate(route.path):
        if part == "*":
            rest = request.path.removeprefix("/").split("/", index)
            if len(rest) <= index:
                return None
            return (*arguments, rest[index] + (f"?{request.query}" if request.query else ""))
        if index >= len(segments):
            return None
        if part == "{}":
            argument = decoded_segment(segments[index])
            if not argument:
                return None
            arguments.append(argument)
        elif part != segments[index].lower():
            return None
    return tuple(arguments) if len(segments) == len(route.path) else None
