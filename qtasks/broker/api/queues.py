"""Queues: create, change, list, pause, delete (docs/protocol.md 2.6)."""

from __future__ import annotations

from typing import Any, Final

from qtasks.broker.api import pages
from qtasks.broker.api.api_context import ApiContext
from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, json_response, read_name, read_object
from qtasks.broker.core.values import QueueState
from qtasks.broker.store.verbs import queues
from qtasks.protocol.views import pause_json

MAX_PARALLELISM: Final = 1000
"""The limit of the largest hosted plan."""
_SLICE: Final = 100
"""Messages that one transaction cancels when a queue is deleted."""


async def upsert_queue(context: ApiContext, account: int, request: ApiRequest) -> ApiResponse:
    """`POST /v2/queues`: create or change a queue. Absent members keep their value; a new queue has parallelism 1."""
    document = await read_object(request)
    name = read_name(document.get("queueName"), "queue name")
    change = context.change_by(request, account, "queue.set", name)
    await context.write(
        change,
        queues.upsert_queue,
        account,
        name,
        parallelism=_parallelism(document.get("parallelism")),
        paused=_paused(document.get("paused")),
        now_ms=change.now_ms,
        cause=change,
    )
    context.wake()
    return json_response({})


def _parallelism(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise HttpError(400, f"parallelism: expected a whole number of at least 1, got {str(value)[:40]!r}")
    if value > MAX_PARALLELISM:
        raise HttpError(412, f"parallelism: {value} exceeds the maximum of {MAX_PARALLELISM}")
    return value


def _paused(value: Any) -> bool | None:
    if not isinstance(value, bool | None):
        raise HttpError(400, f"paused: expected true or false, got {str(value)[:40]!r}")
    return value


async def list_queues(context: ApiContext, account: int, request: ApiRequest) -> ApiResponse:
    """`GET /v2/queues`."""
    states = await context.store.read(queues.queues, account)
    return await pages.array_response(context.store, states, lambda _, queue: _view(context, queue))


async def get_queue(context: ApiContext, account: int, request: ApiRequest, name: str) -> ApiResponse:
    """`GET /v2/queues/{name}`."""
    queue = await context.store.read(queues.queue, account, read_name(name, "queue name"))
    if queue is None:
        raise _not_found(name)
    return json_response(_view(context, queue))


async def delete_queue(context: ApiContext, account: int, request: ApiRequest, name: str) -> ApiResponse:
    """`DELETE /v2/queues/{name}`: cancel the waiting messages; those in flight finish.

    200 for an unknown queue as well (docs/compatibility.md A20, A31).
    """
    queue = read_name(name, "queue name")
    change = context.change_by(request, account, "queue.delete", queue)
    change.is_certain = await context.store.read(queues.queue, account, queue) is not None
    has_more = True
    while has_more:
        dropped = await context.cancel(change, queues.drop_queue, account, queue, limit=_SLICE, now_ms=change.now_ms)
        has_more = dropped.last is not None
    return json_response({})


async def pause_queue(context: ApiContext, account: int, request: ApiRequest, name: str) -> ApiResponse:
    """`POST /v2/queues/{name}/pause`: start no further message."""
    return await _pause(context, account, request, name, paused=True)


async def resume_queue(context: ApiContext, account: int, request: ApiRequest, name: str) -> ApiResponse:
    """`POST /v2/queues/{name}/resume`: start messages again, the oldest first."""
    return await _pause(context, account, request, name, paused=False)


async def _pause(context: ApiContext, account: int, request: ApiRequest, name: str, *, paused: bool) -> ApiResponse:
    change = context.change_by(request, account, "queue.pause" if paused else "queue.resume", name)
    if not await context.write(
        change, queues.pause_queue, account, name, paused=paused, now_ms=change.now_ms, cause=change
    ):
        raise _not_found(name)
    context.wake()
    return json_response({})


def _not_found(name: str) -> HttpError:
    return HttpError(404, f"queue {name[:128]} not found")


def _view(context: ApiContext, queue: QueueState) -> dict[str, object]:
    offset_ms = context.clock.offset_ms()
    return {
        "name": queue.name,
        "createdAt": queue.created_ms + offset_ms,
        "updatedAt": queue.updated_ms + offset_ms,
        "parallelism": queue.parallelism,
        "paused": queue.paused,
        "lag": queue.lag,
        **pause_json(queue.pause, offset_ms),
    }
