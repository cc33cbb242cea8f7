"""URL groups: named lists of endpoints (docs/protocol.md 2.8)."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from qtasks.errors import InvalidCallError
from qtasks.qstash.conversation.operation import JSON_TYPE, Operation, answer, nothing, segment, to_json

if TYPE_CHECKING:
    from qtasks.qstash.conversation.sync_driver import HttpClient

_PATH = "/v2/topics"


class UpsertEndpointRequest(TypedDict, total=False):
    """An endpoint to add or to change."""

    url: str
    """URL of the endpoint; required."""
    name: str
    """Name that identifies the endpoint; an endpoint without a name is identified by its URL."""


class RemoveEndpointRequest(TypedDict, total=False):
    """An endpoint to remove, by URL or by name."""

    url: str
    """URL of the endpoint."""
    name: str
    """Its name."""


@dataclass
class Endpoint:
    """A member of a URL group."""

    url: str
    """URL of the endpoint."""
    name: str | None
    """Name of the endpoint, if it has one."""


@dataclass
class UrlGroup:
    """A URL group. Times are Unix milliseconds."""

    name: str
    """Its name."""
    created_at: int
    """Time of its creation."""
    updated_at: int
    """Time of its last change."""
    endpoints: list[Endpoint]
    """The endpoints, in order."""
    headers: dict[str, list[str]] | None = field(default=None, kw_only=True)
    """Default headers of every publish to the group, if the service reports them."""


def parse_url_group(content: Mapping[str, Any]) -> UrlGroup:
    """Read a URL group from the JSON of the service."""
    return UrlGroup(
        name=content["name"],
        created_at=content["createdAt"],
        updated_at=content["updatedAt"],
        endpoints=[Endpoint(url=endpoint["url"], name=endpoint.get("name")) for endpoint in content["endpoints"]],
        headers=content.get("headers"),
    )


def upsert_endpoints(url_group: str, endpoints: Iterable[UpsertEndpointRequest]) -> Operation[None]:
    """Add endpoints, or change existing ones."""
    members = list(endpoints)
    if any("url" not in endpoint for endpoint in members):
        raise InvalidCallError("`url` of the endpoint must be provided.")
    return _edit("POST", url_group, {"endpoints": members})


def remove_endpoints(url_group: str, endpoints: Iterable[RemoveEndpointRequest]) -> Operation[None]:
    """Remove endpoints."""
    members = list(endpoints)
    if any("url" not in endpoint and "name" not in endpoint for endpoint in members):
        raise InvalidCallError("One of `url` or `name` of the endpoint must be provided.")
    return _edit("DELETE", url_group, {"endpoints": members})


def set_default_headers(url_group: str, headers: Mapping[str, str | list[str]]) -> Operation[None]:
    """Replace the default headers of publishes to the group."""
    body = to_json({"headers": dict(headers)})
    return Operation("PATCH", _path_of(url_group), nothing, headers=JSON_TYPE, body=body)


def get(url_group: str) -> Operation[UrlGroup]:
    """Get one group."""
    return Operation("GET", _path_of(url_group), lambda reply: parse_url_group(answer(reply)))


def list_all() -> Operation[list[UrlGroup]]:
    """Get all groups."""
    return Operation("GET", _PATH, lambda reply: [parse_url_group(content) for content in answer(reply)])


def delete(url_group: str) -> Operation[None]:
    """Delete a group."""
    return Operation("DELETE", _path_of(url_group), nothing, absent_is_done=True)


def _edit(method: Literal["POST", "DELETE"], url_group: str, body: object) -> Operation[None]:
    return Operation(
        method,
        f"{_path_of(url_group)}/endpoints",
        nothing,
        headers=JSON_TYPE,
        body=to_json(body),
        absent_is_done=method == "DELETE",
    )


def _path_of(url_group: str) -> str:
    return f"{_PATH}/{segment(url_group, 'url_group')}"


class UrlGroupApi:
    """URL groups. A publish to a group sends one message to each of its endpoints."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    def upsert_endpoints(self, url_group: str, endpoints: builtins.list[UpsertEndpointRequest]) -> None:
        """Add endpoints to a group, or change existing ones. A group that does not exist is created."""
        self._http.run(upsert_endpoints(url_group, endpoints))

    def remove_endpoints(self, url_group: str, endpoints: builtins.list[RemoveEndpointRequest]) -> None:
        """Remove endpoints from a group. Removing the last endpoint deletes the group."""
        self._http.run(remove_endpoints(url_group, endpoints))

    def set_default_headers(self, url_group: str, headers: Mapping[str, str | builtins.list[str]]) -> None:
        """Set the default headers of every publish to the group, for example ``{"Upstash-Retries": "5"}``.

        The headers of a publish win over these defaults. A later call replaces all of them.
        """
        self._http.run(set_default_headers(url_group, headers))

    def get(self, url_group: str) -> UrlGroup:
        """Get a group. Raises ApiError (404) for an unknown name."""
        return self._http.run(get(url_group))

    def list(self) -> builtins.list[UrlGroup]:
        """Get all groups."""
        return self._http.run(list_all())

    def delete(self, url_group: str) -> None:
        """Delete a group with all its endpoints. Messages that are already stored are not affected."""
        self._http.run(delete(url_group))
