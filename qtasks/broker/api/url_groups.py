"""URL groups, which the wire calls topics (docs/protocol.md 2.8)."""

from __future__ import annotations

from typing import Any, Final

import apsw

from qtasks.broker.api import pages, workflows
from qtasks.broker.api.api_context import ApiContext
from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, json_response, read_name, read_object
from qtasks.broker.api.validation import check_policy
from qtasks.broker.core.values import DeliveryEndpoint, UrlGroupState
from qtasks.broker.store.verbs import url_groups
from qtasks.protocol import wire
from qtasks.protocol.messages import Headers

_WHAT: Final = "URL group name"
_MAX_ENDPOINTS: Final = 10_000
_MAX_NAME: Final = 256


async def list_groups(context: ApiContext, account: int, request: ApiRequest) -> ApiResponse:
    """`GET /v2/topics`."""

    def view(db: apsw.Connection, name: str) -> dict[str, object] | None:
        group = url_groups.group(db, account, name)
        return None if group is None else _view(context, group)

    return await pages.array_response(context.store, await context.store.read(url_groups.group_names, account), view)


async def get_group(context: ApiContext, account: int, request: ApiRequest, name: str) -> ApiResponse:
    """`GET /v2/topics/{name}`."""
    group = await context.store.read(url_groups.group, account, name)
    if group is None:
        raise _not_found(name)
    return json_response(_view(context, group))


async def delete_group(context: ApiContext, account: int, request: ApiRequest, name: str) -> ApiResponse:
    """`DELETE /v2/topics/{name}`: 200 for an unknown group as well (docs/compatibility.md A31)."""
    change = context.change_by(request, account, "url-group.delete", name)
    await context.write(change, url_groups.delete_group, account, name)
    return json_response({})


async def upsert_endpoints(context: ApiContext, account: int, request: ApiRequest, name: str) -> ApiResponse:
    """`POST /v2/topics/{name}/endpoints`: add or change endpoints; creates a missing group."""
    endpoints = await _endpoints(request)
    turn = context.turns.begin()
    for endpoint in endpoints:
        if not endpoint.url:
            raise HttpError(400, "endpoints: every endpoint needs a url")
        try:
            wire.check_url(endpoint.url)
        except wire.WireError as error:
            raise HttpError(error.status, str(error)) from None
        check_policy(context, endpoint.url)
        await turn.end_if_long()
    change = context.change_by(request, account, "url-group.set", read_name(name, _WHAT))
    await context.write_long(change, url_groups.upsert_endpoints, account, name, endpoints, now_ms=change.now_ms)
    return json_response({})


async def remove_endpoints(context: ApiContext, account: int, request: ApiRequest, name: str) -> ApiResponse:
    """`DELETE /v2/topics/{name}/endpoints`: by name or URL. Removing the last endpoint deletes the group."""
    endpoints = await _endpoints(request)
    change = context.change_by(request, account, "url-group.remove", name)
    if not await context.write_long(
        change, url_groups.remove_endpoints, account, name, endpoints, now_ms=change.now_ms
    ):
        raise _not_found(name)
    return json_response({})


async def set_headers(context: ApiContext, account: int, request: ApiRequest, name: str) -> ApiResponse:
    """`PATCH /v2/topics/{name}`: set the default headers of every publish to the group."""
    defaults = (await read_object(request)).get("headers")
    if not isinstance(defaults, dict):
        raise HttpError(400, 'expected {"headers": {"Upstash-Retries": "3", ...}}')
    workflows.check_headers(defaults)
    headers = tuple((header, value) for header, values in defaults.items() for value in _texts(header, values))
    try:
        options = wire.read(headers)
    except wire.WireError as error:
        raise HttpError(error.status, str(error)) from None
    if options.cron is not None or options.schedule_id is not None:
        raise HttpError(400, "Upstash-Cron and Upstash-Schedule-Id cannot be a default of a URL group")
    check_policy(context, options=options)
    change = context.change_by(request, account, "url-group.headers", name)
    if not await context.write(change, url_groups.set_group_headers, account, name, headers, now_ms=change.now_ms):
        raise _not_found(name)
    return json_response({})


def _texts(name: str, values: Any) -> list[str]:
    listed = values if isinstance(values, list) else [values]
    if not all(isinstance(value, str) for value in listed):
        raise HttpError(400, f"headers: {name[:64]}: expected a text or an array of texts")
    return listed


async def _endpoints(request: ApiRequest) -> list[DeliveryEndpoint]:
    items = (await read_object(request)).get("endpoints")
    if not isinstance(items, list) or not items or len(items) > _MAX_ENDPOINTS:
        raise HttpError(
            400, f'expected {{"endpoints": [{{"url": "https://..."}}, ...]}} with 1 to {_MAX_ENDPOINTS} of them'
        )
    return [_endpoint(item) for item in items]


def _endpoint(item: Any) -> DeliveryEndpoint:
    url, name = (item.get("url"), item.get("name")) if isinstance(item, dict) else (None, None)
    if not isinstance(url, str | None) or not isinstance(name, str | None) or not (url or name):
        raise HttpError(400, "endpoints: expected objects with a url, a name, or both, as texts")
    if name is not None and len(name) > _MAX_NAME:
        raise HttpError(400, f"endpoints: a name has at most {_MAX_NAME} characters, not {len(name)}")
    return DeliveryEndpoint(url or "", name or None)


def _not_found(name: str) -> HttpError:
    return HttpError(404, f"URL group {name[:128]} not found")


def _view(context: ApiContext, group: UrlGroupState) -> dict[str, object]:
    offset_ms = context.clock.offset_ms()
    return {
        "name": group.name,
        "createdAt": group.created_ms + offset_ms,
        "updatedAt": group.updated_ms + offset_ms,
        "endpoints": [_endpoint_view(endpoint) for endpoint in group.endpoints],
        **({"headers": _grouped(group.headers)} if group.headers else {}),
    }


def _endpoint_view(endpoint: DeliveryEndpoint) -> dict[str, str]:
    return {"url": endpoint.url, **({} if endpoint.name is None else {"name": endpoint.name})}


def _grouped(headers: Headers) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name, value in headers:
        grouped.setdefault(name, []).append(value)
    return grouped
