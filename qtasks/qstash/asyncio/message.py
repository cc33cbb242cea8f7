"""The asynchronous counterpart of `qtasks.qstash.message`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Unpack

from qtasks.qstash import message
from qtasks.qstash.conversation.async_driver import AsyncHttpClient
from qtasks.qstash.message import Message, MessageFilter
from qtasks.qstash.operations import publishing
from qtasks.qstash.operations.options import EnqueueTarget, PublishTarget
from qtasks.qstash.operations.publishing import (
    BatchError,
    BatchJsonRequest,
    BatchRequest,
    BatchResponse,
    BatchUrlGroupResponse,
    Body,
    EnqueueResponse,
    EnqueueUrlGroupResponse,
    PublishResponse,
    PublishUrlGroupResponse,
)


class AsyncMessageApi:
    """As `MessageApi`."""

    def __init__(self, http: AsyncHttpClient) -> None:
        self._http = http

    async def publish(
        self, *, body: Body = None, **options: Unpack[PublishTarget]
    ) -> PublishResponse | list[PublishUrlGroupResponse]:
        """As `MessageApi.publish`."""
        return await self._http.run(publishing.publish(body, options, retry_id=self._http.new_retry_id()))

    async def publish_json(
        self, *, body: Any = None, **options: Unpack[PublishTarget]
    ) -> PublishResponse | list[PublishUrlGroupResponse]:
        """As `MessageApi.publish_json`."""
        text, arguments = publishing.as_json(body, options)
        return await self._http.run(publishing.publish(text, arguments, retry_id=self._http.new_retry_id()))

    async def enqueue(
        self, *, queue: str, body: Body = None, **options: Unpack[EnqueueTarget]
    ) -> EnqueueResponse | list[EnqueueUrlGroupResponse]:
        """As `MessageApi.enqueue`."""
        return await self._http.run(publishing.enqueue(queue, body, options, retry_id=self._http.new_retry_id()))

    async def enqueue_json(
        self, *, queue: str, body: Any = None, **options: Unpack[EnqueueTarget]
    ) -> EnqueueResponse | list[EnqueueUrlGroupResponse]:
        """As `MessageApi.enqueue_json`."""
        text, arguments = publishing.as_json(body, options)
        return await self._http.run(publishing.enqueue(queue, text, arguments, retry_id=self._http.new_retry_id()))

    async def batch(
        self, messages: Iterable[BatchRequest]
    ) -> list[BatchResponse | list[BatchUrlGroupResponse] | BatchError]:
        """As `MessageApi.batch`."""
        return await self._http.run(publishing.batch(messages, new_retry_id=self._http.new_retry_id))

    async def batch_json(
        self, messages: Iterable[BatchJsonRequest]
    ) -> list[BatchResponse | list[BatchUrlGroupResponse] | BatchError]:
        """As `MessageApi.batch_json`."""
        return await self.batch(publishing.batch_as_json(messages))

    async def get(self, message_id: str) -> Message:
        """As `MessageApi.get`."""
        return await self._http.run(message.get(message_id))

    async def cancel(self, message_id: str) -> None:
        """As `MessageApi.cancel`."""
        await self._http.run(message.cancel(message_id))

    async def cancel_many(self, message_ids: list[str]) -> int:
        """As `MessageApi.cancel_many`."""
        return await self._http.run(message.cancel_many(message_ids)) if message_ids else 0

    async def cancel_all(
        self,
        *,
        filter: MessageFilter | None = None,  # noqa: A002 - as in the other lists of the SDK
        count: int | None = None,
    ) -> int:
        """As `MessageApi.cancel_all`."""
        return await self._http.run(message.cancel_all(filter, count))
