"""Which handler answers which path below ``console/api/``, and who may use it (docs/console.md)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, decoded_segment
from qtasks.broker.console.console_context import Role, Viewer
from qtasks.broker.console.views import (
    again,
    audit_table,
    dead_letters,
    drift,
    endpoints,
    failure_table,
    for_assistant,
    growth,
    llm_table,
    message_call,
    message_page,
    messages,
    overview,
    queue_table,
    schedule_table,
    system,
    task_table,
)

ViewHandler = Callable[..., Awaitable[ApiResponse]]


class Right(Enum):
    """What a view demands of its viewer."""

    LOOK = auto()
    """Any role: the view itself leaves out what a viewer without payloads may not see."""
    READ = auto()
    """Any role that sees payloads: nothing would be left without them."""
    ACT = auto()
    """An operator, because the request changes something."""


@dataclass(frozen=True, slots=True)
class View:
    """One endpoint. In `path`, ``{}`` matches one segment."""

    method: str
    path: tuple[str, ...]
    right: Right
    handler: ViewHandler


def _view(method: str, path: str, right: Right, handler: ViewHandler) -> View:
    return View(method, tuple(path.split("/")), right, handler)


VIEWS: Final = (
    _view("GET", "overview", Right.LOOK, overview.show),
    _view("GET", "messages", Right.LOOK, messages.list_messages),
    _view("GET", "messages/{}", Right.LOOK, message_page.show),
    _view("GET", "messages/{}/assistant", Right.READ, for_assistant.of_message),
    _view("GET", "messages/{}/call", Right.LOOK, message_call.show),
    _view("POST", "messages/{}/again", Right.ACT, again.publish_again),
    _view("GET", "failures", Right.LOOK, failure_table.list_failures),
    _view("GET", "failures/{}", Right.LOOK, failure_table.show_failure),
    _view("POST", "failures/{}/mute", Right.ACT, failure_table.mute_failure),
    _view("GET", "failures/{}/assistant", Right.READ, for_assistant.of_failure),
    _view("POST", "failures/{}/retry", Right.ACT, failure_table.retry_failure),
    _view("GET", "dead-letters", Right.LOOK, dead_letters.list_dead_letters),
    _view("POST", "dead-letters/retry", Right.ACT, dead_letters.retry_dead_letters),
    _view("POST", "dead-letters/delete", Right.ACT, dead_letters.delete_dead_letters),
    _view("GET", "schedules", Right.LOOK, schedule_table.list_schedules),
    _view("GET", "drift", Right.LOOK, drift.show),
    _view("POST", "schedules/{}/run", Right.ACT, schedule_table.run_now),
    _view("GET", "llm", Right.LOOK, llm_table.list_calls),
    _view("GET", "llm/{}", Right.LOOK, llm_table.show_call),
    _view("GET", "queues", Right.LOOK, queue_table.list_queues),
    _view("GET", "flow", Right.LOOK, queue_table.list_flow_keys),
    _view("GET", "endpoints", Right.LOOK, endpoints.list_endpoints),
    _view("GET", "tasks", Right.LOOK, task_table.list_tasks),
    _view("GET", "system", Right.LOOK, system.show),
    _view("GET", "growth", Right.LOOK, growth.show),
    _view("GET", "audit", Right.LOOK, audit_table.list_changes),
)


def find(request: ApiRequest, path: str) -> tuple[View, tuple[str, ...]]:
    """The view at `path`, which is relative to ``console/api/``, and its arguments. HttpError 404 or 405."""
    segments = path.split("/")
    allowed: list[str] = []
    for view in VIEWS:
        if (arguments := _match(view, segments)) is None:
            continue
        if view.method == request.method or (view.method, request.method) == ("GET", "HEAD"):
            return view, arguments
        allowed.append(view.method)
    if allowed:
        raise HttpError(405, f"{request.method} is not allowed here", (("Allow", ", ".join(allowed)),))
    raise HttpError(404, f"the console has no view {path[:200]}")


def check_right(view: View, viewer: Viewer) -> None:
    """HttpError 403 if `viewer` may not use the view."""
    if view.right is Right.READ and not viewer.sees_payloads:
        raise HttpError(403, "your token sees no payloads, and this is made of them")
    if view.right is Right.ACT and viewer.role is not Role.OPERATOR:
        raise HttpError(403, "your token may look only: this needs one that may publish")


def _match(view: View, segments: list[str]) -> tuple[str, ...] | None:
    if len(segments) != len(view.path):
        return None
    arguments: list[str] = []
    for part, segment in zip(view.path, segments, strict=True):
        if part == "{}" and segment:
            arguments.append(decoded_segment(segment))
        elif part != segment:
            return None
    return tuple(arguments)
