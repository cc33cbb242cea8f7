"""The asynchronous driver: performs the steps of an exchange with `await`; see `sync_driver`."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from qtasks.errors import BrokerUnreachable, QStashError
from qtasks.qstash.conversation import request_builder
from qtasks.qstash.conversation.credentials import resolve
from qtasks.qstash.conversation.exchange import (
    DEFAULT_TIMEOUT_S,
    Exchange,
    ExchangeSettings,
    ExchangeStep,
    Outcome,
    Pause,
    Retry,
    RetryConfig,
    attempts,
    exchange,
    is_success,
)
from qtasks.qstash.conversation.operation import Operation
from qtasks.qstash.conversation.service_transport import AsyncServiceTransport
from qtasks.qstash.conversation.transport import AsyncStreamed, AsyncStreaming, AsyncTransport, Reply, Request

T = TypeVar("T")


async def sleep(seconds: float) -> None:
    """Wait without blocking."""
    import asyncio  # slow to import, and most programs never wait here

    await asyncio.sleep(seconds)


class AsyncHttpClient:
    """As `HttpClient`, without blocking. One client can be used on several event loops."""

    def __init__(
        self,
        token: str | None = None,
        retry: RetryConfig | Retry | bool | None = None,
        base_url: str | None = None,
        *,
        transport: AsyncTransport | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        sleep: Callable[[float], Awaitable[None]] = sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.credentials = resolve(token, base_url, os.environ)
        self._transport = transport or AsyncServiceTransport()
        self._settings = ExchangeSettings(Retry.of(retry), timeout_s, monotonic)
        self._sleep = sleep

    async def run(self, operation: Operation[T]) -> T:
        """As `HttpClient.run`."""
        send = self._send_unqueued if operation.long else self._transport.send
        return await self._drive(
            exchange(operation, request_builder.of(operation, self.credentials), self._settings), send
        )

    async def open(self, operation: Operation[Any]) -> AsyncStreamed:
        """As `HttpClient.open`."""
        opened: list[AsyncStreamed] = []

        async def begin(request: Request, timeout_s: float) -> Reply:
            streamed = await self._begin(request, timeout_s)
            if not is_success(streamed.status):
                return await streamed.collect()
            opened.append(streamed)
            return Reply(streamed.status, streamed.headers, b"")

        await self._drive(attempts(operation, request_builder.of(operation, self.credentials), self._settings), begin)
        return opened[0]

    async def request(
        self,
        *,
        path: str,
        method: request_builder.HttpMethod,
        headers: Mapping[str, str] | None = None,
        body: str | bytes | None = None,
        params: Mapping[str, Any] | None = None,
        parse_response: bool = True,
        base_url: str | None = None,
        token: str | None = None,
    ) -> Any:
        """As `HttpClient.request`."""
        return await self.run(
            request_builder.custom(
                path=path,
                method=method,
                headers=headers,
                body=body,
                params=params,
                parse_response=parse_response,
                base_url=base_url,
                token=token,
            )
        )

    @property
    def repeats(self) -> bool:
        """True if this client repeats requests at all."""
        return self._settings.retry.retries > 0

    def new_retry_id(self) -> str | None:
        """As `HttpClient.new_retry_id`."""
        return request_builder.new_retry_id() if self.repeats else None

    async def close(self) -> None:
        """As `HttpClient.close`."""
        await self._transport.close()

    async def _begin(self, request: Request, timeout_s: float) -> AsyncStreamed:
        if isinstance(self._transport, AsyncStreaming):
            return await self._transport.stream(request, timeout_s)
        reply = await self._transport.send(request, timeout_s)
        return AsyncStreamed(reply.status, reply.headers, _once(reply.body), _nothing)

    async def _send_unqueued(self, request: Request, timeout_s: float) -> Reply:
        """Send outside the queue of the transport, where a request that takes minutes would block others."""
        return await (await self._begin(request, timeout_s)).collect()

    async def _drive(self, steps: Exchange[T], send: Callable[[Request, float], Awaitable[Reply]]) -> T:
        step = next(steps)
        while True:
            outcome = await self._perform(step, send)
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                value: T = end.value
                return value
            except QStashError as error:
                # The trace ends here: what the conversation was doing says less than the message.
                raise error.with_traceback(None)  # noqa: B904 - it is the same error

    async def _perform(self, step: ExchangeStep, send: Callable[[Request, float], Awaitable[Reply]]) -> Outcome | None:
        if isinstance(step, Pause):
            await self._sleep(step.seconds)
            return None
        try:
            return await send(step.request, step.timeout_s)
        except BrokerUnreachable as error:
            return error


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _nothing() -> None:
    pass
