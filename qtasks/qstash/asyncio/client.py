"""The asynchronous client."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self

from qtasks.protocol.messages import PublishOptions
from qtasks.protocol.service_url import shown
from qtasks.qstash.asyncio.chat import AsyncChatApi
from qtasks.qstash.asyncio.dlq import AsyncDlqApi
from qtasks.qstash.asyncio.event import AsyncEventApi
from qtasks.qstash.asyncio.flow_control import AsyncFlowControlApi
from qtasks.qstash.asyncio.log import AsyncLogApi
from qtasks.qstash.asyncio.message import AsyncMessageApi
from qtasks.qstash.asyncio.queue import AsyncQueueApi
from qtasks.qstash.asyncio.schedule import AsyncScheduleApi
from qtasks.qstash.asyncio.signing_key import AsyncSigningKeyApi
from qtasks.qstash.asyncio.url_group import AsyncUrlGroupApi
from qtasks.qstash.conversation import async_driver
from qtasks.qstash.conversation.async_driver import AsyncHttpClient
from qtasks.qstash.conversation.exchange import DEFAULT_TIMEOUT_S, Retry, RetryConfig
from qtasks.qstash.conversation.transport import AsyncTransport
from qtasks.qstash.operations import publishing
from qtasks.qstash.operations.publishing import BatchError, BatchResponse, EnqueueResponse, PublishResponse, RawMessage


class AsyncQStash:
    """As `QStash`, with `await`, on asyncio. One client may serve several event loops."""

    def __init__(
        self,
        token: str | None = None,
        *,
        retry: RetryConfig | Retry | bool | None = None,
        base_url: str | None = None,
        transport: AsyncTransport | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        sleep: Callable[[float], Awaitable[None]] = async_driver.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.http = AsyncHttpClient(
            token, retry, base_url, transport=transport, timeout_s=timeout_s, sleep=sleep, monotonic=monotonic
        )
        self.message = AsyncMessageApi(self.http)
        self.url_group = AsyncUrlGroupApi(self.http)
        self.queue = AsyncQueueApi(self.http)
        self.schedule = AsyncScheduleApi(self.http)
        self.signing_key = AsyncSigningKeyApi(self.http)
        self.log = AsyncLogApi(self.http)
        self.event = AsyncEventApi(self.http)
        self.dlq = AsyncDlqApi(self.http)
        self.flow_control = AsyncFlowControlApi(self.http)
        self.chat = AsyncChatApi(self.http)

    async def publish_raw(self, destination: str, body: bytes, options: PublishOptions) -> PublishResponse:
        """As `QStash.publish_raw`."""
        return await self.http.run(
            publishing.publish_raw(destination, body, options, retry_id=self.http.new_retry_id())
        )

    async def enqueue_raw(self, queue: str, destination: str, body: bytes, options: PublishOptions) -> EnqueueResponse:
        """As `QStash.enqueue_raw`."""
        return await self.http.run(
            publishing.enqueue_raw(queue, destination, body, options, retry_id=self.http.new_retry_id())
        )

    async def batch_raw(self, messages: Sequence[RawMessage]) -> list[BatchResponse | BatchError]:
        """As `QStash.batch_raw`."""
        return await self.http.run(publishing.batch_raw(messages, new_retry_id=self.http.new_retry_id))

    async def close(self) -> None:
        """As `QStash.close`."""
        await self.http.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncQStash(base_url={shown(self.http.credentials.base_url)!r})"
