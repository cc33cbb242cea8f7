"""The asynchronous counterpart of `qtasks.qstash.dlq`."""

from __future__ import annotations

import builtins
from typing import Unpack

from qtasks.qstash import dlq
from qtasks.qstash.conversation.async_driver import AsyncHttpClient
from qtasks.qstash.dlq import (
    DeleteDlqMessagesResponse,
    DlqFilter,
    DlqMessage,
    ListDlqMessagesResponse,
    RetryDlqMessagesResponse,
)
from qtasks.qstash.operations.options import PublishKeywords
from qtasks.qstash.operations.publishing import PublishResponse


class AsyncDlqApi:
    """As `DlqApi`."""

    def __init__(self, http: AsyncHttpClient) -> None:
        self._http = http

    async def get(self, dlq_id: str) -> DlqMessage:
        """As `DlqApi.get`."""
        return await self._http.run(dlq.get(dlq_id))

    async def list(
        self,
        *,
        cursor: str | None = None,
        count: int | None = None,
        filter: DlqFilter | None = None,  # noqa: A002 - the official SDK's name
    ) -> ListDlqMessagesResponse:
        """As `DlqApi.list`."""
        return await self._http.run(dlq.list_page(cursor, count, filter))

    async def delete(self, dlq_id: str) -> None:
        """As `DlqApi.delete`."""
        await self._http.run(dlq.delete(dlq_id))

    async def delete_many(self, dlq_ids: builtins.list[str]) -> int:
        """As `DlqApi.delete_many`."""
        return await self._http.run(dlq.delete_many(dlq_ids)) if dlq_ids else 0

    async def delete_all(
        self,
        *,
        filter: DlqFilter | None = None,  # noqa: A002 - as in `list`
        count: int | None = None,
        cursor: str | None = None,
    ) -> DeleteDlqMessagesResponse:
        """As `DlqApi.delete_all`."""
        return await self._http.run(dlq.delete_all(filter, count, cursor))

    async def retry(self, dlq_id: str, **options: Unpack[PublishKeywords]) -> PublishResponse:
        """As `DlqApi.retry`."""
        return await self._http.run(dlq.retry(dlq_id, options))

    async def retry_many(
        self, dlq_ids: builtins.list[str], **options: Unpack[PublishKeywords]
    ) -> RetryDlqMessagesResponse:
        """As `DlqApi.retry_many`."""
        return (
            await self._http.run(dlq.retry_many(dlq_ids, options)) if dlq_ids else RetryDlqMessagesResponse(cursor=None)
        )

    async def retry_all(
        self,
        *,
        filter: DlqFilter | None = None,  # noqa: A002 - as in `list`
        count: int | None = None,
        cursor: str | None = None,
        **options: Unpack[PublishKeywords],
    ) -> RetryDlqMessagesResponse:
        """As `DlqApi.retry_all`."""
        return await self._http.run(dlq.retry_all(filter, count, cursor, options))
