"""Flow-control keys and the global parallelism (docs/protocol.md 2.11)."""

from __future__ import annotations

from typing import Final

from qtasks.broker.api import pages
from qtasks.broker.api.api_context import ApiContext
from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, Query, json_response
from qtasks.broker.core.values import FlowKeyState
from qtasks.broker.store.verbs import flow_control
from qtasks.protocol.views import pause_json

_MAX_LIMIT: Final = 2**31 - 1
_MAX_PERIOD_S: Final = 7 * 24 * 60 * 60
_MAX_KEY: Final = 512


async def list_keys(context: ApiContext, account: int, request: ApiRequest) -> ApiResponse:
    """`GET /v2/flowControl`, with `search=<part of the key>`."""
    search = Query(request.query).last("search") or ""
    keys = await context.store.read(flow_control.flow_keys, account, search=search, now_ms=context.clock.now_ms())
    return await pages.array_response(context.store, keys, lambda _, key: _view(context, key))


async def get_key(context: ApiContext, account: int, request: ApiRequest, name: str) -> ApiResponse:
    """`GET /v2/flowControl/{key}`."""
    key = await context.store.read(flow_control.flow_key, account, name, now_ms=context.clock.now_ms())
    if key is None:
        raise HttpError(404, f"flow control key {name[:128]} not found")
    return json_response(_view(context, key))


async def pause_key(context: ApiContext, account: int, request: ApiRequest, name: str) -> ApiResponse:
    """`POST /v2/flowControl/{key}/pause`: the key's messages wait. An unknown key is created."""
    return await _pause(context, account, request, name, paused=True)


async def resume_key(context: ApiContext, account: int, request: ApiRequest, name: str) -> ApiResponse:
    """`POST /v2/flowControl/{key}/resume`."""
    return await _pause(context, account, request, name, paused=False)


async def _pause(context: ApiContext, account: int, request: ApiRequest, name: str, *, paused: bool) -> ApiResponse:
    change = context.change_by(request, account, "flow.pause" if paused else "flow.resume", _key(name))
    await context.write(
        change, flow_control.pause_flow_key, account, name, paused=paused, now_ms=change.now_ms, cause=change
    )
    context.wake()
    return json_response({})


async def pin_key(context: ApiContext, account: int, request: ApiRequest, name: str) -> ApiResponse:
    """`POST /v2/flowControl/{key}/pin`: fix parallelism, rate or period, so that messages no longer change them."""
    query = Query(request.query)
    await context.write(
        context.change_by(request, account, "flow.pin", _key(name)),
        flow_control.pin_flow_key,
        account,
        name,
        parallelism=query.integer("parallelism", low=1, high=_MAX_LIMIT),
        rate=query.integer("rate", low=1, high=_MAX_LIMIT),
        period_s=query.integer("period", low=1, high=_MAX_PERIOD_S),
        now_ms=context.clock.now_ms(),
    )
    context.wake()
    return json_response({})


async def unpin_key(context: ApiContext, account: int, request: ApiRequest, name: str) -> ApiResponse:
    """`POST /v2/flowControl/{key}/unpin`: the pinned values stay until a message brings others."""
    query = Query(request.query)
    await context.write(
        context.change_by(request, account, "flow.unpin", name),
        flow_control.unpin_flow_key,
        account,
        name,
        parallelism=query.flag("parallelism"),
        rate=query.flag("rate"),
        now_ms=context.clock.now_ms(),
    )
    context.wake()
    return json_response({})


async def reset_rate(context: ApiContext, account: int, request: ApiRequest, name: str) -> ApiResponse:
    """`POST /v2/flowControl/{key}/resetRate`, and `reset`, which here resets the rate only."""
    change = context.change_by(request, account, "flow.reset", name)
    await context.write(change, flow_control.reset_flow_rate, account, name, now_ms=change.now_ms)
    context.wake()
    return json_response({})


async def global_parallelism(context: ApiContext, account: int, request: ApiRequest) -> ApiResponse:
    """`GET /v2/globalParallelism`: the maximum of the broker, and the account's own count."""
    return json_response(
        {
            "parallelismMax": context.parallelism,
            "parallelismCount": await context.store.read(flow_control.running_now, account),
        }
    )


def _key(name: str) -> str:
    if len(name) > _MAX_KEY:
        raise HttpError(400, f"a flow control key has at most {_MAX_KEY} characters, not {len(name)}")
    return name


def _wall_s(context: ApiContext, time_ms: int) -> int:
    """A time of the store as wall time in seconds; 0, for no window, stays 0."""
    return (time_ms + context.clock.offset_ms()) // 1000 if time_ms else 0


def _view(context: ApiContext, key: FlowKeyState) -> dict[str, object]:
    return {
        "flowControlKey": key.key,
        "waitListSize": key.waiting,
        "parallelismMax": key.parallelism or 0,
        "parallelismCount": key.running,
        "rateMax": key.rate or 0,
        "rateCount": key.started,
        "ratePeriod": key.period_s,
        "ratePeriodStart": _wall_s(context, key.window_start_ms),
        "isPaused": key.paused,
        **pause_json(key.pause, context.clock.offset_ms()),
        "isPinnedParallelism": key.pinned_parallelism,
        "isPinnedRate": key.pinned_rate,
    }
