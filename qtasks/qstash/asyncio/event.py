"""The asynchronous counterpart of `qtasks.qstash.event`."""

from __future__ import annotations

from qtasks.qstash import log
from qtasks.qstash.conversation.async_driver import AsyncHttpClient
from qtasks.qstash.event import EventFilter, ListEventsResponse


class AsyncEventApi:
    """As `EventApi`."""

    def __init__(self, http: AsyncHttpClient) -> None:
        self._http = http

    async def list(
        self,
        *,
        cursor: str | None = None,
        count: int | None = None,
        filter: EventFilter | None = None,  # noqa: A002 - the official SDK's name
    ) -> ListEventsResponse:
        """As `EventApi.list`."""
        return ListEventsResponse.of(await self._http.run(log.list_page(cursor, count, filter)))
