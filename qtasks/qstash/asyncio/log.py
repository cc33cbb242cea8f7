"""The asynchronous counterpart of `qtasks.qstash.log`."""

from __future__ import annotations

from qtasks.qstash import log
from qtasks.qstash.conversation.async_driver import AsyncHttpClient
from qtasks.qstash.log import ListLogsResponse, LogFilter


class AsyncLogApi:
    """As `LogApi`."""

    def __init__(self, http: AsyncHttpClient) -> None:
        self._http = http

    async def list(
        self,
        *,
        cursor: str | None = None,
        count: int | None = None,
        filter: LogFilter | None = None,  # noqa: A002 - the official SDK's name
    ) -> ListLogsResponse:
        """As `LogApi.list`."""
        return await self._http.run(log.list_page(cursor, count, filter))
