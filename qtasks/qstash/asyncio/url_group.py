"""The asynchronous counterpart of `qtasks.qstash.url_group`."""

from __future__ import annotations

import builtins
from collections.abc import Mapping

from qtasks.qstash import url_group as url_groups
from qtasks.qstash.conversation.async_driver import AsyncHttpClient
from qtasks.qstash.url_group import RemoveEndpointRequest, UpsertEndpointRequest, UrlGroup


class AsyncUrlGroupApi:
    """As `UrlGroupApi`."""

    def __init__(self, http: AsyncHttpClient) -> None:
        self._http = http

    async def upsert_endpoints(self, url_group: str, endpoints: builtins.list[UpsertEndpointRequest]) -> None:
        """As `UrlGroupApi.upsert_endpoints`."""
        await self._http.run(url_groups.upsert_endpoints(url_group, endpoints))

    async def remove_endpoints(self, url_group: str, endpoints: builtins.list[RemoveEndpointRequest]) -> None:
        """As `UrlGroupApi.remove_endpoints`."""
        await self._http.run(url_groups.remove_endpoints(url_group, endpoints))

    async def set_default_headers(self, url_group: str, headers: Mapping[str, str | builtins.list[str]]) -> None:
        """As `UrlGroupApi.set_default_headers`."""
        await self._http.run(url_groups.set_default_headers(url_group, headers))

    async def get(self, url_group: str) -> UrlGroup:
        """As `UrlGroupApi.get`."""
        return await self._http.run(url_groups.get(url_group))

    async def list(self) -> builtins.list[UrlGroup]:
        """As `UrlGroupApi.list`."""
        return await self._http.run(url_groups.list_all())

    async def delete(self, url_group: str) -> None:
        """As `UrlGroupApi.delete`."""
        await self._http.run(url_groups.delete(url_group))
